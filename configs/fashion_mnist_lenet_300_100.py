"""LeNet-300-100 on Fashion-MNIST, 90% sparse. About two minutes on two cores.

    python tools/prune.py --config=configs/fashion_mnist_lenet_300_100.py --data_dir=runs/data --workdir=runs/lenet

Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        dataset="fashion_mnist",
        architecture="lenet_300_100",
        pruning=PruningConfig(target_sparsity=0.9, epochs=15, round_epochs=3),
        batch_size=128,
        momentum=0.0,
    )
