"""That benchmarks compare what is comparable. What they measure is for tools/benchmark.py to say, not for tests."""

import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from aimp_tf.config import PruningConfig
from aimp_tf.exporting.saved_model import write_saved_model
from aimp_tf.training.live_rounds import LiveNetwork
from benchmarks import (
    channel_peers,
    channels,
    compact_rounds,
    coverage,
    coverage_package,
    criteria,
    end_to_end,
    gpu,
    inference,
    inference_worker,
    layers,
    memory,
    peers,
    ranking,
    rounds,
    step,
)
from benchmarks import latency as benchmark_of_latency
from benchmarks.coverage_kernels import Kernel, draw, kernels_of
from benchmarks.coverage_networks import Network, inputs_of, networks
from benchmarks.coverage_oracle import truths
from benchmarks.side_by_side import compare, spread_text, time_in_turn, timing
from experiments import call_in_fresh_process, environment_of_tools
from experiments.experiment import Experiment

pytestmark = pytest.mark.slow


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
    with timing(Sleeper, "sleep") as seconds:
        assert Sleeper().sleep(0.01) == Sleeper().sleep(seconds=0.01) == 0.01
    assert len(seconds) == 2 and min(seconds) >= 0.01
    assert Sleeper.sleep is before


def test_spread():
    assert spread_text([3.0, 1.0, 2.0], " s") == "2 s (1 to 3)"


def test_a_comparison():
    figures, lines = compare("both", {"a": [2.0, 4.0, 1.0], "b": [3.0, 4.0, 3.0]}, "a", per=2)
    assert figures == {
        "a": {"seconds": 1.0},
        "b": {"seconds": 1.5, "ratio": 1.5, "lowest": 1.0, "highest": 3.0},
    }
    assert lines[1].split() == "both b 1500 ms (1500 to 2000) x 1.5 (1 to 3) of a".split()


def test_the_benchmark_of_ranking(monkeypatch):
    figures = ranking.run(1, count=3001, tensors=4, counts=(1000, 2000))
    assert figures["sides"]["NumPy partition"]["ratio"] > 0 and list(figures["seconds_by_count"]) == ["1000", "2000"]
    assert "1,000,000,000" in figures["table"] and "extrapolated from 2,000" in figures["table"]
    monkeypatch.setattr(ranking, "keep_largest", lambda weights, masks, keep: masks)
    with pytest.raises(RuntimeError, match="'aimp_tf' and 'NumPy partition' did not compute the same result"):
        ranking.run(1, count=3001, tensors=4, counts=(1000,))


def test_the_memory_of_ranking_is_measured():
    assert 60e6 < ranking._extra_memory(lambda: np.ones(8_000_000)) < 100e6


def test_the_benchmark_of_steps(K, monkeypatch):
    figures = step.run(1, {"lenet_300_100": 2}, [K.__name__])
    sides = ["plain", "masked", *(["tfmot"] if K.__name__ == "tf_keras" else [])]
    assert list(figures[f"lenet_300_100 ({K.__name__})"]) == sides and len(figures["table"].splitlines()) == len(sides)
    monkeypatch.setattr(step, "wrap", lambda model: model.set_weights([2 * w for w in model.get_weights()]) or model)
    with pytest.raises(RuntimeError, match="'plain' and 'masked' did not compute the same result"):
        step.run(1, {"lenet_300_100": 1}, [K.__name__])


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_rounds(K, monkeypatch):
    figures = rounds.run(1, "lenet_300_100", [K.__name__], steps_per_epoch=1)
    (measured,) = (value for name, value in figures.items() if name != "table")
    fits, prune = measured["gap_seconds"].values()
    assert measured["added_seconds"] == prune - fits and "nothing traced again" in figures["table"]
    monkeypatch.setattr(rounds, "_prune", lambda *arguments: [rounds._fit(*arguments) for _ in range(2)])
    with pytest.raises(RuntimeError, match="prune: the training step was traced again after the first"):
        rounds.run(1, "lenet_300_100", [K.__name__], steps_per_epoch=1)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_memory(K, monkeypatch):
    figures = memory.run(1, (8, 16, 3), [K.__name__])
    measured = figures[f"MLP ({K.__name__})"]
    assert list(measured) == ["fit", "prune", "prune, weights"] and len(figures["table"].splitlines()) == 3
    fit, prune, rewound = (side["peak_bytes"] for side in measured.values())
    assert 5e7 < fit < 3e9 and measured["fit"]["ratio"] == 1
    assert measured["prune"]["ratio"] == (prune - (8 * 16 + 16 * 3)) / fit
    assert measured["prune, weights"]["ratio"] == (rewound - 176 - 4 * (176 + 16 + 3)) / fit
    epochs = iter([2, 3, 3])
    monkeypatch.setattr(memory, "call_in_fresh_process", lambda function, **arguments: {"epochs": next(epochs)})
    with pytest.raises(RuntimeError, match="the sides did not train as many epochs"):
        memory.run(1, (8, 16, 3), [K.__name__])


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_whole_runs(K, monkeypatch):
    figures = end_to_end.run(1, None, "lenet_300_100", [K.__name__], dataset="digits")
    assert list(figures[f"lenet_300_100 ({K.__name__})"]) == ["one fit", "fits of an epoch", "array_dataset", "prune"]
    with pytest.raises(RuntimeError, match="training accuracy of 0.10: it did not train"):
        end_to_end._epochs_if_learnt(3, 0.1, classes=10)


def test_the_benchmark_of_peers(monkeypatch):
    experiment = Experiment("digits", "lenet_300_100", PruningConfig(0.9, rate=0.7, epochs=4), batch_size=128)
    figures = peers.run(1, None, experiment)
    sides = [name for name in figures if name not in ("epochs", "table")]
    ours = ["plain fit (keras)", "AIMP (keras)", "gradual (keras)"]
    assert sides[:6] == [*ours, "plain fit (tf_keras)", "AIMP (tf_keras)", "tfmot (tf_keras)"]
    assert figures["epochs"] == 2 * 1 + 4 and str(figures["epochs"]) in figures["table"]
    for name in sides[:6]:
        assert figures[name]["sparsity"] == pytest.approx([0.0 if name.startswith("plain") else 0.9], abs=1e-4)
        assert figures[name]["accuracy"][0] > 0.5 and figures[name]["seconds"][0] > 0
    assert ("PQuantML" in str(sides)) != ("PQuantML is not installed" in figures["table"])
    plain = figures["plain fit (tf_keras)"]["seconds"][0]
    assert figures["tfmot (tf_keras)"]["ratio"] == [figures["tfmot (tf_keras)"]["seconds"][0] / plain]


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_compact_rounds(K, monkeypatch):
    stages, prune = [], compact_rounds._prune
    monkeypatch.setattr(compact_rounds, "_prune", lambda *data: stages or stages.extend(prune(*data)) or stages)

    def run():
        return compact_rounds.run(1, None, {"lenet_300_100": (300, 0.1, 2)}, [K.__name__], dataset="digits")

    figures = run()
    titles = [name for name in figures if name != "table"]
    assert len(titles) == 3 and titles[2] == f"lenet_300_100, 99.5% ({K.__name__})"
    shares = [figures[title]["multiply_adds"] for title in titles]
    assert 1 >= shares[0] > shares[1] > shares[2] > 0 and figures[titles[2]]["live part"]["ratio"] > 0

    class TooLittle(LiveNetwork):
        def part(self):
            needed = super().part().needed.copy()
            needed[1:150] = False  # Of the first layer's units.
            return super().part(needed)

    monkeypatch.setattr(compact_rounds, "LiveNetwork", TooLittle)
    with pytest.raises(RuntimeError, match="'whole' and 'live part' did not compute the same result"):
        run()


def test_the_benchmark_of_checkpoints_compares_runs_with_the_same_end():
    """On a small network, in a process of its own, for it makes all operations deterministic."""
    program = """
from benchmarks import checkpoints
figures = checkpoints.run(1, "small_cnn", steps_per_epoch=1)
print(figures["table"])
assert 0 < figures["saving_share"] < 1 and figures["ratio"] > 0 and figures["export_seconds"] > 0
"""
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of_tools())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small_cnn, 10 epochs of 1 steps, 1 times each")
    assert "saving, share of the run" in done.stdout


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_gpus_on_a_cpu(K, monkeypatch):
    """Whether it runs, on a small network: what it says of a CPU is of no use."""
    monkeypatch.setattr(gpu, "_SHAPES", {"small_cnn": (4, (8, 8, 1), 3)})
    monkeypatch.setattr(gpu, "resolve_policy", lambda setting: "mixed_bfloat16")
    before = K.mixed_precision.global_policy().name
    figures = gpu.run(1, ["small_cnn"], [K.__name__], steps=2, device="CPU")
    assert K.mixed_precision.global_policy().name == before
    lines = figures["table"].splitlines()
    measured = figures[f"small_cnn ({K.__name__})"]
    runs = {"epochs of a run", "epochs of a training"}
    assert set(measured) == {"step in float32", "step in mixed_bfloat16", *runs} and len(lines) == 13
    assert list(measured["epochs of a training"])[:2] == ["data on the host_seconds", "data on the device_seconds"]
    for sides in measured.values():
        (first, one), (second, other), (_, ratio) = sides.items()
        assert ratio == pytest.approx(other / one)


@pytest.fixture
def pruned_file(K, tmp_path):
    """A .keras file of a network with half of its weights zero, of which four units are dead."""
    model = K.Sequential([K.Input((8,)), K.layers.Dense(16, activation="relu"), K.layers.Dense(3)])
    for layer in model.layers[-2:]:
        kernel, bias = layer.get_weights()
        kernel[::2] = 0
        if layer.units == 16:
            kernel[:, :4] = 0
        layer.set_weights([kernel, bias])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_the_benchmark_of_inference(pruned_file, monkeypatch):
    """On a small network, and in this process, for many would take long to start."""
    jobs = []

    def measure(function, threads, **job):
        jobs.append((threads, list(job["files"])))
        return json.loads(json.dumps(inference_worker.measure(threads=0, **job)))

    monkeypatch.setattr(inference, "call_in_fresh_process", measure)
    figures = inference.run(2, pruned_file, rounds=1, seconds=0.0)
    names = ["dense", "pruned", "compacted", "sparse, for 1", "sparse, for 32"]
    names += ["compacted, sparse, for 1", "compacted, sparse, for 32", "coded", "ONNX Runtime", "LiteRT"]
    names += (lite := ["LiteRT sparse", "LiteRT float16", "LiteRT dynamic", "LiteRT int8"])
    assert list(figures["forms"]) == names and not figures["missing"]
    # Memory in a process for each, then all in turn, the settings of threads turned round.
    assert jobs == [*((0, [name]) for name in names), *((threads, names) for threads in (1, 0, 0, 1))]
    for name, form in figures["forms"].items():
        assert form["bytes"] > 0 and form["gzip_bytes"] > 0 and form["memory_bytes"] >= 0
        assert [(latency["batch_size"], latency["threads"]) for latency in form["latency"]] == [
            (1, 1),
            (1, 0),
            (32, 1),
            (32, 0),
        ]
        for latency in form["latency"]:
            assert latency["calls"] == 2 * 5 and 0 < latency["median_seconds"] <= latency["p95_seconds"]
            assert len(latency.get("times_as_fast_as_litert", [])) == (2 if name in lite else 0)
            assert len(latency["times_as_fast"]) == 2 and (name != "dense" or latency["times_as_fast"] == [1, 1])
    dense, pruned, compacted, *_, int8 = figures["forms"].values()
    assert dense["difference"] is None and pruned["difference"] == 0 and 0 < int8["difference"] < 0.1
    assert figures["forms"]["coded"]["bytes"] < compacted["bytes"] < pruned["bytes"]
    table, *choices = figures["table"].split("sparse: batch size ")
    assert (
        all(table.count(f"\n{name:28}") == 5 for name in names)
        and [text.split()[0] for text in choices] == ["1", "32"] * 2
    )


def test_the_dense_form_has_no_zeros(pruned_file):
    pruned, dense = inference.load_keras_file(pruned_file), inference._filled(inference.load_keras_file(pruned_file))
    for before, after in zip(pruned.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_array_equal(after[before != 0], before[before != 0])
        assert before.ndim == 1 or (before == 0).any() and after.all()


@pytest.mark.parametrize(("name", "differs"), [("sparse, for 1", 1e-3), ("LiteRT", np.nan), ("LiteRT int8", 1e-3)])
def test_forms_that_compute_something_else_are_not_compared(name, differs, tmp_path):
    files = {"dense": "0", "pruned": "1", name: "2"}
    for path, outputs in zip(files.values(), ([7.0, 7.0], [1.0, 2.0], [1.0, 2.0 + 2 * differs]), strict=True):
        np.save(tmp_path / f"{path}.npy", outputs)
    outputs = {form: str(tmp_path / f"{path}.npy") for form, path in files.items()}
    if name == "LiteRT int8":
        assert inference._differences(outputs) == {"dense": None, "pruned": 0.0, name: pytest.approx(differs)}
    else:
        with pytest.raises(RuntimeError, match=f"'{name}' did not compute what the pruned model does"):
            inference._differences(outputs)


def test_forms_are_timed_in_a_process_of_their_own(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    write_saved_model(model, tmp_path / "model")
    np.save(tmp_path / "inputs.npy", np.array([[1, 2], [3, 4]], np.float32))
    job = {"files": {"a": ("saved_model", str(tmp_path / "model"))}, "inputs": str(tmp_path / "inputs.npy")}
    job |= {"batch_sizes": [1, 2], "threads": 1, "rounds": 2, "seconds": 0.0}
    result = call_in_fresh_process("benchmarks.inference_worker.measure", **job)
    assert np.load(result["outputs"]["a"]).tolist() == [[3], [7]] and result["memory_bytes"] > 0
    assert {size: len(seconds) for size, seconds in result["seconds"]["a"].items()} == {"1": 10, "2": 10}
    job["inputs"] = str(tmp_path / "nothing.npy")
    with pytest.raises(RuntimeError, match="(?s)inference_worker.measure failed in a fresh process.*nothing.npy"):
        call_in_fresh_process("benchmarks.inference_worker.measure", **job)


def test_what_cannot_be_measured_is_refused(K, monkeypatch, tmp_path):
    monkeypatch.setattr(inference._Forms, "write", lambda *arguments: pytest.fail("It exports."))
    (tmp_path / "text.keras").write_text("text")
    image, number = K.Input((4, 4)), K.Input((1,))
    K.Model([image, number], [image, number]).save(tmp_path / "two.keras")
    K.Sequential([K.Input((None, 4)), K.layers.Dense(2)]).save(tmp_path / "open.keras")
    K.Sequential([K.Input((4,)), K.layers.Dense(2)]).save(tmp_path / "model.keras")
    np.save(tmp_path / "few.npy", np.ones((31, 4)))
    np.save(tmp_path / "other.npy", np.ones((32, 5)))
    for model, inputs, message in (
        ("text.keras", None, "text.keras is not a .keras file"),
        ("nothing.keras", None, "nothing.keras cannot be read: .*No such file"),
        ("two.keras", None, "must have one input and one output; it has 2 and 2"),
        ("open.keras", None, "takes examples of the open shape"),
        ("model.keras", "text.keras", "is neither npy nor npz"),
        ("model.keras", "few.npy", r"at least 32 examples of shape \(4,\); its array has the shape \(31, 4\)"),
        ("model.keras", "other.npy", r"its array has the shape \(32, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            inference.run(1, tmp_path / model, None if inputs is None else tmp_path / inputs)


def test_the_benchmark_of_layers():
    figures = layers.run(1, width=16, sparsities=(0.75,), batch_sizes=(1, 3), seconds=0.0)
    assert list(figures["microseconds"]) == ["1", "3"] and list(figures["microseconds"]["3"]) == ["0.75"]
    names = ["dense", "coordinates", "rows", "LiteRT", "LiteRT sparse", "LiteRT, blocks", "LiteRT sparse, blocks"]
    for by_sparsity in figures["microseconds"].values():
        for times in by_sparsity.values():
            assert list(times) == names and all(time > 0 for time in times.values())
    assert len(figures["table"].splitlines()) == 2 * 3


def test_layers_that_differ_are_not_compared(monkeypatch):
    monkeypatch.setattr(layers, "to_tflite", lambda model, sparse=False: b"")
    monkeypatch.setattr(layers, "in_litert", lambda shape, model_content: lambda x: x + 1)
    with pytest.raises(RuntimeError, match="'dense' and 'LiteRT' did not compute the same result"):
        layers.run(1, width=16, sparsities=(0.75,), batch_sizes=(1,), seconds=0.0)


def test_blocks_are_four_inputs_of_an_output():
    kernel = layers._kernel(16, 0.75, block=4)
    assert np.count_nonzero(kernel) == 64
    assert {np.count_nonzero(block) for block in kernel.T.reshape(16, 4, 4).reshape(-1, 4)} == {0, 4}


@pytest.fixture
def in_no_time(monkeypatch):
    """Calls are timed in few turns."""
    monkeypatch.setattr("aimp_tf.exporting.timing._ENOUGH_SECONDS", 0.1)


def test_the_benchmark_of_channels(monkeypatch, in_no_time):
    config = PruningConfig(0.5, epochs=1, granularity="channel", budget="flops")
    experiments = [Experiment("digits", "small_cnn", config, train_examples=128)]
    figures = channels.run(1, None, experiments)
    half, quarter = (figures[f"small_cnn, {times} x fewer multiply-adds"] for times in (2, 4))
    assert quarter["parameters"] < half["parameters"]
    assert all(len(form["ratio"]) == 1 for form in half.values() if isinstance(form, dict))
    whole_run = figures["small_cnn, whole run"]
    assert whole_run["whole"]["ratio"] == [1] and whole_run["shrinking, by eights"]["accuracy"][0] > 0.1
    assert len(figures["table"].splitlines()) == 15
    monkeypatch.setattr(channels, "_calls", lambda *given: {})
    otherwise = {**channels._WHOLE_RUNS, "whole": {"compact_rounds": False, "target_sparsity": 0.9}}
    monkeypatch.setattr(channels, "_WHOLE_RUNS", otherwise)
    with pytest.raises(RuntimeError, match="The runs do not compare, for their masks keep"):
        channels.run(1, None, experiments)


def test_the_benchmark_of_latency(monkeypatch, in_no_time):
    monkeypatch.setattr(benchmark_of_latency, "LATENCY_FORMATS", ("tflite",))

    def mlp():
        layers = [keras.layers.Flatten(), *(keras.layers.Dense(size, "relu") for size in (1024, 512, 10))]
        model = keras.Sequential([keras.Input(benchmark_of_latency.SHAPE), *layers])
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    figures = benchmark_of_latency.run(1, {"mlp": mlp})
    assert list(figures) == ["mlp, tflite", "table"]
    assert figures["mlp, tflite"]["measured"] <= figures["mlp, tflite"]["asked"] == pytest.approx(0.5, abs=0.01)


def test_the_benchmark_of_channels_beside_others():
    pruning = PruningConfig(0.5, epochs=2, granularity="channel", budget="flops")
    experiments = [Experiment("digits", name, pruning, train_examples=256) for name in ("resnet_8", "small_cnn")]
    figures = channel_peers.run(1, experiments=experiments, sparsities=(0.5,))
    assert list(figures) == ["resnet_8", "small_cnn", "table"]
    residual, plain = figures["resnet_8"]["0.5"], figures["small_cnn"]["0.5"]
    assert list(residual)[:2] == list(plain) == ["AIMP", "from scratch"]
    for side in (*residual.values(), *plain.values()):
        assert 0.4 < side["multiply_adds"][0] <= 0.5 and side["accuracy"][0] > 0.1
    assert ("Torch-Pruning" in residual) == ("is not installed" not in figures["table"])


def test_the_benchmark_of_criteria():
    experiment = Experiment(
        "digits", "resnet_8", PruningConfig(0.5, epochs=3, granularity="channel", budget="flops"), train_examples=256
    )
    figures = criteria.run(1, experiment=experiment, criteria=("magnitude", "reconstruction"))
    assert set(figures["passes"]) == {"activations", "gradients", "contributions", "Gram matrices"}
    assert all(len(ratios) == 1 and ratios[0] > 0 for ratios in figures["passes"].values())
    assert list(figures["one_shot"]) == ["magnitude", "reconstruction"]
    for sides in figures["one_shot"].values():
        assert len(sides["without"]) == len(sides["with repair"]) == 1 and 0 < sides["without"][0] <= 1
    assert len(figures["table"].splitlines()) == 4 + 3 + 2


def chain(K, shape, layers):
    """A functional model of layers one after the other."""
    inputs = outputs = K.Input(shape)
    for layer in layers:
        outputs = layer(outputs)
    return K.Model(inputs, outputs)


def test_what_can_go_is_found_by_numbers(K):
    """Of a network of which it is known."""
    image = K.Input((6, 6, 2))
    hidden = K.layers.Conv2D(5, 3, activation="tanh", bias_initializer="ones", name="hidden")(image)
    alone = K.layers.DepthwiseConv2D(3, padding="same", name="alone")(hidden)
    branch = K.layers.Conv2D(3, 1, use_bias=False, name="branch")(alone)
    both = K.layers.Add()([branch, K.layers.Conv2D(3, 3, name="other")(image)])
    model = K.Model(image, K.layers.Dense(2, name="end")(K.layers.GlobalAveragePooling2D()(both)))

    def without(name, inputs, outputs):
        kernel = Kernel.of(model.get_layer(name))
        value = kernel.value()
        value[:, inputs], value[..., outputs] = 0, 0
        kernel.assign(value)

    without("hidden", [], [1, 2])  # Constant,
    without("branch", [2, 3], [0])  # and one of these dead, as is another. What is zero is added to what is not.
    known = truths(model, [inputs_of(model, 8, np.random.default_rng(seed)) for seed in range(2)])
    assert {label for label, truth in known.items() if truth.can_go.any()} == {"hidden", "alone", "branch"}
    for name, dead, constant, held in (
        ("hidden", [2, 3], [1, 2], [1]),  # It differs at the borders, once it is convolved alone.
        ("alone", [2, 3], [], []),
        ("branch", [], [0], [0]),
        ("end", [], [], []),
    ):
        truth = known[name]
        found = [np.flatnonzero(channels).tolist() for channels in (truth.dead, truth.constant, truth.held)]
        assert found == [dead, constant, held], name


def test_what_is_tied_within_the_call_of_a_layer_is_found(K):
    """Constants that are added to what moves, or multiplied with it as queries are with keys, and one that is not."""

    class Own(K.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.added, self.query, self.key = (K.layers.Dense(3, name=name) for name in ("added", "query", "key"))

        def call(self, x):
            scores = tf.einsum("bqd,bkd->bqk", self.query(x), self.key(x))
            return tf.matmul(scores, self.added(x) + x) + scores[..., :3]

    tokens = K.Input((4, 3))
    own = Own(name="own")
    model = K.Model(tokens, K.layers.Dense(2, name="end")(own(tokens)))
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.shape)).normal(size=weight.shape))
    for layer, without in ((own.added, [0]), (own.query, [1, 2]), (own.key, [2])):
        layer.kernel.assign(np.where(np.isin(np.arange(3), without), 0, np.asarray(layer.kernel)))
    known = truths(model, [inputs_of(model, 8, np.random.default_rng(seed)) for seed in range(2)])
    found = {
        label.split("/")[-1]: (np.flatnonzero(truth.constant).tolist(), np.flatnonzero(truth.held).tolist())
        for label, truth in known.items()
        if truth.constant.any()
    }
    assert found == {"added": ([0], [0]), "query": ([1, 2], [1]), "key": ([2], [])}


@pytest.mark.parametrize(("mode", "inputs", "outputs"), [("dead", [0, 1, 2], []), ("constant", [], [0, 1, 2])])
def test_zeros_of_the_benchmark_of_coverage(K, mode, inputs, outputs):
    """A pattern in each kernel but that of the end; in groups in each of them, of which every eighth is zero."""
    grouped = K.layers.Conv2D(64, 1, groups=8, name="grouped")
    layers = [K.layers.Conv2D(64, 1, name="first"), grouped, K.layers.Flatten(), K.layers.Dense(8, name="end")]
    model = chain(K, (1, 1, 16), layers)
    draw(model, inputs_of(model, 4, np.random.default_rng(0)), mode)
    values = {label: kernel.value()[0] for label, kernel in kernels_of(model)}
    for group in range(8):
        part = values["grouped"][:, 8 * group : 8 * (group + 1)]
        assert np.flatnonzero(~part.any(axis=1)).tolist() == (list(range(8)) if group == 7 else inputs)
        assert np.flatnonzero(~part.any(axis=0)).tolist() == (list(range(8)) if group == 7 else outputs)
    assert np.flatnonzero(~values["first"].any(axis=0)).tolist() == [8 * at + i for at in range(8) for i in outputs]
    assert values["end"].any(axis=0).all()


def test_the_benchmark_of_coverage(K, monkeypatch):
    def build():
        layers = [K.layers.Conv2D(16, 3, use_bias=False), K.layers.BatchNormalization(), K.layers.ReLU()]
        layers += [K.layers.Conv2D(8, 3, activation="swish"), K.layers.GlobalAveragePooling2D(), K.layers.Dense(10)]
        return chain(K, (8, 8, 3), layers)

    network = Network(f"{K.__name__}/made_up", build)
    figures = coverage.run(1, [network])
    measured = figures[network.name]
    for mode in ("dead", "constant"):
        assert measured[mode]["can_go"] == measured[mode]["taken"] == 6 + 3 and measured[mode]["difference"] < 1e-6
    assert measured["multiply_adds"]["package"] == measured["multiply_adds"]["graph"] == 36 * 432 + 16 * 1152 + 80
    assert figures["table"].splitlines()[-1].split()[:5] == [network.name, "9", "0", "100.0%", "100.0%"]
    monkeypatch.setattr(coverage_package, "compact_and_report", lambda model: 1 / 0)
    assert "dead, refused: ZeroDivisionError" in coverage.run(1, [network])["table"]
    broken = Network(f"{K.__name__}/broken", lambda: None)
    assert "failed: AttributeError" in coverage.run(1, [broken])["table"]


def test_networks_of_the_benchmark_of_coverage():
    found, _ = networks(["*/ResNet50*", "keras/VGG16"])
    assert {network.name: network.is_first for network in found} == {
        **{f"{generation}/ResNet50": True for generation in ("keras", "tf_keras")},
        **{f"{generation}/ResNet50V2": True for generation in ("keras", "tf_keras")},
        "keras/VGG16": True,
    }
    assert not next(network for network in networks(["keras/ResNet101"])[0]).is_first
    with pytest.raises(ValueError, match="No network matches keras/Nothing"):
        coverage.run(1, "keras/Nothing")
