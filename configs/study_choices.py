"""What each choice in AIMP's defaults is worth: LeNet-300-100 on Fashion-MNIST at 97.7% sparsity, three seeds.

    python tools/study.py --config=configs/study_choices.py --data_dir=runs/data --workdir=runs/study_choices

About half an hour on two cores. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study


def get_config() -> Study:
    return Study(
        experiment=Experiment(
            dataset="fashion_mnist",
            architecture="lenet_300_100",
            # As the table was measured: the defaults of then.
            pruning=PruningConfig(target_sparsity=0.977, epochs=15, shrink=1.0, round_schedule="compress"),
            batch_size=128,
            learning_rate=0.05,
            steps_per_execution=67,
            validation_freq=15,
        ),
        arms={
            "aimp": Arm(),
            # Rewinding of the last training.
            "last_weights": Arm(pruning={"final_rewind": "weights"}),
            # The learning rate.
            "head": Arm(pruning={"round_schedule": "head"}),
            "cosine": Arm(experiment={"schedule": "cosine"}),
            "linear": Arm(experiment={"schedule": "linear"}),
            # How the same epochs are shared out: rounds of 2 and the last of 32, or about half as many rounds, of 5.
            "short_rounds": Arm(pruning={"round_epochs": 2}, epochs_of="aimp"),
            "big_steps": Arm(pruning={"rate": 0.36, "round_epochs": 5}, epochs_of="aimp"),
            # The same sparsity in each layer.
            "layer": Arm(pruning={"scope": "layer"}),
            # Rounds of at most 15 epochs, which end when the masks settle.
            "settled_0_05": Arm(pruning={"round_epochs": 15, "stop_mask_distance": 0.05}),
            "settled_0_01": Arm(pruning={"round_epochs": 15, "stop_mask_distance": 0.01}),
        },
        sparsities=(0.977,),
        seeds=(0, 1, 2),
    )
