"""The best use of the epochs: AIMP, gradual pruning as long as it, and plain IMP, from five seeds.

    python tools/study.py --config=configs/study_epochs.py:resnet_8 --data_dir=runs/data --workdir=runs/epochs_resnet_8

After the colon: lenet_300_100, lenet_5, resnet_8 or row_lstm. With _choices behind it, such as resnet_8_choices, what
`shrink` and `round_schedule` are worth, from two seeds, by training images that are not trained on. Without a network,
tools/prepare_fashion_mnist.py fills --data_dir first.
"""

import dataclasses

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study

# The tables of docs/results.md have the same recipes.
_MLP = Experiment(
    dataset="fashion_mnist",
    architecture="lenet_300_100",
    pruning=PruningConfig(target_sparsity=0.9, epochs=15),
    batch_size=128,
    learning_rate=0.05,
    steps_per_execution=67,
    validation_freq=15,
)
_RESNET = Experiment(
    dataset="fashion_mnist",
    architecture="resnet_8",
    pruning=PruningConfig(target_sparsity=0.9, rate=0.36, epochs=10),
    batch_size=64,
    learning_rate=0.1,
    train_examples=5000,
    validation_freq=10,
)
_NETWORKS: dict[str, tuple[Experiment, tuple[float, ...]]] = {
    "lenet_300_100": (_MLP, (0.9, 0.977)),
    "lenet_5": (dataclasses.replace(_MLP, architecture="lenet_5"), (0.95,)),
    "resnet_8": (_RESNET, (0.9, 0.98)),
    "row_lstm": (dataclasses.replace(_RESNET, architecture="row_lstm", learning_rate=0.4), (0.9,)),
}

_SQUEEZED = {"round_schedule": "compress", "shrink": 1.0}
"""The defaults of earlier versions."""


def get_config(network: str = "lenet_300_100") -> Study:
    name = network.removesuffix("_choices")
    if name not in _NETWORKS:
        raise ValueError(f"After the colon comes {', '.join(_NETWORKS)}, or that and _choices; got {network!r}.")
    experiment, sparsities = _NETWORKS[name]
    full, kept = {"round_epochs": experiment.pruning.epochs}, {"shrink": 1.0}
    arms = {"aimp": Arm(), "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp")}
    if not network.endswith("_choices"):
        arms |= {
            "imp": Arm(pruning={**full, **kept}),
            "imp_shrink": Arm(pruning=full),
            "squeezed": Arm(pruning=_SQUEEZED),
            "kept": Arm(pruning=kept),
        }
        return Study(experiment=experiment, arms=arms, sparsities=sparsities, seeds=(0, 1, 2, 3, 4))
    arms |= {
        "squeezed": Arm(pruning=_SQUEEZED),
        "kept": Arm(pruning=kept),
        "shrink_0_85": Arm(pruning={"shrink": 0.85}),
        "shrink_0_5": Arm(pruning={"shrink": 0.5}),
    }
    judged = {"train_examples": experiment.train_examples or 50_000, "validation_examples": 10_000}
    return Study(experiment=dataclasses.replace(experiment, **judged), arms=arms, sparsities=sparsities, seeds=(0, 1))
