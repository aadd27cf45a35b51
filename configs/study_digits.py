"""LeNet-300-100 on scikit-learn's digits at 90% sparsity, four ways, three seeds. A minute or two on two cores.

python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study


def get_config() -> Study:
    return Study(
        experiment=Experiment(
            dataset="digits",
            architecture="lenet_300_100",
            pruning=PruningConfig(target_sparsity=0.9, epochs=30, round_epochs=6),
            learning_rate=0.05,
            steps_per_execution=23,
        ),
        arms={
            "dense": Arm(pruning={"method": "dense"}),
            # A rate that is at least the sparsity removes everything in one round.
            "one_shot": Arm(pruning={"rate": 0.999, "round_epochs": 30}),
            "imp": Arm(pruning={"round_epochs": 30}),
            "aimp": Arm(),
        },
        sparsities=(0.9,),
        seeds=(0, 1, 2),
    )
