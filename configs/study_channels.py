"""Whole channels, and residual blocks, of ResNet-20 on a twelfth of Fashion-MNIST, at a half and a quarter of the
multiply-adds, three seeds.

    python tools/study.py --config=configs/study_channels.py --data_dir=runs/data --workdir=runs/study_channels

The sparsity is the share of the multiply-adds that goes. About six hours on two cores; --arms takes some of it, such as
--arms=dense,aimp. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study


def get_config() -> Study:
    return Study(
        experiment=Experiment(
            dataset="fashion_mnist",
            architecture="resnet_20",
            pruning=PruningConfig(target_sparsity=0.5, epochs=10, granularity="channel", budget="flops"),
            batch_size=64,
            learning_rate=0.1,
            train_examples=5000,
            validation_freq=10,
        ),
        arms={
            "dense": Arm(pruning={"method": "dense"}),
            "dense_long": Arm(pruning={"method": "dense"}, epochs_of="aimp"),
            "aimp": Arm(),
            "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
            "uniform": Arm(pruning={"scope": "layer"}),
            "blocks": Arm(pruning={"granularity": "block"}),
            "random": Arm(pruning={"criterion": "random"}),
            "one_shot": Arm(pruning={"rate": 0.999, "round_epochs": 10}),
        },
        sparsities=(0.5, 0.75),
        seeds=(0, 1, 2),
    )
