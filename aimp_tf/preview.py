"""plan(): what a run is going to do, before it does it."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from aimp_tf.arguments import check_no_data, config_of, placed
from aimp_tf.compat.models import keras_generation
from aimp_tf.compat.variables import Values
from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import aligned
from aimp_tf.exporting.timing import with_clock
from aimp_tf.graph.groups import select_units
from aimp_tf.graph.prunable import other_weights
from aimp_tf.masking import Masks, check_plain, first_masks
from aimp_tf.selection.planning import Round, imp_epochs, make_plan, settled
from aimp_tf.training.rounds import percent_text, plan_text


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run is going to do. `print` shows it, and so does a notebook.

    Attributes:
        rounds: Every training, the final one as its last.
        weights: Number of prunable weights, or of whatever else the budget counts.
        config: What it follows from, with `epochs` and `round_epochs` where `total_epochs` were given.
        imp_epochs: Epochs that plain iterative magnitude pruning would train to the same sparsity.
    """

    rounds: tuple[Round, ...]
    weights: int
    config: PruningConfig
    imp_epochs: int

    @property
    def epochs(self) -> int:
        """Epochs of all trainings together; fewer where a stopping rule ends rounds."""
        return sum(round_.epochs for round_ in self.rounds)

    def table(self) -> list[list[str]]:
        """A header and a row a training, as texts."""
        counted = self.config.counted
        rows = [["round", f"{counted}s kept", "sparsity" if counted == "weight" else "removed", "epochs"]]
        for round_ in self.rounds:
            name = "last" if round_ is self.rounds[-1] else str(round_.index + 1)
            sparsity = percent_text(1 - round_.kept / self.weights, 1)
            rows.append([name, f"{round_.kept:,}", sparsity, str(round_.epochs)])
        return rows

    def __str__(self) -> str:
        text = plan_text(self.rounds, self.weights, self.config.stop_mask_distance is not None, self.config.counted)
        imp = f"plain iterative magnitude pruning trains for {self.imp_epochs:,}."
        return "\n".join([f"{text}; {imp}" if len(self.rounds) > 1 else f"{text}.", "", *aligned(self.table())])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@placed("target_sparsity=0.9, epochs=30")
def plan(model: Any, config: PruningConfig | None = None, *, masks: Masks = None, **fields: Any) -> RunPlan:
    """What `prune` is going to do with a model: the trainings, how many weights each has, and how long it is.

    Nothing is trained or changed, and the model need not be compiled.

    Args:
        model: A built Keras 3 or tf_keras model.
        config: As in `prune`.
        masks: As in `prune`.
        **fields: Fields of `PruningConfig`, which count rather than those of `config`.

    Raises:
        TypeError, ValueError: As `prune` for the model and the settings.

    Example:
        ```python
        print(aimp_tf.plan(model, target_sparsity=0.9, epochs=30))
        ```
    """
    keras_generation(model)
    check_no_data("plan", model, config, fields)
    config = config_of(config, fields)
    check_plain(model)
    selection = select_units(
        config.granularity,
        model,
        config.include,
        config.exclude,
        budget=config.budget,
        channel_multiple=config.channel_multiple,
    )
    units = with_clock(selection.units, config.latency, model, selection.variables)
    weights = Values(selection.variables)
    sizes = {path: weight.size for path, weight in weights.items()}
    count = units.total(sizes)
    first = pruned = None
    if masks is not None:
        pruned = first_masks(masks, weights, [*selection.left_dense, *other_weights(model)], units)
        first = units.spent(pruned)
    config = settled(config, count, first)
    rounds = make_plan(config, count, first)
    if config.method != "dense":
        units.check_reachable(pruned, rounds[-1].kept, units.least(config, sizes))
    return RunPlan(rounds, count, config, imp_epochs(config, count, first))
