"""fine_tune(): trains a pruned model on, and keeps its zeros."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from aimp_tf.arguments import check_names, fit_arguments, placed, split_off, training_data
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import check_model
from aimp_tf.config.texts import check_whole
from aimp_tf.masking import Masks, mask_model
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.int8_weights import Int8Weights
from aimp_tf.training.other_callbacks import as_callbacks
from aimp_tf.training.shared_weights import SharedWeights

logger = logging.getLogger(__name__)

_WEIGHTS: dict[str, type[SharedWeights] | type[Int8Weights]] = {"shared": SharedWeights, "int8": Int8Weights}
"""What is trained of kernels -> what sees to it."""


@placed("epochs=3")
def fine_tune(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    epochs: int,
    sample_weight: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    callbacks: Any = (),
    masks: Masks = "zeros",
    weights: str | None = None,
    verbose: str | int = "auto",
    **options: Any,
) -> Any:
    """Trains a pruned model on: every prunable weight that is zero stays exactly zero, the others train.

    `fit` alone fills the zeros again in its first step. What is left of the optimizer's state and of a learning-rate
    schedule goes on as in `fit`; compile the model anew for another rate.

    Args:
        model: A compiled Keras 3 or tf_keras model with zeros, such as `PruningResult.model` or one that was loaded
            from a file. It is trained in place.
        x: As in `prune`, like y, sample_weight, validation_split and validation_data.
        y: The targets.
        epochs: How many epochs to train, at least 1.
        sample_weight: The weights of the examples.
        validation_split: Which fraction of arrays is for validation.
        validation_data: What is evaluated after each epoch.
        callbacks: Keras callbacks, or one, as in `fit`.
        masks: What stays zero, as in `wrap`: "zeros", or a dict such as `PruningResult.masks`.
        weights: What is trained of the kernels. None is each of their weights; "shared" the values that weights share,
            as `share_weights` makes them: the gradients of those that have the same value are summed up, and they go on
            having the same. "int8" is for a model that is to be exported as "tflite_int8": each step sees the kernels
            that it trains of Dense, EinsumDense and convolution layers rounded as int8 has them, with a scale for each
            output, and what these layers read rounded to 256 values over its range in the batch. In the end the kernels
            are so. What is evaluated after an epoch is the model with the weights themselves.
        verbose: As in `fit`.
        **options: The other arguments of `fit`, such as batch_size and class_weight.

    Returns:
        `model`. What became of each epoch is in a callback such as `keras.callbacks.History()`.

    Raises:
        TypeError, ValueError: As `prune` and `wrap`, `epochs` is not a whole number above 0, `weights` is none of the
            above, there is nothing that "shared" or "int8" could train, or "int8" is asked of a model on several
            devices. Raised before any training.
        RuntimeError: Something, such as a callback that sets weights, gave pruned weights other values. They are zero
            again. Or a `train_step` of the model's own changes weights past its optimizer, though `weights` is given.

    Example:
        ```python
        model = keras.models.load_model("pruned.keras")
        aimp_tf.fine_tune(model, x, y, epochs=3)
        ```
    """
    generation = check_model(model)
    check_whole("epochs", epochs, 1)
    if weights not in [None, *_WEIGHTS]:
        raise ValueError(f"weights must be None, {' or '.join(map(repr, _WEIGHTS))}; got {weights!r}.")
    check_names("fine_tune", options, fit_arguments(model))
    data = training_data("fine_tune", model, x, y, sample_weight)
    if validation_data is None:
        data, validation_data = split_off(data, validation_split)
    cluster = Cluster(model.distribute_strategy)
    if weights == "int8":
        cluster.check_one_device("weights='int8'")
    callbacks = as_callbacks(callbacks, generation)
    fitting = Fitting(data, validation_data, callbacks, options, verbose, None, generation, cluster, order_goes_on=True)
    fitting.make_ready(model)
    masked = mask_model(model, masks=masks)
    try:
        if masked.optimizer.rate == 0:
            logger.warning(
                "The learning rate is 0, as where a schedule has come to its end: nothing will train. Compile the "
                "model with another rate first."
            )
        with contextlib.nullcontext() if weights is None else _WEIGHTS[weights](masked).held():
            fitting.fit(masked.model, callbacks, epochs=epochs)
        masked.check_sparse()
    finally:
        masked.strip()
    return model
