"""Budgets of time. But for one test, the number of weights stands for how long a call takes, for no clock is exact.

The networks and numbers are made up, or digits: mechanics only.
"""

import dataclasses
import fractions
import gc
import json
import os
import pathlib
import random
import subprocess

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from test_channels import images_of, residual

import aimp_tf
from aimp_tf.exporting import timing
from aimp_tf.exporting.timing import TimingProcess
from aimp_tf.graph.groups import channel_groups
from aimp_tf.selection.channels import CLOSE, SAFE, nearly_largest
from aimp_tf.selection.planning import fraction_to_go

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
    seen, by_path, write = [], {}, timing.write_for

    def write_for(latency, model, path):
        by_path[path] = model.count_params()
        write(latency, model, path)

    def seconds_in_turn(process, *paths):
        seen.extend(by_path[path] for path in paths)
        return [[by_path[path] / 1e6] for path in paths]

    monkeypatch.setattr(timing, "write_for", write_for)
    monkeypatch.setattr(TimingProcess, "seconds_in_turn", seconds_in_turn)
    return seen


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, r"either as milliseconds .* got milliseconds=None, speedup=None. Write Latency\(millis"),
        ({"milliseconds": 5, "speedup": 2}, ValueError, "got milliseconds=5, speedup=2"),
        ({"milliseconds": 0}, ValueError, "milliseconds of a Latency must be above 0; got 0"),
        ({"speedup": 1}, ValueError, "speedup of a Latency must be above 1; got 1"),
        ({"speedup": float("inf")}, ValueError, "must be above 1; got inf"),
        ({"speedup": "2x"}, TypeError, "speedup of a Latency must be a number above 1; got '2x'"),
        ({"speedup": 2, "format": "lite"}, ValueError, "one of 'saved_model', 'tflite'; got 'lite'.*'tflite'"),
        ({"speedup": 2, "batch_size": 1.5}, TypeError, "batch_size of a Latency must be a whole number; got 1.5"),
        ({"speedup": 2, "threads": 0}, ValueError, "threads of a Latency must be at least 1; got 0"),
        ({"speedup": 2, "format": ["tflite"]}, ValueError, "one of 'saved_model', 'tflite'; got"),
    ],
)
def test_a_latency_is_checked_when_it_is_made(fields, error, message):
    with pytest.raises(error, match=message):
        aimp_tf.Latency(**fields)


def test_what_a_call_may_take():
    assert aimp_tf.Latency(speedup=3).microseconds(10_000) == 3333
    assert aimp_tf.Latency(milliseconds=2.5).microseconds(10_000) == 2500
    config = aimp_tf.PruningConfig(epochs=1, granularity="channel", budget=aimp_tf.Latency(milliseconds=2.5))
    assert fraction_to_go(config, 10_000) == 0.75


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_sparsity": 0.5}, "says by itself how much is to go, so target_sparsity must be left out; got 0.5"),
        ({"budget": "latency"}, r"budget must be one of .*, or an aimp_tf.Latency; got 'latency'. Write budget=aimp"),
        ({"granularity": "unstructured"}, "granularity='unstructured' has no use for budget=Latency"),
        ({"method": "gradual", "rate": 0.2}, "method='gradual' ranks many times within a training"),
        ({"stop_mask_distance": 0.1, "epochs": 9}, "stop_mask_distance ranks many times within a training"),
        ({"method": "dense", "rate": 0.2}, "no use for .*budget=Latency.* what it does not use; and give target_spars"),
    ],
)
def test_what_does_not_go_with_a_latency_is_refused(fields, message):
    fields = {name: value for name, value in {**HALF, **fields}.items() if name != "verbose"}
    with pytest.raises(ValueError, match=message):
        aimp_tf.PruningConfig(**{"epochs": 1, **fields}).validate()


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
    with pytest.raises(TypeError, match="A Latency has no field 'speed_up'. Did you mean 'speedup'. Its fields are m"):
        aimp_tf.PruningConfig.from_json(config.to_json().replace("speedup", "speed_up"))
    # Numbers of all kinds are those that JSON has.
    latency = aimp_tf.Latency(speedup=fractions.Fraction(8, 5), batch_size=np.int64(2))
    assert json.dumps(dataclasses.asdict(latency)) and latency == aimp_tf.Latency(speedup=1.6, batch_size=2)


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


def test_a_search_that_meets_a_jump_goes_on_by_halves():
    """Where the time rises at once, and hardly before or after, the guide tells nothing."""
    found = nearly_largest(lambda count: 3000 if count < 100 else 8000 + count, lambda count: count, 7900, 1000)
    assert 50 < found < 100


@pytest.mark.slow
def test_a_run_keeps_to_the_time_of_a_call(K, digits, sizes, tmp_path):
    x, y = images_of(digits)
    result = aimp_tf.prune(residual(K), x, y, epochs=1, workdir=tmp_path / "run", **HALF)
    budget = result.budget
    assert (budget.counted, budget.dense, budget.asked) == ("microsecond", sizes[0], int(sizes[0] / 1.6))
    # A channel of so small a network is some hundredths of it.
    assert 0.85 * budget.asked <= budget.kept <= SAFE * budget.asked
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


@pytest.mark.slow
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
    before, seconds = set(json.loads(table)["by_counts"]), TimingProcess.seconds_in_turn
    # Another machine, where all takes twice as long; but for what is known, it is as before.
    monkeypatch.setattr(
        TimingProcess, "seconds_in_turn", lambda *arguments: [[2 * value] for (value,) in seconds(*arguments)]
    )
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
    with pytest.raises(
        ValueError, match="latency.json is missing or damaged: .* Bring the file back, or pass overwrit"
    ):
        aimp_tf.prune(residual(K), x, y, epochs=2, workdir=tmp_path / "run", **HALF)
    (tmp_path / "run" / "latency.json").unlink()
    with pytest.raises(ValueError, match="latency.json is missing or damaged"):
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


def test_what_cannot_be_timed_is_refused(K, sizes):
    layers = K.layers

    def plan(inputs, *hidden, **latency):
        x = inputs
        for layer in (*hidden, layers.Dense(8), layers.Dense(4)):
            x = layer(x)
        latency = aimp_tf.Latency(format="tflite", **(latency or {"speedup": 2}))
        return aimp_tf.plan(K.Model(inputs, x), epochs=1, granularity="channel", budget=latency)

    with pytest.raises(
        ValueError, match=r"of shape \(None, None, None, 3\) and dtype float32; a Latency is of calls wit"
    ):
        plan(K.Input((None, None, 3)), layers.Conv2D(8, 3), layers.GlobalAveragePooling2D())
    with pytest.raises(ValueError, match="takes 76 microseconds: too little to be timed, for which it must be 100"):
        plan(K.Input((4,)))
    with pytest.raises(ValueError, match="takes 0.[0-9]* ms, and cannot take next to none. Ask for more"):
        plan(K.Input((40,)), milliseconds=0.0001)


def test_timing_leaves_what_is_drawn_as_it_is(K, sizes):
    random.seed(1)
    np.random.seed(1)
    expected = random.getstate(), np.random.get_state()[1].tolist()
    fields = {name: value for name, value in HALF.items() if name != "verbose"}
    model = residual(K)
    random.seed(1)
    np.random.seed(1)
    aimp_tf.plan(model, epochs=2, **fields)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected and len(sizes) > 1


def test_an_export_that_was_interrupted_is_done_again(K, sizes, monkeypatch):
    write, interrupted = timing.write_for, []

    def write_for(latency, model, path):
        if not interrupted:
            interrupted.append(path)
            raise KeyboardInterrupt
        write(latency, model, path)

    monkeypatch.setattr(timing, "write_for", write_for)
    groups = channel_groups(residual(K))
    by_time = dataclasses.replace(groups.units, budget="latency")
    units = timing.with_clock(by_time, HALF["budget"], residual(K), groups.variables)
    with pytest.raises(KeyboardInterrupt):
        units.total()
    assert units.total() == sizes[0]


def test_a_fit_without_the_callback_is_told(K, digits):
    masked = aimp_tf.wrap(residual(K), granularity="channel", budget=HALF["budget"])
    masked.fit(*images_of(digits, 64), verbose=0)
    with pytest.raises(RuntimeError, match="nothing was pruned, for no GlobalMagnitudePruning was among the callbacks"):
        aimp_tf.strip(masked)


def test_a_plan_times_the_dense_model(K, sizes):
    fields = {name: value for name, value in HALF.items() if name != "verbose"}
    plan = aimp_tf.plan(residual(K), epochs=2, **fields)
    assert plan.weights == sizes[0] and plan.rounds[-1].kept == int(sizes[0] / 1.6)
    assert "microseconds kept" in str(plan)


@pytest.mark.slow
def test_half_precision_is_timed_as_what_comes_out_of_it(K, digits, sizes, monkeypatch):
    x, y = images_of(digits, 64)
    policies, write = [], timing.write_for

    def write_for(latency, model, path):
        write(latency, model, path)
        details = tf.lite.Interpreter(os.fspath(path)).get_tensor_details()
        policies.append({detail["dtype"] for detail in details} & {np.float16, tf.bfloat16.as_numpy_dtype})

    monkeypatch.setattr(timing, "write_for", write_for)
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
def test_a_file_for_one_example_takes_no_more(K):
    model = K.Sequential([K.Input((6, 3)), K.layers.LSTM(8), K.layers.Dense(8), K.layers.Dense(2)])
    four = aimp_tf.Latency(speedup=2, format="tflite", batch_size=4)
    with pytest.raises(
        RuntimeError, match="it failed: the TFLite file takes batches of 1 alone, which batch_size must be"
    ):
        aimp_tf.plan(model, epochs=1, granularity="channel", budget=four)


@pytest.mark.slow
def test_a_process_times_many_models_and_is_replaced_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "_ENOUGH_SECONDS", 0.1)
    model = tf_keras.Sequential([tf_keras.Input((64,)), tf_keras.layers.Dense(64)])
    latency = aimp_tf.Latency(speedup=2, format="tflite")
    timing.write_for(latency, model, tmp_path / "model")
    begun, popen = [], subprocess.Popen

    def begin(*arguments, **settings):
        begun.append(popen(*arguments, **settings))
        return begun[-1]

    monkeypatch.setattr(timing.subprocess, "Popen", begin)
    process = timing.TimingProcess(latency)
    one, other = process.seconds_in_turn(tmp_path / "model", tmp_path / "model")
    assert len(one) >= 30 and len(other) >= 30 and all(0 < seconds < 10 for seconds in one + other)
    assert len(process.seconds_in_turn(tmp_path / "model")) == 1 and len(begun) == 1
    begun[0].kill()
    begun[0].wait()
    assert len(process.seconds_in_turn(tmp_path / "model")) == 1 and len(begun) == 2
    with pytest.raises(RuntimeError, match="There is no time of a call of the TFLite file .*, for it failed: "):
        process.seconds_in_turn(tmp_path / "nothing")
    assert len(begun) == 3 and begun[1].poll() is not None
    monkeypatch.setattr(timing, "_IDLE_SECONDS", 0.0)
    process.seconds_in_turn(tmp_path / "model")
    assert begun[-1].wait(60) == 0  # Nothing more was asked.
    monkeypatch.setattr(timing, "_IDLE_SECONDS", 60.0)
    process.seconds_in_turn(tmp_path / "model")
    assert begun[-1].poll() is None
    del process
    gc.collect()
    assert begun[-1].poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_calls_are_timed_in_a_process_of_their_own(K, format, digits, tmp_path, monkeypatch):
    """How long they take is not tested here: only that what is told is what was timed. With few channels, this network
    takes so much less that it shows on a busy machine, too."""
    monkeypatch.setattr(timing, "_ENOUGH_SECONDS", 0.5)
    x, y = images_of(digits, 64)
    layers = K.layers
    chain = [*(layers.Conv2D(64, 3, activation="relu") for _ in range(3)), layers.GlobalAveragePooling2D()]
    model = K.Sequential([K.Input((24, 24, 1)), *chain, layers.Dense(10)])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    latency = aimp_tf.Latency(speedup=1.01, format=format, batch_size=32, threads=2)
    fields = {**HALF, "budget": latency, "rate": 0.9, "min_layer_survivors": 2}
    result = aimp_tf.prune(model, np.repeat(np.repeat(x, 3, 1), 3, 2), y, epochs=1, workdir=tmp_path, **fields)
    times = json.loads(pathlib.Path(tmp_path / "latency.json").read_text())
    assert result.budget.dense == times["dense"] > 20
    assert result.budget.kept in times["by_counts"].values()
    assert result.budget.kept <= result.budget.asked == int(times["dense"] / 1.01)
