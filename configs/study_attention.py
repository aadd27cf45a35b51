"""An attention block on scikit-learn's digits at 80% sparsity, by the share that each layer keeps, in both generations.

    python tools/study.py --config=configs/study_attention.py --workdir=runs/study_attention

Three seeds: the table of "No layer is emptied" in docs/results.md, 780 epochs of 1,437 images.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study

_SHARES = (0, 0.05, 0.1, 0.25, 0.5)


def get_config() -> Study:
    return Study(
        experiment=Experiment(
            dataset="digits",
            architecture="row_attention",
            # As the table was measured: the defaults of then.
            pruning=PruningConfig(target_sparsity=0.8, epochs=10, shrink=1.0, round_schedule="compress"),
            learning_rate=0.05,
            steps_per_execution=23,
            validation_freq=10,
        ),
        arms={
            f"{keras}_share_{share}".replace(".", "_"): Arm(
                pruning={"min_layer_share": share}, experiment={"keras": keras}
            )
            for keras in ("keras", "tf_keras")
            for share in _SHARES
        },
        sparsities=(0.8,),
        seeds=(0, 1, 2),
    )
