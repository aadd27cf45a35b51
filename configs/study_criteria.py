"""What units are ranked by, in the same rounds: every criterion, three seeds.

    python tools/study.py --config=configs/study_criteria.py:small_cnn --data_dir=runs/data --workdir=runs/criteria

After the colon: small_cnn or resnet_20, whole channels down to half of the multiply-adds on a twelfth of Fashion-MNIST,
or lenet_300_100, single weights down to 2.3%. With _repair behind it, a few of them with and without repair, channels
down to a half and a quarter. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first. About half an
hour, five hours and two hours on two cores; --arms takes some of it. tools/benchmark.py channel_peers has the small
network trained from scratch, and tools/benchmark.py criteria what is left without any training.
"""

import dataclasses

from aimp_tf import PruningConfig
from aimp_tf.config.checks import CRITERIA_OF_CHANNELS
from experiments.experiment import Experiment
from experiments.study import Arm, Study

_CHANNELS = Experiment(
    dataset="fashion_mnist",
    architecture="resnet_20",
    pruning=PruningConfig(target_sparsity=0.5, epochs=10, granularity="channel", budget="flops"),
    batch_size=64,
    learning_rate=0.1,
    train_examples=5000,
    validation_freq=10,
)
_WEIGHTS = Experiment(
    dataset="fashion_mnist",
    architecture="lenet_300_100",
    pruning=PruningConfig(target_sparsity=0.977, epochs=15),
    batch_size=128,
    learning_rate=0.05,
    steps_per_execution=67,
    validation_freq=15,
)
_NETWORKS = {
    "small_cnn": dataclasses.replace(_CHANNELS, architecture="small_cnn", learning_rate=0.05),
    "resnet_20": _CHANNELS,
    "lenet_300_100": _WEIGHTS,
}
_OF_WEIGHTS = ("magnitude", "lamp", "random", "taylor", "fisher", "gradient", "reconstruction")
_REPAIRED = {
    "small_cnn": ("magnitude", "fisher", "reconstruction", "random"),
    "resnet_20": ("magnitude", "fisher", "utility", "votes", "random"),
    "lenet_300_100": ("magnitude", "fisher", "reconstruction", "random"),
}


def get_config(network: str = "small_cnn") -> Study:
    name = network.removesuffix("_repair")
    if name not in _NETWORKS:
        raise ValueError(f"After the colon comes {', '.join(_NETWORKS)}, or that and _repair; got {network!r}.")
    experiment = _NETWORKS[name]
    channels = experiment.pruning.granularity == "channel"
    criteria = CRITERIA_OF_CHANNELS if channels else _OF_WEIGHTS
    if name == "small_cnn":
        criteria = tuple(criterion for criterion in criteria if criterion != "scale")  # It has layers without one.
    sparsities = (experiment.pruning.target_sparsity or 0.5,)
    arms = {criterion: Arm(pruning={"criterion": criterion}) for criterion in criteria}
    if network.endswith("_repair"):
        sparsities = (0.5, 0.75) if channels else sparsities
        arms = {criterion: arms[criterion] for criterion in _REPAIRED[name]}
        for criterion in _REPAIRED[name]:
            arms[f"{criterion}_repaired"] = Arm(pruning={"criterion": criterion, "repair": True})
    return Study(experiment=experiment, arms=arms, sparsities=sparsities, seeds=(0, 1, 2))
