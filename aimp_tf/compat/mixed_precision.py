"""Mixed precision on a float32 model that exists already, in both generations of Keras, and back; and which it is."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import children, keras_bases, layers_of
from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.swap import Swap
from aimp_tf.config.checks import check_choice

logger = logging.getLogger(__name__)

_GRAPHS = ("Functional", "Sequential")
# tf_keras reads their variables in float32 under a mixed policy, too. Keras 3 notes as much in each variable.
_READ_IN_FLOAT32 = ("BatchNormalizationBase", "LayerNormalization", "Embedding")
_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
_LISTS_OF_WEIGHTS = ("_trainable_weights", "_non_trainable_weights")


def resolve_policy(mixed_precision: str | None) -> str | None:
    """The policy that a setting of `PruningConfig.mixed_precision` means here; None is float32.

    What "auto" chose is logged.

    Raises:
        ValueError: It is none of the known settings.
    """
    check_choice("mixed_precision", mixed_precision)
    if mixed_precision != "auto":
        return mixed_precision
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    policy, reason = choose_policy(gpus, _cpu_flags())
    logger.info("mixed_precision='auto' chose %s: %s.", policy or "float32", reason)
    return policy


def choose_policy(gpus: Sequence[Mapping[str, Any]], cpu_flags: Collection[str]) -> tuple[str | None, str]:
    """What "auto" chooses: the half precision that the hardware multiplies fast, or else float32.

    Args:
        gpus: Of each GPU what `tf.config.experimental.get_device_details` says. The weakest decides.
        cpu_flags: The CPU's flags as in /proc/cpuinfo. They count where there is no GPU.

    Returns:
        "mixed_bfloat16", "mixed_float16" or None for float32, and why.

    Example:
        >>> choose_policy([{"device_name": "Tesla T4", "compute_capability": (7, 5)}], ())
        ('mixed_float16', 'the GPU Tesla T4 has compute capability 7.5')
    """
    if gpus:
        weakest = min(gpus, key=_capability)
        name, capability = weakest.get("device_name", "of unknown name"), _capability(weakest)
        if not capability:
            return None, f"the GPU {name} tells no compute capability"
        policy = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else None
        return policy, f"the GPU {name} has compute capability {'.'.join(map(str, capability))}"
    for flag in _CPU_FLAGS:
        if flag in cpu_flags:
            return "mixed_bfloat16", f"there is no GPU, and the CPU has {flag}"
    return None, f"there is no GPU, and the CPU has none of {', '.join(_CPU_FLAGS)}"


def _capability(gpu: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(gpu.get("compute_capability") or ())


def _cpu_flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def compute_in_half_precision(model: Any, generation: str, policy: str, undo: contextlib.ExitStack) -> None:
    """Has a float32 model compute in half precision until `undo` ends. Its variables, and its results, stay float32.

    In float32 stay the layers that give the model's outputs, and preprocessing layers, for what they read may be beyond
    half precision. Layers that have another policy than float32 keep it. Under float16, an optimizer that scales the
    loss is put round the model's own. Nothing global is changed.

    Args:
        model: A compiled, built Keras 3 or tf_keras model.
        generation: "keras" or "tf_keras".
        policy: "mixed_float16" or "mixed_bfloat16".
        undo: What undoes it. If it never ends, the model stays so, whatever becomes of it.

    Raises:
        ValueError: No layer with weights has the policy float32.
    """
    layers = [layer for layer in layers_of(model) if _is_float32(layer)]
    if not any(layer.weights for layer in layers):
        raise ValueError(
            f"mixed_precision is for float32 models, but the layers of {model.name!r} that have weights have dtype "
            "policies of their own, which are kept. Leave mixed_precision at None."
        )
    spared, composites = _float32_layers(model)
    swaps_of = _swaps_of_keras if generation == "keras" else _swaps_of_tf_keras
    swaps = list(swaps_of([layer for layer in layers if id(layer) not in spared], policy))
    swaps += [Swap(layer, "call", _giving_float32(layer.call)) for layer in composites]
    if policy == "mixed_float16" and not hasattr(model.optimizer, "inner_optimizer"):
        swaps += _loss_scaling(importlib.import_module(generation), model)
    undo.callback(forget_traced, model, evaluations=True)
    done = undo.enter_context(contextlib.ExitStack())

    def do() -> None:
        for swap in swaps:
            done.enter_context(swap)

    def save(*arguments: Any, **settings: Any) -> Any:
        """That of the float32 model, for callbacks."""
        done.close()
        try:
            return model.save(*arguments, **settings)
        finally:
            do()

    swaps.append(Swap(model, "save", save))
    do()
    forget_traced(model, evaluations=True)


@contextlib.contextmanager
def computing_in_float32(model: Any) -> Iterator[None]:
    """Within it, the layers of a model of either generation that compute in half precision do so in float32."""
    with contextlib.ExitStack() as swaps:
        for layer in filter(computes_in_half_precision, layers_of(model)):
            # A policy makes another of its own kind.
            swaps.enter_context(Swap(layer, "_dtype_policy", type(layer.dtype_policy)("float32")))
            if hasattr(layer, "_compute_dtype_object"):
                swaps.enter_context(Swap(layer, "_compute_dtype_object", tf.float32))
        for layer in layers_of(model):
            # Keras 3.8 puts operations before such layers, which cast what these read.
            for operation in getattr(getattr(layer, "_functional", layer), "_operations", ()):
                if type(operation).__name__ == "Cast" and operation.dtype in ("float16", "bfloat16"):
                    swaps.enter_context(Swap(operation, "dtype", "float32"))
        yield


def _swaps_of_keras(layers: Iterable[Any], policy: str) -> Iterator[Swap]:
    dtype_policy = importlib.import_module("keras").dtype_policies.get(policy)
    for layer in layers:
        yield Swap(layer, "_dtype_policy", dtype_policy)
        # Keras 3 cannot sum losses of several dtypes.
        yield Swap(layer, "add_loss", _taking_float32(layer.add_loss))
        yield from _swap_of_regulariser(layer, "activity_regularizer")


def _swaps_of_tf_keras(layers: Iterable[Any], policy: str) -> Iterator[Swap]:
    """In tf_keras a variable casts itself only inside an AutoCastVariable, which a float32 layer has not got.

    Only the attributes that `call` reads are swapped: what optimizers, snapshots and files know stays as it is.
    """
    dtype_policy = importlib.import_module("tf_keras").mixed_precision.Policy(policy)
    casting: dict[int, Any] = {}
    for layer in layers:
        if _is_bare_operation(layer):
            yield Swap(layer, "call", _promoting(layer.call))
            continue
        yield Swap(layer, "_dtype_policy", dtype_policy)
        yield Swap(layer, "_compute_dtype_object", tf.as_dtype(dtype_policy.compute_dtype))
        yield from _swap_of_regulariser(layer, "_activity_regularizer")
        if any(base.__name__ in _READ_IN_FLOAT32 for base in keras_bases(type(layer))):
            continue
        for name, value in vars(layer).items():
            cast = value if name in _LISTS_OF_WEIGHTS or name.startswith("_self_") else _cast(value, casting)
            if cast is not value:
                yield Swap(layer, name, cast)


def _cast(value: Any, casting: dict[int, Any]) -> Any:
    """A variable of tf_keras as one that casts itself, also in lists, tuples and dicts; everything else as it is.

    Args:
        value: What a layer holds.
        casting: By ids, for the same variable is to become the same: what is shared counts once.
    """
    if isinstance(value, tf.Variable):
        if value.dtype != tf.float32 or hasattr(value, "_cast_dtype"):
            return value
        autocast = importlib.import_module("tf_keras.src.mixed_precision.autocast_variable")
        return casting.setdefault(id(value), autocast.create_autocast_variable(value))
    if isinstance(value, dict):
        cast_items = {key: _cast(item, casting) for key, item in value.items()}
        return cast_items if any(cast_items[key] is not item for key, item in value.items()) else value
    if isinstance(value, list) or type(value) is tuple:
        cast = [_cast(item, casting) for item in value]
        changed = any(item is not before for item, before in zip(cast, value, strict=True))
        return type(value)(cast) if changed else value
    return value


def _swap_of_regulariser(layer: Any, name: str) -> Iterator[Swap]:
    """A sum over a batch of activations is soon beyond float16."""
    regulariser = vars(layer).get(name)
    if regulariser is not None:
        yield Swap(layer, name, _taking_float32(regulariser))


def _float32_layers(model: Any) -> tuple[set[int], list[Any]]:
    """The ids of the layers that stay float32, and the composites, which are to give float32 all the same.

    A composite is a layer or model of the user's that is made of layers: it computes in half precision. Nobody can tell
    from outside which of its layers is the last.
    """
    spared: set[int] = set()
    composites: list[Any] = []

    def give_float32(layer: Any) -> None:
        home = _home(layer)
        if home == "Sequential":
            give_float32(layer.layers[-1])
        elif home == "Functional":
            for tensor in layer.outputs:
                for producer in _producers(tensor):
                    give_float32(producer)
        elif home is None and children(layer):
            composites.append(layer)
        else:
            spared.update(map(id, layers_of(layer)))

    for layer in layers_of(model):
        if _home(layer) not in _GRAPHS and _is_preprocessing(layer):
            spared.update(map(id, layers_of(layer)))
    # A plain Model has no `call`: its train_step calls its parts.
    outermost = children(model) if _home(model) == "Model" else [model]
    if _definer(model, "train_step") is None:
        outermost += [part for part in children(model) if hasattr(part, "layers")]
    for layer in outermost:
        give_float32(layer)
    return spared, composites


def _producers(tensor: Any) -> Iterator[Any]:
    """The layer that gives a symbolic tensor or, where that is a bare operation, those that give what it reads."""
    operation, node_index, _ = tensor._keras_history
    if not _is_bare_operation(operation):
        yield operation
        return
    node = operation._inbound_nodes[node_index]
    for read in getattr(node, "keras_inputs", None) or node.input_tensors:
        yield from _producers(read)


def _giving_float32(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def call_and_cast(*arguments: Any, **settings: Any) -> Any:
        return tf.nest.map_structure(_as_float32, call(*arguments, **settings))

    return call_and_cast


def _taking_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    def cast_and_call(*arguments: Any, **settings: Any) -> Any:
        arguments, settings = tf.nest.map_structure(_as_float32, (arguments, settings))
        return function(*arguments, **settings)

    return cast_and_call


def _promoting(call: Callable[..., Any]) -> Callable[..., Any]:
    """For an operation of TensorFlow, which refuses to add half precision and float32 where one of Keras 3 does not."""

    @functools.wraps(call)
    def promote_and_call(*arguments: Any, **settings: Any) -> Any:
        tensors = filter(tf.is_tensor, tf.nest.flatten((arguments, settings)))
        mixes = any(tensor.dtype == tf.float32 for tensor in tensors)
        return (_taking_float32(call) if mixes else call)(*arguments, **settings)

    return promote_and_call


def _as_float32(value: Any) -> Any:
    return tf.cast(value, tf.float32) if tf.is_tensor(value) and value.dtype in (tf.float16, tf.bfloat16) else value


def _loss_scaling(keras: Any, model: Any) -> list[Swap]:
    """Puts a LossScaleOptimizer round the model's optimizer, which refuses to train with a loss that is not scaled."""
    inner = model.optimizer
    if keras.__name__ == "keras":
        # What making the LossScaleOptimizer changes in the one inside it.
        changed = Swap(inner, "loss_scale_factor", None)
        outer = keras.optimizers.LossScaleOptimizer(inner)
        scale, apply = "scale_loss", "apply"
        remedy = "Have it take the gradients of self.optimizer.scale_loss(loss)"
    else:
        changed = Swap(inner, "_is_wrapped_by_loss_scale_optimizer", True)
        outer = keras.mixed_precision.LossScaleOptimizer(inner)
        _forget_dependencies(inner, ("loss_scale", "base_optimizer"))
        scale, apply = "get_scaled_loss", "apply_gradients"
        remedy = "Have it call self.optimizer.minimize(loss, self.trainable_variables, tape=tape)"
    scale_loss, apply_gradients = getattr(outer, scale), getattr(outer, apply)
    scaled = False

    def noting(*arguments: Any, **settings: Any) -> Any:
        nonlocal scaled
        scaled = True
        return scale_loss(*arguments, **settings)

    def checking(*arguments: Any, **settings: Any) -> Any:
        if not scaled:
            raise ValueError(
                f"mixed_precision='mixed_float16' scales the loss, and the train_step of {model.name!r} does not. "
                f"{remedy}, or use 'mixed_bfloat16', which needs no scaling."
            )
        return apply_gradients(*arguments, **settings)

    vars(outer).update({scale: noting, apply: checking})
    return [changed, Swap(model, "optimizer", outer)]


def _forget_dependencies(optimizer: Any, names: Sequence[str]) -> None:
    """tf_keras' LossScaleOptimizer has its own variables tracked as if they were those of the optimizer inside it."""
    dependencies = optimizer._self_unconditional_checkpoint_dependencies
    dependencies[:] = [dependency for dependency in dependencies if dependency.name not in names]
    for name in names:
        optimizer._self_unconditional_dependency_names.pop(name, None)


def computes_in_half_precision(layer: Any) -> bool:
    """Whether a layer of either generation does so by its own policy, and not for it is quantised."""
    policy = getattr(layer, "dtype_policy", None)
    compute_dtype, mode = getattr(policy, "compute_dtype", None), getattr(policy, "quantization_mode", None)
    return compute_dtype in ("float16", "bfloat16") and mode is None


def _is_bare_operation(layer: Any) -> bool:
    return not hasattr(layer, "_flatten_layers") or type(layer).__module__.endswith("tf_op_layer")


def _is_float32(layer: Any) -> bool:
    return _home(layer) not in (*_GRAPHS, "InputLayer") and layer._dtype_policy.name == "float32"


def _is_preprocessing(layer: Any) -> bool:
    return any("preprocessing" in base.__module__.split(".") for base in keras_bases(type(layer)))


def _home(layer: Any) -> str | None:
    """The name of the class of Keras that says what the layer does; None where that is a class of the user's."""
    if any(base.__name__ == "InputLayer" for base in keras_bases(type(layer))):
        return "InputLayer"
    return _definer(layer, "call")


def _definer(layer: Any, method: str) -> str | None:
    base = next(base for base in type(layer).__mro__ if method in vars(base))
    return base.__name__ if base in keras_bases(type(layer)) else None
