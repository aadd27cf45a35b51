"""ResNet-8 on a twelfth of Fashion-MNIST at 90% and 98% sparsity, three seeds: the second table in docs/results.md.

    python tools/study.py --config=configs/study_fashion_mnist_resnet_8.py --data_dir=runs/data \\
        --workdir=runs/study_resnet_8

2,115 epochs of 5,000 images: about two hours on two cores. Without a network, tools/prepare_fashion_mnist.py fills
--data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study


def get_config() -> Study:
    return Study(
        experiment=Experiment(
            dataset="fashion_mnist",
            architecture="resnet_8",
            # The rate is two rounds of 0.2 in one.
            # As the table was measured: the defaults of then.
            pruning=PruningConfig(target_sparsity=0.9, rate=0.36, epochs=10, shrink=1.0, round_schedule="compress"),
            batch_size=64,
            learning_rate=0.1,
            train_examples=5000,
            validation_freq=10,
        ),
        arms={
            "dense": Arm(pruning={"method": "dense"}),
            # A rate that is at least the sparsity removes everything in one round.
            "one_shot": Arm(pruning={"rate": 0.999, "round_epochs": 10}),
            "imp": Arm(pruning={"round_epochs": 10}),
            "imp_weights": Arm(pruning={"round_epochs": 10, "rewind": "weights"}),
            "aimp": Arm(),
            "aimp_weights": Arm(pruning={"rewind": "weights"}),
            "aimp_1": Arm(pruning={"round_epochs": 1}),
            "aimp_4": Arm(pruning={"round_epochs": 4}),
            "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
            "random": Arm(pruning={"criterion": "random"}),
        },
        sparsities=(0.9, 0.98),
        seeds=(0, 1, 2),
    )
