"""ResNet-20 on a twelfth of Fashion-MNIST, 95% sparse, pruned gradually. About ten minutes on two cores.

    python tools/prune.py --config=configs/fashion_mnist_resnet_20.py --data_dir=runs/data --workdir=runs/resnet_20

Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        dataset="fashion_mnist",
        architecture="resnet_20",
        pruning=PruningConfig(method="gradual", target_sparsity=0.95, epochs=20),
        batch_size=64,
        learning_rate=0.1,
        train_examples=5000,
        validation_freq=20,
    )
