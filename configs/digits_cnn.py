"""A small batch-normalised CNN on scikit-learn's digits, 90% sparse. About a minute on two cores.

python tools/prune.py --config=configs/digits_cnn.py --workdir=runs/digits_cnn
"""

from aimp_tf import PruningConfig
from experiments.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        dataset="digits",
        architecture="small_cnn",
        pruning=PruningConfig(target_sparsity=0.9, epochs=30, round_epochs=6),
    )
