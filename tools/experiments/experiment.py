"""What the files in configs/ return. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses
import json
import math
from typing import Any

from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import check_whole, check_within, nearest
from experiments.datasets import IMAGE_SETS
from experiments.models import ARCHITECTURES

CHOICES = {
    "dataset": tuple(IMAGE_SETS),
    "architecture": tuple(ARCHITECTURES),
    "schedule": ("steps", "cosine", "linear"),
    "keras": ("keras", "tf_keras"),
}

_OPTIONAL = ("train_examples", "validation_examples", "teacher_epochs")


@dataclasses.dataclass
class Experiment:
    """Trains a named architecture on named data, dense and pruned, from the same initial weights.

    The optimizer is SGD with momentum.

    Attributes:
        dataset: "digits" or "fashion_mnist".
        architecture: A name in `experiments.models.ARCHITECTURES`, such as "lenet_300_100" or "resnet_20".
        pruning: The pruning run; the dense training takes its `epochs`. Its `seed` is that of the experiment.
        learning_rate: First learning rate, above 0.
        schedule: How the rate falls over `pruning.epochs`: "steps" is tenfold after half and again after three quarters
            of them; "cosine" and "linear" fall to zero, and so restart in each round that is squeezed (Zimmer et al.,
            ICLR 2023, section 3).
        momentum: In [0, 1).
        batch_size: Examples a step.
        keras: Generation of Keras, "keras" (Keras 3) or "tf_keras".
        seed: Seeds the initial weights and the order of the examples.
        steps_per_execution: Steps that one call of TensorFlow takes, as in `compile`; more are faster where steps are
            short.
        train_examples: How many training images to use, the first ones. None is all of them.
        validation_examples: How many of the training images after those take the place of the test images, so that
            settings can be chosen by images that are neither trained on nor reported. None leaves the test images.
        teacher_epochs: For how many epochs the dense network is trained from which the pruned one then learns, as
            `pruning.distillation` says; they count as epochs of the run. None has no teacher.
        validation_freq: Epochs of a training after each of which the test images are looked at, as in `fit`. The final
            model is judged by all of them in any case.
    """

    dataset: str
    architecture: str
    pruning: PruningConfig
    learning_rate: float = 0.1
    schedule: str = "steps"
    momentum: float = 0.9
    batch_size: int = 64
    keras: str = "keras"
    seed: int = 0
    steps_per_execution: int = 1
    train_examples: int | None = None
    validation_examples: int | None = None
    teacher_epochs: int | None = None
    validation_freq: int = 1

    def validate(self) -> None:
        """Checks every field. Raises ValueError or TypeError."""
        if not isinstance(self.pruning, PruningConfig):
            raise TypeError(f"pruning must be a PruningConfig; got {self.pruning!r}.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{nearest(value, choices)}")
        check_within("learning_rate", self.learning_rate, 0)
        check_within("momentum", self.momentum, 0, 1, "[)")
        for name in ("batch_size", "seed", "steps_per_execution", *_OPTIONAL, "validation_freq"):
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                check_whole(name, value, -math.inf if name == "seed" else 1)
        available = IMAGE_SETS[self.dataset].train_examples
        if self.train_examples is not None and self.train_examples > available:
            raise ValueError(
                f"train_examples must be at most {available}, all that {self.dataset} has; got {self.train_examples}."
            )
        if self.validation_examples is not None:
            left = available - (self.train_examples or available)
            if self.validation_examples > left:
                raise ValueError(
                    f"validation_examples={self.validation_examples} must be among the {left} training images after "
                    f"those that train_examples={self.train_examples} trains on; {self.dataset} has {available}."
                )
        self.pruning.validate()
        if self.pruning.epochs is None:
            raise ValueError(
                "An experiment compares with dense training of pruning.epochs; give these in place of total_epochs."
            )

    @property
    def counted_by(self) -> tuple[Any, ...]:
        """What the number of its prunable weights depends on."""
        pruning = self.pruning
        selected = tuple(pruning.include), tuple(pruning.exclude), pruning.granularity, pruning.budget
        return self.architecture, self.dataset, *selected

    @property
    def judged_by(self) -> str:
        """Which images tell the accuracy: "test" or "validation"."""
        return "test" if self.validation_examples is None else "validation"


def to_fields(experiment: Experiment) -> dict[str, Any]:
    """The fields of an experiment as they are stored as JSON, those of `pruning` with their version."""
    return {**dataclasses.asdict(experiment), "pruning": json.loads(experiment.pruning.to_json())}


def from_fields(fields: dict[str, Any]) -> Experiment:
    """The experiment of which `to_fields`, stored as JSON, gave `fields`; what they lack has its default.

    Raises:
        TypeError, ValueError: They are something else.
    """
    if not isinstance(fields.get("pruning"), dict):
        raise TypeError(f"pruning must hold the fields of a PruningConfig; got {fields.get('pruning')!r}.")
    return Experiment(**{**fields, "pruning": PruningConfig.from_json(json.dumps(fields["pruning"]))})
