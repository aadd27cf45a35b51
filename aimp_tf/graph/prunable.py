"""Which variables of a model are prunable, and what they are called. The same answer for both generations of Keras."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from aimp_tf.compat.models import children, keras_bases, layers_of
from aimp_tf.compat.variables import key_of
from aimp_tf.config.checks import check_patterns
from aimp_tf.config.structure import Structure
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.units import Units

_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")

PRUNABLE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Dense": ("kernel",),
    "EinsumDense": ("kernel",),
    **dict.fromkeys((*_CONVOLUTIONS, "LocallyConnected1D", "LocallyConnected2D"), ("kernel",)),
    # Both are subclasses of a convolution in tf_keras, so they must be named to be told apart from it.
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("pointwise_kernel",)),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), ()),
    **dict.fromkeys(("SimpleRNNCell", "LSTMCell", "GRUCell", "ConvLSTMCell"), ("kernel", "recurrent_kernel")),
}
"""Class name of a Keras layer or cell -> attributes that hold its prunable kernels. Attention layers project with
EinsumDense or Dense layers, and recurrent layers hold cells, so both are found through their parts."""


_READERS = ("Dense", "EinsumDense", *_CONVOLUTIONS)
"""Classes of layers that multiply their one input by their kernel."""

_NOT_KERNELS = ("embedding", "depthwise", "gamma", "beta", "alpha", "bias", "lora")
"""What the own names of weights hold that have several axes and are no kernels: these stay dense by design."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The variables of a model that are to be pruned.

    Attributes:
        variables: Path -> variable.
        units: What is kept or removed together in them.
        prunable: Path -> variable, of those whose weights count as prunable: all of them, but for what goes along with
            whole channels.
        left_dense: Path -> why, of the matrices that the patterns do not leave out, but that are not pruned: they are
            frozen, cannot hold the structure of the granularity, or belong to layers that are not known.
    """

    variables: Mapping[str, Any]
    units: Units | ChannelUnits
    prunable: Mapping[str, Any]
    left_dense: dict[str, str]


def prunable_variables(root: Any) -> dict[str, Any]:
    """Path -> variable for everything prunable in a built Keras layer or model, in the model's own order.

    A path is made of the layers' names from below `root` down to the variable: "head/dense/kernel". A variable that is
    reached twice counts once, under its first path. A layer with `get_prunable_weights()` decides for itself.
    """
    return {path: variable for path, (variable, _) in _find(root).items()}


def select_for(
    granularity: object,
    root: Any,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    frozen: bool = False,
) -> Selection:
    """What there is to prune in a built Keras layer or model with a granularity of `PruningConfig`.

    Blocks lie along the inputs of an output unit. That is the last axis but one of a kernel; the last one in a
    transposed convolution, and in an EinsumDense layer the last of those that are summed over, in the order of the
    input. A variable of a layer of the user's own counts as a kernel. Where `frozen` is True, what is frozen
    (`trainable=False`) counts though no pattern of `include` names it.

    Raises:
        TypeError, ValueError: As `select`; all that is selected is frozen; or no variable, or none that a pattern of
            `include` matches, has as many inputs as the granularity needs.
    """
    structure = Structure.of(granularity)
    found = _find(root)
    unknown = _unknown_matrices(root, {key_of(variable) for variable, _ in found.values()})
    selected = select({path: variable for path, (variable, _) in found.items()}, include, exclude, unknown)
    left_dense = _left_by(include, exclude, unknown)
    if not include and not frozen:
        trainable = set(map(key_of, root.trainable_weights))
        still = [path for path, variable in selected.items() if key_of(variable) not in trainable]
        if len(still) == len(selected):
            raise ValueError(
                f"Everything prunable is frozen (trainable=False), and so left as it is: {', '.join(still)}. Set "
                "trainable=True where it is to train, or name in include what is to be pruned though it is frozen."
            )
        left_dense |= dict.fromkeys(still, "frozen (trainable=False)")
    axes = {path: found[path][1] for path in selected if path not in left_dense}
    for path, axis in axes.items():
        if structure.m > 1 and (axis is None or selected[path].shape[axis] % structure.m):
            left_dense[path] = f"its inputs are no multiple of {structure.m}, which {structure} needs"
    fitting = {path: variable for path, variable in selected.items() if path not in left_dense}
    if not fitting:
        raise ValueError(f"No variable can be pruned with {structure}: {reasons_text(left_dense)}.")
    for pattern in include:
        if not fnmatch.filter(fitting, pattern):
            raise ValueError(
                f"The pattern {pattern!r} in include names variables that cannot be pruned with {structure}, for their "
                f"inputs are no multiple of {structure.m}: {', '.join(fnmatch.filter(selected, pattern))}. Leave it "
                "out."
            )
    return Selection(fitting, Units(structure, {path: axes[path] for path in fitting}), fitting, left_dense)


def readers(root: Any) -> Iterator[tuple[Any, Any]]:
    """(kernel, layer) for each Dense, EinsumDense and convolution layer of a built Keras layer or model, which
    multiplies its input by that kernel."""
    for layer in layers_of(root):
        if _kind(layer) in _READERS and (kernel := _kernel(layer, "kernel")) is not None:
            yield kernel, layer


def kernels_and_outputs(root: Any) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """(kernel, layer, axes of the kernel that count outputs) as `readers`, and of depthwise and separable convolutions.

    An output is a sum over the other axes. A separable convolution comes twice.
    """
    for kernel, layer in readers(root):
        yield kernel, layer, _output_axes(layer, len(kernel.shape))
    for layer in layers_of(root):
        if _kind(layer).startswith(("Depthwise", "Separable")):
            for name, axes in (("depthwise_kernel", (-2, -1)), ("pointwise_kernel", (-1,)), ("kernel", (-2, -1))):
                if (kernel := _kernel(layer, name)) is not None:
                    yield kernel, layer, tuple(len(kernel.shape) + axis for axis in axes)


def einsum_operands(equation: str) -> tuple[str, str, str]:
    """The letters of the input, the kernel and the output of an EinsumDense layer, such as "abc,cd->abd"."""
    operands, output = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, output


def reasons_text(left_dense: Mapping[str, str], most: int = 8) -> str:
    """Path -> reason as "a/kernel, b/kernel (frozen); c/kernel (...)", of each reason `most` paths at most."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_dense.items():
        by_reason.setdefault(reason, []).append(path)
    return "; ".join(
        f"{', '.join(paths[:most])}{f' and {len(paths) - most} more' if len(paths) > most else ''} ({reason})"
        for reason, paths in by_reason.items()
    )


def named_weights(root: Any) -> dict[str, Any]:
    """Path -> variable for all weights of a built Keras layer or model: those of `prunable_variables`, and the others.

    A path is made as there, of the variable's own name at its end: "norm/moving_mean".
    """
    prunable = {key_of(variable): path for path, variable in prunable_variables(root).items()}
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for layer, names in _parts(root):
        within = {id(variable) for child in children(layer) for variable in child.weights}
        for variable in layer.weights:
            # tf_keras also lists lookup tables.
            if id(variable) not in within and hasattr(variable, "assign") and (key := key_of(variable)) not in seen:
                seen.add(key)
                taken = {**found, **dict.fromkeys(prunable.values())}
                path = prunable.get(key) or unused("/".join((*names, _own_name(variable))), taken)
                found[path] = variable
    return found


def other_weights(root: Any) -> list[str]:
    """Paths of the weights of a built Keras layer or model that are not prunable, such as biases."""
    prunable = prunable_variables(root)
    return [path for path in named_weights(root) if path not in prunable]


def select(
    variables: dict[str, Any],
    include: Sequence[str],
    exclude: Sequence[str],
    unknown: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The variables whose path matches a pattern of `include`, or any if there is none, and no pattern of `exclude`.

    The patterns are those of fnmatch. `exclude` may also name those of `unknown`: path of a matrix that cannot be
    pruned -> why.

    Raises:
        TypeError: As `check_patterns`.
        ValueError: There is nothing prunable, a pattern matches nothing, or nothing is left.
    """
    unknown = unknown or {}
    if not variables:
        found = f" Left dense would be: {reasons_text(unknown)}." if unknown else ""
        raise ValueError(
            "The model has no prunable weights. Pruned are the kernels of Dense, EinsumDense, convolution, recurrent "
            f"and attention layers; a layer of your own can name its weights in a method get_prunable_weights().{found}"
        )
    for name, patterns in (("include", include), ("exclude", exclude)):
        check_patterns(name, patterns)
        for pattern in patterns:
            if fnmatch.filter(variables, pattern) or name == "exclude" and fnmatch.filter(unknown, pattern):
                continue
            why = reasons_text({path: unknown[path] for path in fnmatch.filter(unknown, pattern)})
            hint = f" It names what cannot be pruned: {why}." if why else ""
            if fnmatch.filter([*variables, *unknown], f"{pattern}/*"):
                hint = f" It is the name of a layer; did you mean {f'{pattern}/*'!r}?"
            raise ValueError(
                f"The pattern {pattern!r} in {name} matches no prunable variable.{hint} They are: "
                f"{', '.join(variables)}."
            )
    selected = _left_by(include, exclude, variables)
    if not selected:
        raise ValueError(
            f"include={tuple(include)} and exclude={tuple(exclude)} leave no prunable variable of: "
            f"{', '.join(variables)}."
        )
    return selected


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path is what one of the patterns of `include` or `exclude` names."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _left_by(include: Sequence[str], exclude: Sequence[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """What patterns leave of what is known by its path."""
    return {
        path: each
        for path, each in found.items()
        if (not include or matches(path, include)) and not matches(path, exclude)
    }


def _find(root: Any) -> dict[str, tuple[Any, int | None]]:
    """Path -> variable and axis of its inputs."""
    found: dict[str, tuple[Any, int | None]] = {}
    seen: set[int] = set()
    for path, variable, axis in _walk(root, ()):
        if id(variable) not in seen:
            seen.add(id(variable))
            found[unused(path, found)] = variable, axis
    return found


def _walk(layer: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any, int | None]]:
    found = _walk_parts(layer, names)
    if not hasattr(layer, "get_prunable_weights"):
        yield from found
        return
    known = {id(variable): axis for _, variable, axis in found}
    for variable in layer.get_prunable_weights():
        axis = known.get(id(variable), _input_axis(layer, "", len(variable.shape)))
        yield "/".join((*names, _own_name(variable))), variable, axis


def _walk_parts(layer: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any, int | None]]:
    kind = _kind(layer)
    for attribute in PRUNABLE_ATTRIBUTES.get(kind, ()):
        variable = _as_variable(getattr(layer, attribute, None))
        # tf_keras can give a LocallyConnected layer a kernel of all inputs, most of which it never reads.
        if variable is not None and getattr(layer, "kernel_mask", None) is None:
            yield "/".join((*names, attribute)), variable, _input_axis(layer, kind, len(variable.shape))
    for child in children(layer):
        yield from _walk(child, (*names, child.name))


def _unknown_matrices(root: Any, known: set[int]) -> dict[str, str]:
    """Path -> why it is not prunable, of weights that look like kernels: floating, trained, of two axes or more. Those
    whose `key_of` is known are prunable."""
    trainable = set(map(key_of, root.trainable_weights))
    unknown: dict[str, str] = {}
    for layer, names in _parts(root):
        if hasattr(layer, "get_prunable_weights"):
            continue
        attributes = PRUNABLE_ATTRIBUTES.get(_kind(layer))
        for attribute in attributes or ():
            if hasattr(layer, attribute) and _as_variable(getattr(layer, attribute)) is None:
                unknown["/".join((*names, attribute))] = _why_no_variable(layer)
        own = trainable - known - {key_of(each) for child in children(layer) for each in child.trainable_weights}
        for variable in layer.trainable_weights if attributes != () else ():
            name = _own_name(variable)
            looks_like_kernel = len(variable.shape) > 1 and not any(part in name for part in _NOT_KERNELS)
            if key_of(variable) in own and looks_like_kernel and _as_variable(variable) is not None:
                path = "/".join((*names, name))
                unknown.setdefault(path, f"no rule for {type(layer).__name__}, which has no get_prunable_weights()")
    return unknown


def _why_no_variable(layer: Any) -> str:
    if getattr(layer, "lora_enabled", False):
        return "under LoRA, a sum of matrices; prune before enable_lora()"
    return "quantized" if getattr(layer, "quantization_mode", None) else "made of other variables, or no floats"


def _parts(layer: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """A layer and all within it, each with the names that lead there."""
    yield layer, names
    for child in children(layer):
        yield from _parts(child, (*names, child.name))


def _kind(layer: Any) -> str:
    """The name of the layer's class, or of the base of it, that `PRUNABLE_ATTRIBUTES` lists; else ""."""
    names = (base.__name__ for base in keras_bases(type(layer)))
    return next((name for name in names if name in PRUNABLE_ATTRIBUTES), "")


def _input_axis(layer: Any, kind: str, rank: int) -> int | None:
    if kind.endswith("Transpose"):
        return rank - 1
    if kind != "EinsumDense":
        return rank - 2 if rank > 1 else None
    inputs, kernel, output = einsum_operands(layer.equation)
    summed = [letter for letter in inputs if letter in kernel and letter not in output]
    return kernel.index(summed[-1]) if summed else None


def _output_axes(layer: Any, rank: int) -> tuple[int, ...]:
    if _kind(layer) == "EinsumDense":
        _, kernel, output = einsum_operands(layer.equation)
        return tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    return (rank - 2,) if _kind(layer).endswith("Transpose") else (rank - 1,)


def _kernel(layer: Any, name: str) -> Any | None:
    """A kernel of a layer as a variable; None where it has none, or was never called, so that it has no weights yet."""
    return _as_variable(getattr(layer, name, None)) if layer.built else None


def _as_variable(value: Any) -> Any | None:
    """`value` if it is a floating-point variable. A kernel under LoRA is a tensor, a quantized one holds integers."""
    if not hasattr(value, "assign"):
        return None
    return value if "float" in str(getattr(value.dtype, "name", value.dtype)) else None


def _own_name(variable: Any) -> str:
    return variable.name.split("/")[-1].split(":")[0]


def unused(name: str, taken: Container[str]) -> str:
    """`name`, or `name` with the first free number where it is taken."""
    numbered = (f"{name}_{number}" if number else name for number in itertools.count())
    return next(each for each in numbered if each not in taken)
