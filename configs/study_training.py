"""What happens while it trains, in the same rounds: soft pruning, fading, regrowing, penalties, projections, a teacher.

    python tools/study.py --config=configs/study_training.py:resnet_20 --data_dir=runs/data --workdir=runs/training

After the colon: resnet_20, whole channels down to half of the multiply-adds, or lenet_300_100, single weights down to
2.3%; both on a twelfth of Fashion-MNIST, three seeds. All arms train as many epochs as aimp, but dense and
dense_teacher, as long as the last training and three times as long, and teacher, which has the latter beside that;
teacher_within trains its teacher within these epochs.
About six hours and one hour on two cores; --arms takes some of it. Without a network, tools/prepare_fashion_mnist.py
fills --data_dir first.
"""

import dataclasses

from aimp_tf import PruningConfig
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
_NETWORKS = {
    "resnet_20": _CHANNELS,
    "lenet_300_100": dataclasses.replace(
        _CHANNELS,
        architecture="lenet_300_100",
        pruning=PruningConfig(target_sparsity=0.977, epochs=15),
        learning_rate=0.05,
        validation_freq=15,
    ),
}


def get_config(network: str = "resnet_20") -> Study:
    if network not in _NETWORKS:
        raise ValueError(f"After the colon comes {', '.join(_NETWORKS)}; got {network!r}.")
    experiment = _NETWORKS[network]
    epochs = experiment.pruning.epochs
    assert epochs is not None
    channels = experiment.pruning.granularity == "channel"
    arms = {
        "dense": Arm(pruning={"method": "dense"}),
        "aimp": Arm(),
        "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
        "soft": Arm(pruning={"method": "soft"}, epochs_of="aimp"),
        "fade": Arm(pruning={"fade_epochs": 1}),
        "group_lasso": Arm(pruning={"regularizer": "group_lasso"}),
        "hierarchical": Arm(pruning={"regularizer": "hierarchical"}),
        "norm_loss": Arm(pruning={"regularizer": "norm_loss", "criterion": "taylor"}),
        "taylor": Arm(pruning={"criterion": "taylor"}),
        **{name: Arm(pruning={"projection": name}) for name in ("l1", "l21", "l11")},
        "teacher": Arm(experiment={"teacher_epochs": 3 * epochs}),
        "teacher_within": Arm(experiment={"teacher_epochs": epochs // 2}, epochs_of="aimp"),
        "dense_teacher": Arm(pruning={"method": "dense", "epochs": 3 * epochs}),
    }
    if channels:
        arms["scale"] = Arm(pruning={"criterion": "scale"})
        arms["scale_l1"] = Arm(pruning={"criterion": "scale", "regularizer": "scale_l1"})
    else:
        arms["regrow"] = Arm(pruning={"regrow": 0.1})
    return Study(
        experiment=experiment, arms=arms, sparsities=(experiment.pruning.target_sparsity or 0.5,), seeds=(0, 1, 2)
    )
