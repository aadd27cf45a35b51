"""What blocks of four inputs cost: LeNet-300-100 on Fashion-MNIST at 90% sparsity, three seeds.

    python tools/study.py --config=configs/study_granularity.py --data_dir=runs/data --workdir=runs/study_granularity

About six minutes on two cores. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
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
            validation_freq=15,
        ),
        arms={
            "unstructured": Arm(),
            "blocks_1x4": Arm(pruning={"granularity": "1x4"}),
        },
        sparsities=(0.9,),
        seeds=(0, 1, 2),
    )
