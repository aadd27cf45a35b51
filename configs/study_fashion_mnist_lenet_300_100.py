"""LeNet-300-100 on Fashion-MNIST at 90% and 97.7% sparsity, three seeds: the table in docs/results.md.

    python tools/study.py --config=configs/study_fashion_mnist_lenet_300_100.py --data_dir=runs/data \\
        --workdir=runs/study_lenet_300_100

5,319 epochs: an hour or two on two cores. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
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
            pruning=PruningConfig(target_sparsity=0.9, epochs=15, shrink=1.0, round_schedule="compress"),
            batch_size=128,
            learning_rate=0.05,
            steps_per_execution=67,
        ),
        arms={
            "dense": Arm(pruning={"method": "dense"}),
            "dense_long": Arm(pruning={"method": "dense"}, epochs_of="aimp"),
            # A rate that is at least the sparsity removes everything in one round.
            "one_shot": Arm(pruning={"rate": 0.999, "round_epochs": 15}),
            "imp": Arm(pruning={"round_epochs": 15}),
            "imp_weights": Arm(pruning={"round_epochs": 15, "rewind": "weights"}),
            "aimp": Arm(),
            "aimp_weights": Arm(pruning={"rewind": "weights"}),
            "aimp_1": Arm(pruning={"round_epochs": 1}),
            "aimp_5": Arm(pruning={"round_epochs": 5}),
            "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
            "random": Arm(pruning={"criterion": "random"}),
        },
        sparsities=(0.9, 0.977),
        seeds=(0, 1, 2),
    )
