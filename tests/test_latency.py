"""Budgets of time. But for one test, the number of weights stands for how long a call takes, for no clock is exact.

The networks and numbers are made up, or digits: mechanics only.
"""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_channels import images_of, residual

import aimp_tf
from aimp_tf.exporting import clock
from aimp_tf.selection.search import CLOSE, SAFE, nearly_largest

HALF = {
    "granularity": "channel",
    "budget": aimp_tf.Latency(speedup=1.6, format="tflite"),
    "rate": 0.25,
    "verbose": 0,
    "seed": 1,
}


@pytest.fixture
def sizes(monkeypatch):
    """The numbers of weights of the models that were looked at, in place of times."""
    seen, by_path, write = [], {}, clock.write_for

    def write_for(latency, model, path):
        by_path[path] = model.count_params()
        write(latency, model, path)

    def seconds_in_turn(latency, *paths):
        seen.extend(by_path[path] for path in paths)
        return [[by_path[path] / 1e6] for path in paths]

    monkeypatch.setattr(clock, "write_for", write_for)
    monkeypatch.setattr(clock, "seconds_in_turn", seconds_in_turn)
    return seen


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, r"either as milliseconds .* got milliseconds=None, speedup=None. Write Latency\(millis"),
        ({"milliseconds": 5, "speedup": 2}, ValueError, "got milliseconds=5, speedup=2"),
        ({"milliseconds": 0}, ValueError, "milliseconds of a Latency must be above 0; got 0"),
        ({"speedup": 1}, ValueError, "speedup of a Latency must be above 1; got 1"),
        ({"speedup": float("inf")}, ValueError, "must be above 1; got inf"),
        ({"speedup": "2x"}, TypeError, "speedup of a Latency must be a number; got '2x'"),
        ({"speedup": 2, "format": "lite"}, ValueError, "one of 'saved_model', 'tflite'; got 'lite'.*'tflite'"),
        ({"speedup": 2, "batch_size": 1.5}, TypeError, "batch_size of a Latency must be a whole number; got 1.5"),
        ({"speedup": 2, "threads": 0}, ValueError, "threads of a Latency must be at least 1; got 0"),
    ],
)
def test_a_latency_is_checked_when_it_is_made(fields, error, message):
    with pytest.raises(error, match=message):
        aimp_tf.Latency(**fields)


def test_what_a_call_may_take():
    assert aimp_tf.Latency(speedup=3).microseconds(10_000) == 3333
    assert aimp_tf.Latency(milliseconds=2.5).microseconds(10_000) == 2500
    config = aimp_tf.PruningConfig(epochs=1, granularity="channel", budget=aimp_tf.Latency(milliseconds=2.5))
    assert config.fraction_to_go(10_000) == 0.75


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_sparsity": 0.5}, "says by itself how much is to go, so target_sparsity must be left out; got 0.5"),
        ({"budget": "latency"}, r"budget must be one of .*, or an aimp_tf.Latency; got 'latency'. Write budget=aimp"),
        ({"granularity": "unstructured"}, "granularity='unstructured' has no use for budget=Latency"),
        ({"method": "gradual", "rate": 0.2}, "method='gradual' prunes a hundred times in a training"),
    ],
)
def test_what_does_not_go_with_a_latency_is_refused(fields, message):
    fields = {name: value for name, value in {**HALF, **fields}.items() if name != "verbose"}
    with pytest.raises(ValueError, match=message):
        aimp_tf.PruningConfig(epochs=1, **fields).validate()


def test_wrap_takes_no_text_for_a_time(K):
    with pytest.raises(ValueError, match=r"Write budget=aimp_tf.Latency\(milliseconds=5\)"):
        aimp_tf.wrap(residual(K), granularity="channel", budget="latency")


def test_a_config_with_a_latency_is_plain_data():
    config = aimp_tf.PruningConfig(epochs=1, granularity="channel", budget=HALF["budget"])
    assert json.loads(config.to_json())["budget"] == {
        "milliseconds": None,
        "speedup": 1.6,
        "format": "tflite",
        "batch_size": 1,
        "threads": 1,
    }
    assert aimp_tf.PruningConfig.from_json(config.to_json()) == config


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    noise=st.lists(st.integers(0, 12), min_size=61, max_size=61),
    share=st.floats(0, 1.1),
)
def test_the_search_by_a_clock_ends_within_the_limit(steps, noise, share):
    guide = np.cumsum([50, *steps])
    times = guide + np.array(noise[: len(guide)])  # Which do not rise steadily.
    limit, looks = int(times[0] + share * (times[-1] - times[0])), []
    if limit < times[0]:
        return
    found = nearly_largest(
        lambda count: looks.append(count) or int(times[count]), lambda count: int(guide[count]), limit, len(steps)
    )
    assert times[found] <= (limit if found in (0, len(steps)) else SAFE * limit) and len(looks) <= 10
    near = times[found] >= CLOSE * limit or found == len(steps)
    assert near or times[found + 1] > SAFE * limit or len(looks) == 10


def test_a_run_keeps_to_the_time_of_a_call(K, digits, sizes, tmp_path):
    x, y = images_of(digits)
    result = aimp_tf.prune(residual(K), x, y, epochs=1, workdir=tmp_path / "run", **HALF)
    budget = result.budget
    assert (budget.counted, budget.dense, budget.asked) == ("microsecond", sizes[0], int(sizes[0] / 1.6))
    assert CLOSE * budget.asked <= budget.kept <= SAFE * budget.asked
    assert [round_.budget.asked for round_ in result.rounds] == [
        budget.dense,
        round(0.75 * budget.dense),
        budget.asked,
    ]
    # What was timed is what comes out.
    assert result.compact().count_params() == budget.kept
    assert "a call of the TFLite file with 1 example and 1 thread, " in result.summary()
    assert result.config.target_sparsity is None and result.config.budget == HALF["budget"]
    (page,) = result.report(tmp_path / "page.html")
    assert "a call of the TFLite file with 1 example and 1 thread" in page.read_text()
    # And all of it is known from now on.
    known = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert known["dense"] == sizes[0] and budget.kept in known["by_counts"].values()
    looked_at = len(sizes)
    again = aimp_tf.prune(residual(K), x, y, epochs=1, workdir=tmp_path / "run", **HALF)
    assert len(sizes) == looked_at and again.budget == budget


def test_a_run_that_goes_on_takes_times_as_they_were(K, digits, sizes, tmp_path, monkeypatch):
    x, y = images_of(digits, 128)

    class Stop(K.callbacks.Callback):
        def __init__(self, after):
            super().__init__()
            self.left = after

        def on_epoch_end(self, epoch, logs=None):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    whole = aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "whole", **HALF)
    with pytest.raises(KeyboardInterrupt):  # In the second round, of which the masks are set and not saved.
        aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "run", callbacks=[Stop(2)], **HALF)
    table = (tmp_path / "run" / "latency.json").read_text()
    before, seconds = set(json.loads(table)["by_counts"]), clock.seconds_in_turn
    # Another machine, where all takes twice as long; but for what is known, it is as before.
    monkeypatch.setattr(clock, "seconds_in_turn", lambda *arguments: [[2 * value] for (value,) in seconds(*arguments)])
    result = aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "run", **HALF)
    assert before < set(json.loads((tmp_path / "run" / "latency.json").read_text())["by_counts"])
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(result.masks[path], mask)
    for one, other in zip(whole.model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    known = (tmp_path / "run" / "latency.json").read_text()
    with pytest.raises(ValueError, match="fewest microseconds"):  # It would have begun anew there.
        fields = {**HALF, "budget": aimp_tf.Latency(speedup=99, format="tflite")}
        aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "run", overwrite=True, **fields)
    assert (tmp_path / "run" / "latency.json").read_text() == known
    (tmp_path / "run" / "latency.json").write_text(table.replace("1", "2"))
    with pytest.raises(ValueError, match="latency.json is damaged: .* Remove the file, and the same call times anew"):
        aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "run", **HALF)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": aimp_tf.Latency(speedup=1000, format="tflite")}, "The fewest microseconds that can be left are"),
        ({"budget": aimp_tf.Latency(milliseconds=9e9)}, "takes .* ms, and may take 9e.09 ms: nothing need go"),
    ],
)
def test_times_that_cannot_be_had_are_refused_before_any_training(fields, message, K, digits, sizes, tmp_path):
    model = residual(K)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        aimp_tf.prune(model, *images_of(digits, 64), epochs=1, workdir=tmp_path / "run", **{**HALF, **fields})
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_exported_is_refused_before_any_training(K, digits, sizes):
    class Determinant(K.layers.Layer):
        def call(self, x):
            return x + tf.linalg.det(tf.eye(3) * tf.reduce_sum(x))

        def compute_output_shape(self, shape):
            return shape

    image = K.Input((8, 8, 1))
    x = K.layers.Conv2D(8, 3, name="first")(image)
    x = K.layers.Conv2D(8, 3, name="second")(x)
    model = K.Model(image, Determinant()(K.layers.Dense(10)(K.layers.Flatten()(x))))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="cannot be converted to TFLite"):
        aimp_tf.prune(model, *images_of(digits, 64), epochs=1, **HALF)


def test_a_plan_times_the_dense_model(K, sizes):
    fields = {name: value for name, value in HALF.items() if name != "verbose"}
    plan = aimp_tf.plan(residual(K), epochs=2, **fields)
    assert plan.weights == sizes[0] and plan.rounds[-1].kept == int(sizes[0] / 1.6)
    assert "microseconds kept" in str(plan)


@pytest.mark.slow
def test_half_precision_is_timed_as_what_comes_out_of_it(K, digits, sizes, monkeypatch):
    x, y = images_of(digits, 64)
    policies, write = [], clock.write_for

    def write_for(latency, model, path):
        write(latency, model, path)
        details = tf.lite.Interpreter(os.fspath(path)).get_tensor_details()
        policies.append({detail["dtype"] for detail in details} & {np.float16, tf.bfloat16.as_numpy_dtype})

    monkeypatch.setattr(clock, "write_for", write_for)
    result = aimp_tf.prune(residual(K), x, y, epochs=1, mixed_precision="mixed_bfloat16", **HALF)
    assert len(policies) > 2 and not any(policies)
    assert result.compact().count_params() == result.budget.kept


@pytest.mark.slow
def test_two_replicas_a_dense_baseline_and_a_pruned_model(K, strategy, digits, sizes, tmp_path):
    x, y = images_of(digits, 64)
    with strategy.scope():
        model = residual(K)
    first = aimp_tf.prune(model, x, y, total_epochs=4, dense_baseline=True, **HALF)
    assert first.epochs == 4 and first.outcome.dense_epochs == first.config.epochs
    assert first.budget.kept <= first.budget.asked
    further = {**HALF, "budget": aimp_tf.Latency(speedup=2.2, format="tflite")}
    again = aimp_tf.prune(first.model, x, y, epochs=1, masks="zeros", **further)
    assert again.rounds[0].budget.kept > again.budget.kept <= again.budget.asked
    assert all((mask <= first.masks[path]).all() for path, mask in again.masks.items())


@pytest.mark.slow
def test_a_loop_of_ones_own(K, digits, sizes):
    x, y = images_of(digits, 64)
    config = aimp_tf.PruningConfig(epochs=1, granularity="channel", budget=HALF["budget"], rate=0.25)
    masked, pruning = aimp_tf.wrap(residual(K), config), aimp_tf.GlobalMagnitudePruning(config)
    while not pruning.finished:
        masked.fit(x, y, epochs=pruning.next_epochs, callbacks=[pruning], verbose=0)
    assert pruning.rounds[-1].budget.kept <= int(sizes[0] / 1.6)
    aimp_tf.strip(masked)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_calls_are_timed_in_a_process_of_their_own(K, format, digits, tmp_path):
    """How long they take is not tested here: only that what is told is what was timed."""
    x, y = images_of(digits, 64)
    latency = aimp_tf.Latency(speedup=1.01, format=format, batch_size=3, threads=2)
    fields = {**HALF, "budget": latency, "rate": 0.9, "min_layer_survivors": 2}
    result = aimp_tf.prune(
        residual(K, 32), np.repeat(np.repeat(x, 4, 1), 4, 2), y, epochs=1, workdir=tmp_path, **fields
    )
    times = json.loads(pathlib.Path(tmp_path / "latency.json").read_text())
    assert result.budget.dense == times["dense"] > 20
    assert result.budget.kept in times["by_counts"].values()
    assert result.budget.kept <= result.budget.asked == int(times["dense"] / 1.01)
