"""Attention heads and feed-forward units down to half of the multiply-adds, on two small transformers.

    python tools/study.py --config=configs/study_transformers.py:small_vit --data_dir=runs/data --workdir=runs/vit

After the colon: tiny_bert, over scikit-learn's digits as texts of 64 tokens, or small_vit, over a twelfth of
Fashion-MNIST in patches; three seeds. All arms but dense train as many epochs as aimp. About half an hour each on two
cores. Without a network, tools/prepare_fashion_mnist.py fills --data_dir first.
"""

import dataclasses

from aimp_tf import PruningConfig
from experiments.experiment import Experiment
from experiments.study import Arm, Study

_ON_IMAGES = Experiment(
    dataset="fashion_mnist",
    architecture="small_vit",
    pruning=PruningConfig(target_sparsity=0.5, epochs=30, granularity=("channel", "head"), budget="flops"),
    batch_size=64,
    learning_rate=0.02,
    train_examples=5000,
    validation_freq=30,
)
_NETWORKS = {
    "small_vit": _ON_IMAGES,
    "tiny_bert": dataclasses.replace(_ON_IMAGES, dataset="digits", architecture="tiny_bert", train_examples=None),
}


def get_config(network: str = "small_vit") -> Study:
    if network not in _NETWORKS:
        raise ValueError(f"After the colon comes {', '.join(_NETWORKS)}; got {network!r}.")
    return Study(
        experiment=_NETWORKS[network],
        arms={
            "dense": Arm(pruning={"method": "dense"}),
            "aimp": Arm(),
            "taylor": Arm(pruning={"criterion": "taylor"}),
            "gradual": Arm(pruning={"method": "gradual"}, epochs_of="aimp"),
        },
        sparsities=(0.5,),
        seeds=(0, 1, 2),
    )
