"""Distillation: how much training goes by a teacher. Plain data: nothing here needs TensorFlow."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from aimp_tf.config.texts import check_within


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How much, and by what, a model that is pruned learns from its teacher, for `PruningConfig.distillation`.

    Trained on is `(1 - weight) * loss + weight * distillation`, where the loss is that of the targets. For classes, the
    distillation is `temperature**2 * KL(teacher, model)` of the probabilities, both softened: those that their logits,
    divided by the temperature, give. Whether a model gives logits is told by the cross-entropy of Keras that it was
    compiled with, or else by its last layer; a teacher of which neither tells is taken to give what the model gives.
    For other losses of Keras, it is that loss with what the teacher gives as targets.

    Attributes:
        weight: Of the teacher, in (0, 1].
        temperature: What logits are divided by, above 0. More shows more of what the teacher takes for likely beside
            the best class.
        features: Names of layers, of the model and of the teacher alike, whose outputs are to be alike as well: to the
            distillation is added the mean over them of `mean((model - teacher)**2) / mean(teacher**2)`. Their shapes
            must be the same; what the teacher gives is then asked for in every step.
        loss: In place of the above, and for several outputs, a function `(teacher_outputs, outputs) -> loss`, which is
            a tensor (examples,), or a scalar.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: One is out of its range.

    References:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2. Romero, Ballas,
        Kahou, Chassang, Gatta and Bengio, "FitNets: hints for thin deep nets", ICLR 2015, section 2.2, of features,
        which here are the same in number.
    """

    weight: float = 0.5
    temperature: float = 2.0
    features: tuple[str, ...] = ()
    loss: Callable[[Any, Any], Any] | str | None = None  # A text where it comes from JSON, and cannot be called.

    def __post_init__(self) -> None:
        for name, high, ends in (("weight", 1, "(]"), ("temperature", math.inf, "()")):
            check_within(f"{name} of a Distillation", getattr(self, name), 0, high, ends)
            object.__setattr__(self, name, float(getattr(self, name)))
        if isinstance(self.features, str) or not all(isinstance(name, str) for name in self.features):
            raise TypeError(f"features of a Distillation must be a tuple of names of layers; got {self.features!r}.")
        object.__setattr__(self, "features", tuple(self.features))
        if self.loss is not None and not callable(self.loss) and not isinstance(self.loss, str):
            raise TypeError(
                f"loss of a Distillation must be a function (teacher_outputs, outputs) -> loss; got {self.loss!r}."
            )

    @classmethod
    def of(cls, given: object) -> "Distillation":
        """What `PruningConfig.distillation` says, with the default filled in."""
        return given if isinstance(given, cls) else cls()
