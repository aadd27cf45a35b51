"""Accelerated Iterative Magnitude Pruning for Keras models.

`prune` does the whole job; `wrap`, `GlobalMagnitudePruning` and `strip` are its parts, for your own training loop.
"""

import importlib
from typing import TYPE_CHECKING, Any

from aimp_tf.config import PruningConfig
from aimp_tf.config.distillation import Distillation
from aimp_tf.config.latency import Latency
from aimp_tf.config.texts import nearest

if TYPE_CHECKING:
    from aimp_tf import criteria, rules
    from aimp_tf.exporting import export
    from aimp_tf.exporting.coded import load_coded
    from aimp_tf.exporting.compaction import compact
    from aimp_tf.exporting.sparse import sparse_inference
    from aimp_tf.factorization import factorize, merge_factors
    from aimp_tf.fine_tuning import fine_tune
    from aimp_tf.graph.rule_table import register_rule
    from aimp_tf.masking import sparsity, strip, wrap
    from aimp_tf.post_training import one_shot
    from aimp_tf.preview import RunPlan, plan
    from aimp_tf.pruning import prune
    from aimp_tf.reports.groups import Groups, groups
    from aimp_tf.reports.result import PruningResult
    from aimp_tf.selection.criteria import Criterion
    from aimp_tf.sharing import share_weights
    from aimp_tf.training import projections, regularizers
    from aimp_tf.training.callback import GlobalMagnitudePruning
    from aimp_tf.training.input_pipeline import array_dataset
    from aimp_tf.training.rounds import RoundResult

__all__ = [
    "Criterion",
    "Distillation",
    "GlobalMagnitudePruning",
    "Groups",
    "Latency",
    "PruningConfig",
    "PruningResult",
    "RoundResult",
    "RunPlan",
    "array_dataset",
    "compact",
    "criteria",
    "export",
    "factorize",
    "fine_tune",
    "groups",
    "load_coded",
    "merge_factors",
    "one_shot",
    "plan",
    "projections",
    "prune",
    "register_rule",
    "regularizers",
    "rules",
    "share_weights",
    "sparse_inference",
    "sparsity",
    "strip",
    "wrap",
]

_HOMES = {
    "Criterion": "selection.criterion",
    "GlobalMagnitudePruning": "training.callback",
    "Groups": "reports.groups",
    "PruningResult": "reports.result",
    "RoundResult": "training.rounds",
    "RunPlan": "preview",
    "array_dataset": "training.input_pipeline",
    "compact": "exporting.compaction",
    "export": "exporting",
    "factorize": "factorization",
    "fine_tune": "fine_tuning",
    "groups": "reports.groups",
    "load_coded": "exporting.coded",
    "merge_factors": "factorization",
    "one_shot": "post_training",
    "plan": "preview",
    "prune": "pruning",
    "register_rule": "graph.rule_table",
    "share_weights": "sharing",
    "sparse_inference": "exporting.sparse",
    "sparsity": "masking",
    "strip": "masking",
    "wrap": "masking",
}


_MODULES = {
    "criteria": "criteria",
    "projections": "training.projections",
    "regularizers": "training.regularizers",
    "rules": "rules",
}
"""Public names that are modules -> where they are."""

_WRITE_INSTEAD = {
    "prune_low_magnitude": "aimp_tf.prune(model, x, y, target_sparsity=0.9, epochs=30), or aimp_tf.wrap(model)",
    "strip_pruning": "aimp_tf.strip(model)",
    "UpdatePruningStep": "aimp_tf.GlobalMagnitudePruning(target_sparsity=0.9, epochs=30) as a callback",
    **dict.fromkeys(("PolynomialDecay", "ConstantSparsity"), "method='gradual', a setting of aimp_tf.prune"),
    **dict.fromkeys(("load", "load_model"), "keras.models.load_model(path): a pruned model is a plain one"),
    "save": "result.model.save('pruned.keras')",
}
"""What other tools call something -> what it is here."""


def __getattr__(name: str) -> Any:
    """Imports what needs TensorFlow only when it is asked for, so that configs and help texts come at once."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _HOMES:
        others = f"{nearest(name, __all__)} It has {', '.join(__all__)}."
        write = f" Write {_WRITE_INSTEAD[name]}." if name in _WRITE_INSTEAD else others
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{write}", name=name)
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
