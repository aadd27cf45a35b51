"""What the files in configs/ return. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses

from aimp_tf.config import PruningConfig, nearest

CHOICES = {
    "dataset": ("digits", "fashion_mnist"),
    "architecture": ("lenet_300_100", "lenet_5", "small_cnn"),
    "keras": ("keras", "tf_keras"),
}


@dataclasses.dataclass
class Experiment:
    """Trains a named architecture on named data, dense and pruned, from the same initial weights.

    The optimizer is SGD with momentum; its rate drops tenfold after half and again after three quarters of
    `pruning.epochs`.

    Attributes:
        dataset: "digits" or "fashion_mnist".
        architecture: "lenet_300_100", "lenet_5" or "small_cnn".
        pruning: The pruning run; the dense training takes its `epochs`. Its `seed` is that of the experiment.
        learning_rate: First learning rate, above 0.
        momentum: In [0, 1).
        batch_size: Examples a step.
        keras: Generation of Keras, "keras" (Keras 3) or "tf_keras".
        seed: Seeds the initial weights and the order of the examples.
    """

    dataset: str
    architecture: str
    pruning: PruningConfig
    learning_rate: float = 0.1
    momentum: float = 0.9
    batch_size: int = 64
    keras: str = "keras"
    seed: int = 0

    def validate(self) -> None:
        """Checks every field. Raises ValueError or TypeError."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.{nearest(value, choices)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1); got {self.momentum}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}.")
        self.pruning.validate()
