"""prune(): the loop over `fit`; the only module that knows all the others."""

from __future__ import annotations

import importlib
import inspect
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf import input_pipeline
from aimp_tf.callback import GlobalMagnitudePruning
from aimp_tf.config import PruningConfig, nearest
from aimp_tf.masked_model import check_model, fit_with_tfmot, is_built, mask_model, select_prunable, sparsity
from aimp_tf.plan import imp_epochs
from aimp_tf.ranking import check_finite
from aimp_tf.result import PruningResult, RoundResult, plain_logs
from aimp_tf.run_directory import RunDirectory

_OWN_OPTIONS = {
    "x": "give it as train_data",
    "y": "give it as train_data=(x, y)",
    "sample_weight": "give it as train_data=(x, y, sample_weight)",
    "validation_data": "give it to prune",
    "validation_split": "split the arrays and give validation_data to prune",
    "callbacks": "give them to prune",
    "verbose": "give it to prune",
    "epochs": "set epochs and round_epochs in the config",
    "initial_epoch": "each round starts at its first epoch",
}


def prune(
    model: Any,
    train_data: Any,
    config: PruningConfig | None = None,
    *,
    validation_data: Any = None,
    callbacks: Sequence[Any] = (),
    workdir: str | os.PathLike[str] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    verbose: str | int = "auto",
    **overrides: Any,
) -> PruningResult:
    """Prunes a Keras model with Accelerated Iterative Magnitude Pruning.

    Trains the model in short rounds, each time removing the smallest surviving weights of the whole network and
    rewinding, then once in full. In all `N * round_epochs + epochs` epochs, where plain iterative magnitude pruning
    takes `(N + 1) * epochs`. The model is trained and pruned in place.

    Args:
        model: A compiled Keras 3 or tf_keras model, built or buildable from the data. A model made under a
            tf.distribute strategy stays under it.
        train_data: What `model.fit` takes and can read more than once: a tf.data.Dataset of batches, a tuple (x, y) or
            (x, y, sample_weight) of arrays, a PyDataset or Sequence.
        config: What to do. None makes one of `overrides`.
        validation_data: As `train_data`; evaluated after each epoch.
        callbacks: Keras callbacks, handed to every `fit`. They see one `fit` a round; how those of Keras start each
            round afresh, and a LearningRateScheduler follows it, says `GlobalMagnitudePruning.among`.
        workdir: A folder, new or empty, that gets the config, the metrics of every epoch, the masks of every round and
            the pruned SavedModel.
        fit_options: Further arguments of `fit`: batch_size (arrays only; default 32), shuffle, class_weight,
            steps_per_epoch, validation_batch_size, validation_steps, validation_freq.
        verbose: As in `fit`.
        **overrides: Fields of `PruningConfig` that replace those of `config`.

    Returns:
        The pruned model, its masks and the story of every round.

    Raises:
        TypeError: `model` is not a Keras model, the data cannot be read again for each round, or a name is unknown.
        ValueError: A setting is out of range, the model is not compiled or has nothing to prune, the optimizer averages
            weights, the data does not fit the model, or `workdir` is not empty. Raised before any training.
        RuntimeError: The loss or the weights became NaN or infinite, or something undoes the pruning.

    Example:
        ```python
        result = aimp_tf.prune(model, dataset, target_sparsity=0.9, epochs=30, round_epochs=6)
        print(result.summary())
        result.model.save("pruned.keras")
        ```

    References:
        Zullich, Medvet, Pellegrino and Ansuini, "Speeding-up pruning for Artificial Neural Networks: Introducing
        Accelerated Iterative Magnitude Pruning", ICPR 2020.
    """
    config = config.replace(**overrides) if config is not None else PruningConfig.from_fields(overrides)
    config.validate()
    floatx = importlib.import_module(check_model(model)).backend.floatx()
    options = dict(fit_options or {})
    _check_fit_options(model, options)
    train, validation, options = _prepare_data(train_data, validation_data, options, config.seed, floatx)
    directory = RunDirectory(workdir, config) if workdir is not None else None
    _build(model, train)

    if config.method == "tfmot":
        return _prune_with_tfmot(model, train, config, validation, callbacks, directory, options, verbose)
    masked = mask_model(model, config.include, config.exclude)
    try:
        if validation is not None:
            _check_validation_data(masked.model, validation)
        pruning = GlobalMagnitudePruning(config)
        pruning.begin(masked)
        while not pruning.finished:
            try:
                masked.model.fit(
                    train,
                    epochs=pruning.next_epochs,
                    validation_data=validation,
                    callbacks=pruning.among(callbacks),
                    verbose=verbose,
                    **options,
                )
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                if masked.optimizer.steps > 0 or pruning.rounds:
                    raise
                raise ValueError(
                    f"fit failed before its first step, and nothing was trained. train_data gives {_spec(train)}; the "
                    f"model {model.name!r} takes {_inputs(model)}. The error was: {error}"
                ) from error
            if directory is not None:
                directory.save_round(pruning.rounds[-1], pruning.epoch_logs, masked.masks(), final=pruning.finished)
        masks = masked.masks()
    finally:
        pruned = masked.strip()
    if directory is not None:
        directory.save_model(pruned)
    return PruningResult(
        model=pruned,
        masks=masks,
        rounds=pruning.rounds,
        # On the pruned variables alone: `include` and `exclude` leave others out.
        sparsity=sparsity(pruned, config.include, config.exclude),
        imp_epochs=imp_epochs(config, masked.weight_count),
    )


def _prune_with_tfmot(
    model: Any,
    train: Any,
    config: PruningConfig,
    validation: Any,
    callbacks: Sequence[Any],
    directory: RunDirectory | None,
    options: Mapping[str, Any],
    verbose: str | int,
) -> PruningResult:
    """The baseline `method="tfmot"`: one fit, in which tfmot's own wrappers and callback prune."""
    started_at = time.monotonic()
    epoch_logs: list[dict[str, Any]] = []
    if validation is not None:
        _check_validation_data(model, validation)
    fit_with_tfmot(
        model,
        lambda wrapped, own_callbacks: wrapped.fit(
            train,
            epochs=config.epochs,
            validation_data=validation,
            callbacks=[*own_callbacks, *callbacks],
            verbose=verbose,
            **options,
        ),
        lambda epoch, logs: epoch_logs.append(plain_logs(logs)),
        target_sparsity=config.target_sparsity,
        ramp_steps=max(1, round(config.ramp * config.epochs * _steps_per_epoch(train, options))),
        include=tuple(config.include),
        exclude=tuple(config.exclude),
    )
    weights = select_prunable(model, config.include, config.exclude)
    masks = {path: weight != 0 for path, weight in weights.items()}
    check_finite(weights, masks)
    result = RoundResult.of(0, epoch_logs, masks, time.monotonic() - started_at)
    if directory is not None:
        directory.save_round(result, epoch_logs, masks, final=True)
        directory.save_model(model)
    weight_count = sum(mask.size for mask in masks.values())
    return PruningResult(model, masks, [result], result.sparsity, imp_epochs(config, weight_count))


def _steps_per_epoch(train: Any, options: Mapping[str, Any]) -> int:
    steps = options.get("steps_per_epoch")
    if steps is None:
        steps = int(train.cardinality()) if isinstance(train, tf.data.Dataset) else len(train)
    if steps < 1:
        raise ValueError(
            "method='tfmot' must know how many batches an epoch has, and train_data does not tell. Use "
            "dataset.apply(tf.data.experimental.assert_cardinality(batches)), or steps_per_epoch in fit_options."
        )
    return steps


def _check_fit_options(model: Any, options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(model.fit).parameters if name not in _OWN_OPTIONS]
    for name in options:
        if name in _OWN_OPTIONS:
            raise TypeError(f"fit_options must not hold {name!r}: {_OWN_OPTIONS[name]}.")
        if name not in known:
            raise TypeError(f"fit() has no argument {name!r}, which came in fit_options.{nearest(name, known)}")


def _prepare_data(
    train_data: Any, validation_data: Any, options: dict[str, Any], seed: int | None, floatx: str
) -> tuple[Any, Any, dict[str, Any]]:
    """Both data sets as `fit` is to read them, and the options that are left for `fit`."""
    batch_size = options.pop("batch_size", None)
    validation_batch_size = options.pop("validation_batch_size", None)
    train = input_pipeline.prepare(
        train_data,
        "train_data",
        batch_size=batch_size,
        shuffle=options.get("shuffle", True),
        repeat=options.get("steps_per_epoch") is not None,
        seed=seed,
        floatx=floatx,
    )
    if isinstance(train, tf.data.Dataset):
        options["shuffle"] = False  # Keras 3 warns of its own default, which does not apply to a Dataset.
    if validation_data is None:
        return train, None, options
    if validation_batch_size is None and isinstance(validation_data, tuple):
        validation_batch_size = batch_size
    validation = input_pipeline.prepare(
        validation_data, "validation_data", batch_size=validation_batch_size, floatx=floatx
    )
    return train, validation, options


def _build(model: Any, train: Any) -> None:
    """Gives a model that has no weights yet its weights, by calling it on one batch."""
    if is_built(model):
        return
    batch = train[0] if hasattr(train, "__getitem__") else next(iter(train.take(1)))
    try:
        with model.distribute_strategy.scope():
            model(batch[0] if isinstance(batch, tuple) else batch)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be built from train_data, which gives {_spec(train)}. The error was: "
            f"{error}"
        ) from error


def _check_validation_data(model: Any, validation: Any) -> None:
    """Evaluates one batch, for `fit` would only do so after an epoch. What it traces, `fit` uses."""
    try:
        model.evaluate(validation, steps=1, verbose=0)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be evaluated on validation_data, which gives {_spec(validation)}; it "
            f"takes {_inputs(model)}. The error was: {error}"
        ) from error


def _spec(data: Any) -> str:
    if not isinstance(data, tf.data.Dataset):
        return f"batches of a {type(data).__name__}"
    parts = tf.nest.map_structure(lambda spec: f"{spec.dtype.name}{list(spec.shape)}", data.element_spec)
    return str(parts).replace("'", "")


def _inputs(model: Any) -> str:
    try:
        return f"inputs of shape {model.input_shape}"
    except (AttributeError, RuntimeError):
        return "what its call() accepts"
