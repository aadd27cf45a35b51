"""Whether a budget of time holds: how long pruned models take that were asked to be twice as fast as the dense ones."""

from __future__ import annotations

import functools
import importlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from aimp_tf.config.latency import LATENCY_FORMATS, Latency
from aimp_tf.exporting.timing import TimingProcess, write_for
from aimp_tf.pruning import prune
from benchmarks.networks import SHAPE, compiled_model, made_up_images
from benchmarks.side_by_side import spread_text, tell


def _application(name: str, size: int) -> Any:
    """A network of keras.applications for images of a size."""
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy")
    return model


# Of smaller ones, a call of a SavedModel takes most of its time whatever is left of them.
_NETWORKS: Mapping[str, Callable[[], Any]] = {
    "wide_resnet_20": lambda: compiled_model("wide_resnet_20", importlib.import_module("keras")),
    "VGG16 at 32 x 32": functools.partial(_application, "VGG16", 32),
    "MobileNetV2 at 160 x 160": functools.partial(_application, "MobileNetV2", 160),
}
_SPEEDUP = 2.0


def run(repetitions: int, networks: Mapping[str, Callable[[], Any]] = _NETWORKS) -> dict[str, Any]:
    """Prunes networks in both formats until a call is twice as fast, on made-up images, and times them once more.

    Dense and small model are timed in turn in a fresh process, on one thread with one example.

    Args:
        networks: Name -> function that gives the compiled model.

    Returns:
        Network and format -> "dense_milliseconds"; "asked" and "measured", what the run was asked for and found, as
        fractions of the dense time; "seconds", how long the run took; and "ratio", what was then timed, as a fraction
        of what was asked, by repetition.
    """
    figures: dict[str, Any] = {}
    for name, make in networks.items():
        for format_ in LATENCY_FORMATS:
            title = f"{name}, {format_}"
            figures[title] = _measure(repetitions, make, Latency(speedup=_SPEEDUP, format=format_))
            tell(f"{title}: {figures[title]}")
    lines = [
        f"{title:38}dense {of['dense_milliseconds']:7.2f} ms, found {of['measured']:.3f} of it in {of['seconds']:.0f} "
        f"s; timed again, {spread_text(of['ratio'])} of what was asked"
        for title, of in figures.items()
    ]
    return {**figures, "table": "\n".join(lines)}


def _measure(repetitions: int, make: Callable[[], Any], latency: Latency) -> dict[str, Any]:
    model, dense = make(), make()
    shape = tuple(model.input_shape[1:]) or SHAPE
    begun_at = time.perf_counter()
    result = prune(
        model,
        *made_up_images(64, shape),
        granularity="channel",
        budget=latency,
        rate=0.3,
        epochs=1,
        batch_size=32,
        verbose=0,
        seed=0,
    )
    seconds, budget = time.perf_counter() - begun_at, result.budget
    assert budget is not None
    medians = medians_of_calls(latency, dense, result.compact(), repetitions)
    return {
        "dense_milliseconds": budget.dense / 1000,
        "asked": budget.asked / budget.dense,
        "measured": budget.kept / budget.dense,
        "ratio": [_SPEEDUP * small / dense for dense, small in medians],
        "seconds": seconds,
    }


def medians_of_calls(latency: Latency, dense: Any, small: Any, repetitions: int) -> list[tuple[float, float]]:
    """The median seconds of a call of two models, exported and timed in turn as a `Latency` says, so many times."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("dense", "small")]
        for model, path in zip((dense, small), paths, strict=True):
            write_for(latency, model, path)
        timed = [TimingProcess(latency).seconds_in_turn(*paths) for _ in range(repetitions)]
    return [(statistics.median(of_dense), statistics.median(of_small)) for of_dense, of_small in timed]
