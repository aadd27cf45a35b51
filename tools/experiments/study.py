"""A grid of experiments: arms x sparsities x seeds. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses
import json
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import check_within, is_number, list_differences, nearest
from aimp_tf.selection.planning import make_plan
from experiments.experiment import Experiment, from_fields, to_fields

# What a cell sets by itself, and how it is said.
_SET_BY_CELLS = {
    "target_sparsity": "the study's sparsities",
    "seed": "the study's seeds",
    "pruning": "the arm's pruning",
}


@dataclasses.dataclass
class Arm:
    """One of the ways to train and prune that a study compares.

    Attributes:
        pruning: Fields of `PruningConfig` -> values that differ from those of the study's experiment.
        experiment: The same for the other fields of `Experiment`.
        epochs_of: Name of another arm. This one spends as many epochs in all as that one does, at most, at the same
            sparsity: its own rounds stay as they are, and `epochs` is what is left.
        epochs_factor: How many times as many epochs as `epochs_of`, which are rounded; more than 0.
    """

    pruning: dict[str, Any] = dataclasses.field(default_factory=dict)
    experiment: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs_of: str | None = None
    epochs_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        arm: Name of its arm.
        sparsity: Target sparsity; 0.0 where the arm is dense at every sparsity alike.
        seed: Seeds the initial weights and the order of the examples.
    """

    arm: str
    sparsity: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, sparsity {self.sparsity}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Where it lies below the study's workdir."""
        return f"{self.arm}/sparsity_{self.sparsity}/seed_{self.seed}"


@dataclasses.dataclass
class Study:
    """Compares ways to prune at several sparsities, each from several seeds.

    Attributes:
        experiment: What all arms share. Its target sparsity and seeds give way to those of the cells.
        arms: Name -> what differs. A name is a Python identifier, for it names a folder and can be part of a flag.
        sparsities: Target sparsities, each in (0, 1).
        seeds: Seeds, each of them once.
    """

    experiment: Experiment
    arms: dict[str, Arm]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]

    def validate(self) -> None:
        """Checks every field of every arm. Raises ValueError or TypeError."""
        if not isinstance(self.experiment, Experiment):
            raise TypeError(f"experiment must be an Experiment; got {self.experiment!r}.")
        self.experiment.validate()
        if not isinstance(self.arms, dict):
            raise TypeError(f"arms must map names to Arm(...); got {self.arms!r}.")
        if not self.arms:
            raise ValueError('A study needs arms, such as {"aimp": Arm()}; got none.')
        for name, arm in self.arms.items():
            if not isinstance(arm, Arm):
                raise TypeError(f"arms must map names to Arm(...); arm {name!r} is {arm!r}.")
            if not str(name).isidentifier():
                raise ValueError(f"An arm's name must be letters, digits and underscores; got {name!r}.")
        _check_numbers("sparsities", self.sparsities, numbers.Real)
        _check_numbers("seeds", self.seeds, numbers.Integral)
        for name in self.arms:
            try:
                self._check_arm(name)
            except (ValueError, TypeError) as error:
                raise type(error)(f"Arm {name!r}: {error}") from error

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that all arms have results early. A dense arm of fixed length has one a seed."""
        return [
            Cell(name, sparsity, seed)
            for seed in self.seeds
            for name in self.arms
            for sparsity in ((0.0,) if self.is_dense(name) else self.sparsities)
        ]

    def is_dense(self, name: str) -> bool:
        """Whether an arm trains the same dense model at every sparsity."""
        arm = self.arms[name]
        return arm.epochs_of is None and self.merged(Cell(name, 0.0, 0)).pruning.method == "dense"

    def resolve(self, cell: Cell, weight_count: Callable[[Experiment], int]) -> Experiment:
        """The experiment that a cell runs, with every setting filled in.

        Args:
            cell: A cell of a valid study.
            weight_count: Gives the number of prunable weights of an experiment, on which the number of rounds depends.

        Raises:
            ValueError: The arm's own rounds take more epochs than `epochs_of` gives it, or as `make_plan`.
        """
        merged = self.merged(cell)
        other = self.arms[cell.arm].epochs_of
        if other is None:
            return merged
        epochs_of_other = planned_epochs(self.resolve(dataclasses.replace(cell, arm=other), weight_count), weight_count)
        budget = round(self.arms[cell.arm].epochs_factor * epochs_of_other)
        rounds = make_plan(merged.pruning, weight_count(merged))[:-1]
        epochs = budget - sum(round_.epochs for round_ in rounds) - (merged.teacher_epochs or 0)
        try:
            resolved = dataclasses.replace(merged, pruning=merged.pruning.replace(epochs=epochs))
            resolved.validate()
        except ValueError as error:
            raise ValueError(
                f"Arm {cell.arm!r}: epochs_of={other!r} gives it {budget} epochs at sparsity {cell.sparsity}, which "
                f"leaves {epochs} for its last training: {error}"
            ) from error
        return resolved

    def merged(self, cell: Cell) -> Experiment:
        """What `resolve` gives, but for `epochs_of`."""
        arm = self.arms[cell.arm]
        target = {"target_sparsity": cell.sparsity} if cell.sparsity else {}
        pruning = self.experiment.pruning.replace(**arm.pruning, **target, seed=cell.seed)
        if pruning.has_rounds:
            # The default follows from `epochs`, which epochs_of changes.
            pruning = pruning.replace(round_epochs=pruning.resolved_round_epochs)
        return dataclasses.replace(self.experiment, **arm.experiment, pruning=pruning, seed=cell.seed)

    def _check_arm(self, name: str) -> None:
        arm = self.arms[name]
        for kind, fields in ((PruningConfig, arm.pruning), (Experiment, arm.experiment)):
            known = [field.name for field in dataclasses.fields(kind)]
            for field in fields:
                if field in _SET_BY_CELLS:
                    raise ValueError(f"{field} is set by {_SET_BY_CELLS[field]}; leave it out.")
                if field not in known:
                    raise TypeError(f"{kind.__name__} has no field {field!r}.{nearest(field, known)}")
        check_within("epochs_factor", arm.epochs_factor, 0)
        if arm.epochs_of is None and arm.epochs_factor != 1:
            raise ValueError("epochs_factor is a multiple of the epochs of another arm, which epochs_of names.")
        if arm.epochs_of is not None and "epochs" in arm.pruning:
            raise ValueError("epochs_of sets the epochs; leave out one of them.")
        self._check_epochs_of(name)
        for sparsity in self.sparsities:
            merged = self.merged(Cell(name, sparsity, self.seeds[0]))
            merged.validate()
            try:
                json.dumps(dataclasses.asdict(merged))
            except TypeError as error:
                raise TypeError(
                    f"a study stores its settings as plain data, such as names and numbers: {error}."
                ) from error

    def _check_epochs_of(self, name: str) -> None:
        path = [name]
        while (other := self.arms[path[-1]].epochs_of) is not None:
            if other not in self.arms:
                raise ValueError(
                    f"epochs_of must name another arm ({', '.join(self.arms)}); got {other!r}."
                    f"{nearest(other, self.arms)}"
                )
            if other in path:
                raise ValueError(f"epochs_of goes round in a circle: {' -> '.join([*path, other])}.")
            path.append(other)


@dataclasses.dataclass(frozen=True)
class CellResult(Cell):
    """What a cell leaves in its result.json.

    Attributes:
        accuracy: Fraction of the test images that the final model gets right.
        measured_sparsity: Fraction of the prunable weights that are exactly zero.
        epochs: Epochs trained in all.
        seconds: Wall time of the training, without that of a teacher.
        experiment: The resolved `Experiment` as plain data, with the defaults of an earlier version where its run was
            begun by one.
    """

    accuracy: float
    measured_sparsity: float
    epochs: int
    seconds: float
    experiment: dict[str, Any]


def planned_epochs(experiment: Experiment, weight_count: Callable[[Experiment], int]) -> int:
    """Epochs of the rounds, the final training and that of the teacher together, at most."""
    rounds = make_plan(experiment.pruning, weight_count(experiment))
    return sum(round_.epochs for round_ in rounds) + (experiment.teacher_epochs or 0)


def differences(stored: dict[str, Any], experiment: Experiment) -> list[str]:
    """What stored fields and an experiment do not have in common, as "pruning.rate: 0.2 there, 0.3 here"."""
    try:
        there = from_fields(stored)
    except (TypeError, ValueError) as error:
        return [str(error)]
    # As they come back from JSON, which has no tuples.
    here = from_fields(to_fields(experiment))
    return list_differences(dataclasses.asdict(there), dataclasses.asdict(here))


def _check_numbers(name: str, values: Iterable[Any], kind: type) -> None:
    values = list(values)
    if not values:
        raise ValueError(f"A study needs {name}; got none.")
    for value in values:
        if not is_number(value, kind):
            raise TypeError(f"{name} must be {'whole ' if kind is numbers.Integral else ''}numbers; got {value!r}.")
        if values.count(value) > 1:
            raise ValueError(f"{name} must differ from one another; {value!r} comes {values.count(value)} times.")
