"""The MLP LeNet-300-100 on scikit-learn's digits, 90% sparse. About a minute on two cores.

python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        dataset="digits",
        architecture="lenet_300_100",
        pruning=PruningConfig(target_sparsity=0.9, epochs=30, round_epochs=6),
        learning_rate=0.05,
        steps_per_execution=23,
        validation_freq=6,  # The last epoch of each training among them.
    )
