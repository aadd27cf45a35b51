"""An MLP with two hidden layers of 2048 units on Fashion-MNIST, 98% sparse. About fifteen minutes on two cores.

    python tools/prune.py --config=configs/fashion_mnist_wide_mlp.py --data_dir=runs/data --workdir=runs/wide_mlp

Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        dataset="fashion_mnist",
        architecture="wide_mlp",
        pruning=PruningConfig(target_sparsity=0.98, epochs=15, round_epochs=1),
        batch_size=128,
        momentum=0.0,
    )
