"""That benchmarks compare what is comparable. What they measure is for tools/benchmark.py to say, not for tests."""

import subprocess
import sys
import time

import numpy as np
import pytest

from aimp_tf.benchmarks import gpu
from aimp_tf.benchmarks.side_by_side import spread_text, time_in_turn, timing


def test_sides_are_timed_in_turn():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or [np.ones(2)] for name in ("a", "b")}
    seconds = time_in_turn(sides, repetitions=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value > 0 for values in seconds.values() for value in values)


@pytest.mark.parametrize("other", [[np.array([1.0, 2.0])], [np.ones(2), np.ones(2)], [np.ones(3)]])
def test_what_does_not_compute_the_same_is_not_compared(other):
    with pytest.raises(RuntimeError, match="'a' and 'b' did not compute the same result in repetition 1"):
        time_in_turn({"a": lambda: [np.ones(2)], "b": lambda: other}, repetitions=1)
    nothing_the_same = {"a": lambda: [np.ones(2)], "b": lambda: [np.ones(2)]}
    with pytest.raises(RuntimeError):
        time_in_turn(nothing_the_same, repetitions=1, same=lambda here, there: False)


def test_calls_of_methods_are_timed_and_left_as_they_were():
    class Sleeper:
        def sleep(self, seconds):
            time.sleep(seconds)
            return seconds

    before = Sleeper.sleep
    with timing((Sleeper, "sleep")) as seconds:
        assert Sleeper().sleep(0.01) == Sleeper().sleep(seconds=0.01) == 0.01
    assert list(seconds) == ["Sleeper.sleep"] and seconds["Sleeper.sleep"] >= 0.02
    assert Sleeper.sleep is before


def test_spread():
    assert spread_text([3.0, 1.0, 2.0], " s") == "2 s (1 to 3)"


def test_the_benchmark_of_checkpoints_compares_runs_with_the_same_end():
    """On a small network, in a process of its own, for it makes all operations deterministic."""
    program = """
from aimp_tf.benchmarks import checkpoints
figures = checkpoints.run(1, "small_cnn", steps_per_epoch=1)
print(figures["table"])
assert 0 < figures["saving_share"] < 1 and figures["ratio"] > 0 and figures["export_seconds"] > 0
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small_cnn, 10 epochs of 1 steps, 1 times each")
    assert "saving, share of the run" in done.stdout


def test_the_benchmark_of_gpus_on_a_cpu(K, monkeypatch):
    """Whether it runs, on a small network: what it says of a CPU is of no use."""
    monkeypatch.setattr(gpu, "_SHAPES", {"small_cnn": (4, (8, 8, 1), 3)})
    monkeypatch.setattr(gpu, "resolve_policy", lambda setting: "mixed_bfloat16")
    before = K.mixed_precision.global_policy().name
    figures = gpu.run(1, ["small_cnn"], [K.__name__], steps=2, device="CPU")
    assert K.mixed_precision.global_policy().name == before
    lines = figures["table"].splitlines()
    measured = figures[f"small_cnn ({K.__name__})"]
    assert set(measured) == {"step in float32", "step in mixed_bfloat16", "run of 4 epochs"} and len(lines) == 10
    for sides in measured.values():
        (first, one), (second, other), (_, ratio) = sides.items()
        assert ratio == pytest.approx(other / one)
