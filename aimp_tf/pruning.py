"""prune(): the loop over `fit`; the only module that knows all the others."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.callback import GlobalMagnitudePruning
from aimp_tf.cluster import Cluster
from aimp_tf.config import PruningConfig, nearest
from aimp_tf.device_arrays import DeviceArrays
from aimp_tf.exporting import export
from aimp_tf.input_pipeline import Order, array_positions, batch_count, in_batches, prepare, spec_of
from aimp_tf.keras_own import is_keras_own
from aimp_tf.masked_model import (
    check_model,
    fit_with_tfmot,
    is_built,
    keras_generation,
    mask_model,
    resource_of,
    select_prunable,
    sparsity,
)
from aimp_tf.plan import imp_epochs
from aimp_tf.precision import resolve_policy
from aimp_tf.progress import RunProgress
from aimp_tf.ranking import check_finite
from aimp_tf.result import PruningResult
from aimp_tf.rounds import RoundResult, plain_logs
from aimp_tf.run_directory import RunDirectory, check_workdir
from aimp_tf.signature import data_signature, model_signature

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
_BATCH_SIZES = ("batch_size", "validation_batch_size")


def prune(
    model: Any,
    train_data: Any,
    config: PruningConfig | None = None,
    *,
    validation_data: Any = None,
    callbacks: Sequence[Any] = (),
    workdir: str | os.PathLike[str] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    data_on_device: bool = False,
    verbose: str | int = "auto",
    overwrite: bool = False,
    **overrides: Any,
) -> PruningResult:
    """Prunes a Keras model with Accelerated Iterative Magnitude Pruning.

    Trains the model in short rounds, each time removing the smallest surviving weights of the whole network and
    rewinding, then once in full. In all `N * round_epochs + epochs` epochs, where plain iterative magnitude pruning
    takes `(N + 1) * epochs`. The model is trained and pruned in place.

    Args:
        model: A compiled Keras 3 or tf_keras model, built or buildable from the data. A model made under a
            tf.distribute strategy stays under it: OneDeviceStrategy, MirroredStrategy or MultiWorkerMirroredStrategy.
            With several workers, each calls this with the same arguments and gets the same result.
        train_data: What `model.fit` takes and can read more than once: a tf.data.Dataset of batches, a tuple (x, y) or
            (x, y, sample_weight) of arrays, a PyDataset or Sequence.
        config: What to do. None makes one of `overrides`.
        validation_data: As `train_data`; evaluated after each epoch.
        callbacks: Keras callbacks, handed to every `fit`. They see one `fit` a round; how those of Keras start each
            round afresh, and a LearningRateScheduler follows it, says `GlobalMagnitudePruning.among`.
        workdir: A folder that gets the config, the metrics of every epoch, the masks and weights of every round and the
            pruned SavedModel. It is new or empty, or that of a run with the same config, model and data, which then
            goes on where it stopped: at the end of an epoch, or with what it ended with. Of several workers, the chief
            alone reads and writes it.
        fit_options: Further arguments of `fit`: batch_size (arrays only; default 32), shuffle, class_weight,
            steps_per_epoch, validation_batch_size, validation_steps, validation_freq.
        data_on_device: Whether the arrays of `train_data` are copied once into the memory of the device that trains,
            such as a GPU, where each step then gathers its batch, rather than batch by batch. The batches are the same
            to the last bit. It takes a model on one device, with arrays that fit there beside it; on a CPU nothing is
            gained.
        verbose: As in `fit`.
        overwrite: Whether what an earlier run left in `workdir` is removed first.
        **overrides: Fields of `PruningConfig` that replace those of `config`.

    Returns:
        The pruned model, its masks and the story of every round.

    Raises:
        TypeError: `model` is not a Keras model, the data cannot be read again for each round, or a name is unknown.
        ValueError: A setting is out of range, the model is not compiled or has nothing to prune, the optimizer averages
            weights, the data does not fit the model, or `workdir` holds something else than this run. Raised before
            any training.
        RuntimeError: The loss or the weights became NaN or infinite, something undoes the pruning, or `workdir` is in
            use or cannot be written; or another worker of the cluster is gone.

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
    keras_generation(model)
    cluster = Cluster(model.distribute_strategy)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.explaining_losses())
        with cluster.as_one():
            config = config.replace(**overrides) if config is not None else PruningConfig.from_fields(overrides)
            config.validate()
            generation = check_model(model)
            options = dict(fit_options or {})
            _check_fit_options(model, options)
            if not cluster.chief:
                workdir = None
            if workdir is not None:
                check_workdir(workdir)
            fitting = _Fitting(
                train_data, validation_data, callbacks, options, verbose, config.seed, generation, cluster
            )
            if not isinstance(data_on_device, bool):
                raise TypeError(f"data_on_device must be True or False; got {data_on_device!r}.")
            if data_on_device:
                fitting.check_on_device(model, cluster)
        # Here, so that what "auto" chose is what a run directory holds, and the same on all workers.
        config = config.replace(mixed_precision=cluster.from_chief(resolve_policy(config.mixed_precision)))
        fitting.settle_order(cluster)
        _build(model, fitting.train)
        if data_on_device:
            stack.enter_context(fitting.on_device_of(model))
        directory, kept = None, {}
        with cluster.as_one():
            if workdir is not None or cluster.size > 1:
                signature = {
                    "model": model_signature(model, config.include, config.exclude),
                    "data": data_signature(train_data, fitting.train, options),
                }
                if validation_data is not None:
                    signature["validation_data"] = data_signature(validation_data, fitting.validation, {})
            if workdir is not None:
                directory = stack.enter_context(RunDirectory(workdir, config, signature, overwrite=overwrite))
                kept = directory.keep_defaults()
        config = config.replace(**cluster.from_chief(kept))
        config.validate()
        if cluster.size > 1:
            # Shards that workers read on their own may differ in length.
            parts = {name: {**part, "batches": None} for name, part in signature.items()}
            cluster.check_same(config=config.to_json(), **parts)
        run = _prune_with_tfmot if config.method == "tfmot" else _prune_in_rounds
        result = run(model, config, fitting, directory)
        saved = cluster.from_chief(directory is not None)
        if directory is not None:
            directory.save_model(result.model)
        elif saved:
            # Saving reads what all replicas hold, for which the chief needs the others.
            with tempfile.TemporaryDirectory() as folder:
                export(result.model, folder, formats=("saved_model",), verify=False)
    return result


class _Fitting:
    """What every `fit` of a run is called with.

    Attributes:
        train: The training data.
        validation: The validation data, or None.
        order: The order in which arrays are read; None for other data, which has its own.
        callbacks: The user's callbacks.
        options: The other arguments of `fit`.
    """

    def __init__(
        self,
        train_data: Any,
        validation_data: Any,
        callbacks: Sequence[Any],
        options: Mapping[str, Any],
        verbose: str | int,
        seed: int | None,
        generation: str,
        cluster: Cluster,
    ) -> None:
        floatx = importlib.import_module(generation).backend.floatx()
        # Keras 3 makes NaN of a replica's share of a batch where there is nothing in it.
        least_batch = cluster.replicas if generation == "keras" else 1
        self.callbacks = callbacks
        self.options = {name: value for name, value in options.items() if name not in _BATCH_SIZES}
        self.options["verbose"] = verbose
        batch_size, validation_batch_size = map(options.get, _BATCH_SIZES)
        self.order = None
        self._arrays: tuple[tuple, tf.data.Dataset] | None = None
        self._on_device: DeviceArrays | None = None
        if isinstance(train_data, tuple):
            seed = int(np.random.randint(2**31)) if seed is None else seed
            self.order = Order(seed, shuffle=bool(options.get("shuffle", True)))
            self._arrays = array_positions(
                train_data,
                "train_data",
                batch_size=batch_size,
                order=self.order,
                steps_per_epoch=options.get("steps_per_epoch"),
                floatx=floatx,
                least_batch=least_batch,
            )
            self.train = in_batches(*self._arrays)
        else:
            self.train = prepare(train_data, "train_data", batch_size=batch_size)
        if cluster.size > 1 and not isinstance(self.train, tf.data.Dataset):
            raise ValueError(
                f"train_data is a {type(train_data).__name__}, which every worker would read in an order of its own. "
                "With several workers, it must be a tf.data.Dataset or a tuple (x, y) of arrays."
            )
        if isinstance(self.train, tf.data.Dataset):
            self.options["shuffle"] = False  # Keras 3 warns of its own default, which does not apply to a Dataset.
        self.validation = None
        if validation_data is not None:
            if validation_batch_size is None and isinstance(validation_data, tuple):
                validation_batch_size = batch_size
            self.validation = prepare(
                validation_data,
                "validation_data",
                batch_size=validation_batch_size,
                floatx=floatx,
                least_batch=least_batch,
            )

    def settle_order(self, cluster: Cluster) -> None:
        """Lets all workers read arrays in the order of the chief, whose seed may be drawn."""
        seed = cluster.from_chief(None if self.order is None else self.order.seed)
        if self.order is not None:
            self.order.seed = seed
            self.order.begin(0, 0)

    def check_on_device(self, model: Any, cluster: Cluster) -> None:
        """Raises TypeError or ValueError if `data_on_device` cannot be done."""
        if self._arrays is None:
            raise TypeError(
                "data_on_device takes train_data as a tuple (x, y) or (x, y, sample_weight) of arrays; got "
                f"{type(self.train).__name__}. Give arrays, or set data_on_device=False."
            )
        for array in tf.nest.flatten(self._arrays[0]):
            if not (array.dtype.is_integer or array.dtype.is_floating or array.dtype.is_complex or array.dtype.is_bool):
                raise TypeError(
                    f"data_on_device takes arrays of numbers; got one of dtype {array.dtype.name} in train_data. Make "
                    "numbers of it, or set data_on_device=False."
                )
        if not cluster.on_one_device:
            raise ValueError(
                "data_on_device takes a model made without a strategy or under OneDeviceStrategy; this one was made "
                f"under {type(model.distribute_strategy).__name__}. Set data_on_device=False."
            )
        if self.options.get("class_weight") is not None:
            raise ValueError(
                "With data_on_device, fit does not see the classes that class_weight is for. Give each example its "
                "weight, as train_data=(x, y, sample_weight), or set data_on_device=False."
            )
        for name in ("fit", "make_train_function"):
            if not is_keras_own(getattr(type(model), name)):
                raise ValueError(
                    f"With data_on_device, fit reads positions of examples, which the {name} of "
                    f"{type(model).__name__} may not expect. Leave it to Keras, or set data_on_device=False."
                )

    @contextlib.contextmanager
    def on_device_of(self, model: Any) -> Iterator[None]:
        """Within it, every `fit` gathers its batches in the memory of the device that a built model is on.

        Raises:
            ValueError: There is no room for them.
        """
        assert self._arrays is not None
        # Not those of tf_keras' lookup layers. A model without any is refused later, for it has nothing to prune.
        devices = (resource_of(weight).device for weight in model.weights if hasattr(weight, "assign"))
        self._on_device = DeviceArrays(*self._arrays, next(devices, "CPU:0"))
        try:
            yield
        finally:
            self._on_device.release()

    def fit(self, model: Any, callbacks: Sequence[Any], *, epochs: int, initial_epoch: int = 0) -> None:
        """Calls `fit` of a model, with these callbacks and no others."""
        data = self.train
        gathering: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._on_device is not None:
            data, gathering = self._on_device.batches, self._on_device.gathering(model)
        with gathering:
            model.fit(
                data,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=self.validation,
                callbacks=callbacks,
                **self.options,
            )


def _prune_in_rounds(
    model: Any, config: PruningConfig, fitting: _Fitting, directory: RunDirectory | None
) -> PruningResult:
    masked = mask_model(model, config.include, config.exclude, config.mixed_precision, config.granularity)
    try:
        if fitting.validation is not None:
            _check_validation_data(masked.model, fitting.validation, config)
        pruning = GlobalMagnitudePruning(config)
        pruning.begin(masked)
        progress = RunProgress(pruning, masked, fitting.order, directory)
        progress.begin()
        while not pruning.finished:
            try:
                fitting.fit(
                    masked.model,
                    [*pruning.among(fitting.callbacks), progress],
                    epochs=pruning.next_epochs,
                    initial_epoch=progress.initial_epoch,
                )
            except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                if masked.optimizer.steps > 0 or pruning.rounds:
                    raise
                raise ValueError(
                    f"fit failed before its first step, and nothing was trained. train_data gives "
                    f"{spec_of(fitting.train)}; the model {model.name!r} takes {_inputs(model, config)}. The error "
                    f"was: {error}"
                ) from error
            progress.save_round()
        masks = masked.masks()
    finally:
        pruned = masked.strip()
    return PruningResult(
        model=pruned,
        masks=masks,
        rounds=pruning.rounds,
        # On the pruned variables alone: these settings leave others out.
        sparsity=sparsity(pruned, config.include, config.exclude, config.granularity),
        imp_epochs=imp_epochs(config, masked.weight_count),
        config=config,
    )


def _prune_with_tfmot(
    model: Any, config: PruningConfig, fitting: _Fitting, directory: RunDirectory | None
) -> PruningResult:
    """The baseline `method="tfmot"`: one fit, in which tfmot's own wrappers and callback prune. It does not go on."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "method='tfmot' trains on one device; this model was made for "
            f"{model.distribute_strategy.num_replicas_in_sync}. method='gradual' does much the same on all of them."
        )
    if fitting.validation is not None:
        _check_validation_data(model, fitting.validation, config)
    weight_count = sum(weight.size for weight in _prunable(model, config).values())
    rounds = []
    if directory is not None:
        directory.begin(round_count=1)
        rounds = directory.finished_rounds()
        directory.go_on(rounds, ())
    if rounds:
        model.set_weights(rounds[0].state["weights"])
        result, masks = rounds[0].result, _zero_masks(_prunable(model, config))
    else:
        result, masks = _train_with_tfmot(model, config, fitting, directory)
    return PruningResult(model, masks, [result], result.sparsity, imp_epochs(config, weight_count), config)


def _train_with_tfmot(
    model: Any, config: PruningConfig, fitting: _Fitting, directory: RunDirectory | None
) -> tuple[RoundResult, dict[str, np.ndarray]]:
    started_at = time.monotonic()
    epoch_logs: list[dict[str, Any]] = []

    def on_epoch_end(epoch: int, logs: dict[str, Any]) -> None:
        epoch_logs.append(plain_logs(logs))
        if directory is not None:
            directory.add_metrics(0, epoch, epoch_logs[-1])
        if fitting.order is not None:
            fitting.order.begin(0, epoch + 1)

    fit_with_tfmot(
        model,
        lambda wrapped, own: fitting.fit(wrapped, [*own, *fitting.callbacks], epochs=config.epochs),
        on_epoch_end,
        target_sparsity=config.target_sparsity,
        ramp_steps=max(1, round(config.ramp * config.epochs * _steps_per_epoch(fitting))),
        include=tuple(config.include),
        exclude=tuple(config.exclude),
    )
    weights = _prunable(model, config)
    masks = _zero_masks(weights)
    check_finite(weights, masks)
    result = RoundResult.of(0, epoch_logs, weights, masks, time.monotonic() - started_at)
    if directory is not None:
        directory.save_round(result, epoch_logs, masks, model.save_weights, {"weights": model.get_weights()})
    return result, masks


def _zero_masks(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks of weights whose pruned entries are zero."""
    return {path: weight != 0 for path, weight in weights.items()}


def _prunable(model: Any, config: PruningConfig) -> dict[str, np.ndarray]:
    return select_prunable(model, config.include, config.exclude)


def _steps_per_epoch(fitting: _Fitting) -> int:
    steps = fitting.options.get("steps_per_epoch")
    if steps is None:
        steps = batch_count(fitting.train)
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
            f"The model {model.name!r} cannot be built from train_data, which gives {spec_of(train)}. The error was: "
            f"{error}"
        ) from error


def _check_validation_data(model: Any, validation: Any, config: PruningConfig) -> None:
    """Evaluates one batch, for `fit` would only do so after an epoch. What it traces, `fit` uses."""
    try:
        model.evaluate(validation, steps=1, verbose=0)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be evaluated on validation_data, which gives {spec_of(validation)}; it "
            f"takes {_inputs(model, config)}. The error was: {error}"
        ) from error


def _inputs(model: Any, config: PruningConfig) -> str:
    try:
        inputs = f"inputs of shape {model.input_shape}"
    except (AttributeError, RuntimeError):
        inputs = "what its call() accepts"
    if config.mixed_precision is None:
        return inputs
    return (
        f"{inputs}, and computes in {config.mixed_precision}, where layers and a train_step of your own must not mix "
        "dtypes (have them cast to self.compute_dtype, or leave mixed_precision at None)"
    )
