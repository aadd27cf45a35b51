"""Models made under tf.distribute strategies: mechanics only, on made-up data, on two devices or two processes."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import distributed_run
import keras
import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.compat.cluster import Cluster
from aimp_tf.runs import saving
from experiments.distribution import is_chief

pytestmark = pytest.mark.slow

GENERATIONS = ("keras", "tf_keras")
# float16 has the loss scaled, in each generation in its own way; what is drawn without a seed comes with bfloat16.
TRAINED = [
    *(f"{name}-{policy}" for name in GENERATIONS for policy in ("float32", "mixed_float16")),
    "keras-mixed_bfloat16",
]
CELLS = [*TRAINED, *(f"{name}-{what}" for name in GENERATIONS for what in ("infinity", "refusals", "channels"))]


def prune(model, **settings):
    return aimp_tf.prune(
        model,
        distributed_run.points(),
        **{**distributed_run.SETTINGS, "batch_size": 16, "seed": 1, **settings},
    )


def check_mirrored(model, result, strategy):
    """Every variable has two components, and they are the same."""
    assert result.model is model and model.distribute_strategy is strategy
    assert len(result.rounds) == 4 and result.sparsity == 0.75
    for first, second in distributed_run.components(model, strategy):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("policy", "made_under_it"), [("mixed_float16", True), ("mixed_float16", False), ("mixed_bfloat16", False)]
)
def test_mirrored_replicas_stay_the_same(K, strategy, policy, made_under_it):
    model = distributed_run.make_model(K, strategy, policy if made_under_it else "float32")
    check_mirrored(model, prune(model, mixed_precision=None if made_under_it else policy), strategy)


def test_one_device(K):
    strategy = tf.distribute.OneDeviceStrategy("CPU:1")
    result = prune(distributed_run.make_model(K, strategy))
    assert result.model.distribute_strategy is strategy and result.sparsity == 0.75


def test_infinity_in_one_share_skips_the_step_of_all_replicas(K, strategy):
    """Keras 3 alone looks at the first replica's gradients."""
    before, after = distributed_run.step_with_infinity(
        distributed_run.make_model(K, strategy, "mixed_float16"), strategy
    )
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_moving_statistics_are_those_that_keras_gives(K, strategy):
    """What is the same on all replicas after an epoch is what Keras would save then, and training goes on as ever."""
    data = distributed_run.points()
    plain = distributed_run.make_model(K, strategy)
    plain.fit(*data, batch_size=16, epochs=3, shuffle=False, verbose=0)
    model = distributed_run.make_model(K, strategy)
    config = aimp_tf.PruningConfig(0.75, method="dense", epochs=3, seed=1)
    aimp_tf.prune(model, data, config=config, batch_size=16, shuffle=False, verbose=0)
    for here, there in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-7)


def test_a_mirrored_run_goes_on_exactly(K, strategy, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_SECONDS_PER_BACKUP_SECOND", 0)

    class Crash(K.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == 15:  # In the second epoch of the second round.
                raise KeyboardInterrupt

    model = distributed_run.make_model(K, strategy)
    whole = prune(model)
    check_mirrored(model, whole, strategy)
    with pytest.raises(KeyboardInterrupt):
        prune(distributed_run.make_model(K, strategy), workdir=tmp_path / "run", callbacks=[Crash()])
    assert list((tmp_path / "run" / "round_001" / "backup").iterdir())
    resumed = prune(distributed_run.make_model(K, strategy), workdir=tmp_path / "run")
    for here, there in zip(
        distributed_run.components(resumed.model, strategy),
        distributed_run.components(whole.model, strategy),
        strict=True,
    ):
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("policy", [None, "mixed_float16"])
def test_replicas_train_what_is_left_alone(K, strategy, policy, tmp_path, monkeypatch):
    """As the whole network is trained, also from the middle of a round on."""
    monkeypatch.setattr(saving, "_SECONDS_PER_BACKUP_SECOND", 0)
    sizes = {}

    class Watch(K.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.layers[0].kernel
            sizes.setdefault(compact_rounds, []).append(tuple(kernel.shape))
            self.batches += 1
            if self.batches == crash_after:
                raise KeyboardInterrupt

    settings = {**distributed_run.CHANNELS, "mixed_precision": policy}
    results, crash_after = [], None
    for compact_rounds in (False, True):
        model = distributed_run.make_model(K, strategy)
        results.append(prune(model, **{**settings, "compact_rounds": compact_rounds}, callbacks=[Watch()]))
    whole, small = results
    kept = np.count_nonzero(small.masks["hidden/bias"])
    assert set(sizes[False]) == {(8, 16)} and sizes[True][-1] == (8, kept) and 0 < kept <= 8
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(small.masks[path], mask)
    losses = [[round_.metrics["loss"] for round_ in result.rounds] for result in results]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2 if policy else 1e-4)
    for first, second in distributed_run.components(small.model, strategy):
        np.testing.assert_array_equal(first, second)
    crash_after, run = 15, {**settings, "compact_rounds": True, "workdir": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        prune(distributed_run.make_model(K, strategy), **run, callbacks=[Watch()])
    crash_after = None
    resumed = prune(distributed_run.make_model(K, strategy), **run, callbacks=[Watch()])
    for here, there in zip(resumed.model.get_weights(), small.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)


def test_batches_too_small_for_keras_3(strategy):
    model = distributed_run.make_model(keras, strategy)
    data = distributed_run.points(65)
    with pytest.raises(ValueError, match="data has 65 examples, which leaves 1 in the last batch of 32: too few"):
        aimp_tf.prune(model, data, **distributed_run.SETTINGS)
    with pytest.raises(ValueError, match="validation_data has 65 examples"):
        aimp_tf.prune(model, distributed_run.points(), validation_data=data, **distributed_run.SETTINGS)


def test_several_steps_an_execution(K, strategy):
    model = distributed_run.make_model(K, strategy)
    with strategy.scope():
        model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=2)
    if K is keras:
        with pytest.raises(ValueError, match="Keras 3 cannot take several steps an execution on 2 replicas"):
            prune(model)
    else:
        assert prune(model).sparsity == 0.75


def test_what_cannot_be_distributed_is_refused(strategy):
    with pytest.raises(
        ValueError, match="made under CentralStorageStrategy.*OneDeviceStrategy, MirroredStrategy or Multi"
    ):
        Cluster(tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]))


def test_workers_with_other_data_are_named(monkeypatch):
    """Also where what they were given differs in number."""
    cluster, texts = Cluster(tf.distribute.get_strategy()), []
    monkeypatch.setattr(cluster, "gather", lambda text: texts.append(text) or texts)
    cluster.check_same(config="{}", data=(8, 2))
    cluster.check_same(config="{}", data=(8, 2))
    assert len(texts) == 2
    with pytest.raises(ValueError, match="same config, data, validation.*: data of worker 2; validation of worker 2."):
        cluster.check_same(config="{}", data=(8, 3), validation=(4, 2))


class Workers:
    """Two processes over loopback, each with the same cells to run."""

    def __init__(self, folder, cells):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
        for server in sockets:
            server.close()
        program = pathlib.Path(distributed_run.__file__)
        self.outputs = [open(folder / f"output_{index}", "w+") for index in range(2)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(program), str(folder), *cells],
                env={
                    **os.environ,
                    "TF_CONFIG": json.dumps(
                        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                    ),
                },
                stdout=self.outputs[index],
                stderr=subprocess.STDOUT,
            )
            for index in range(2)
        ]

    def wait(self):
        """The exit codes and the outputs."""
        try:
            codes = [process.wait(timeout=900) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        for output in self.outputs:
            output.seek(0)
        return codes, [output.read() for output in self.outputs]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What two workers saw: of every cell, and of a run whose chief was killed and that went on."""
    folder = tmp_path_factory.mktemp("workers")
    codes, outputs = Workers(folder, [*CELLS, "keras-killed"]).wait()
    assert codes == [-signal.SIGKILL, 1], outputs
    assert re.search(r"RuntimeError: Worker 1 of 2 stops, for another one has ended.*Then start all", outputs[1])
    codes, outputs = Workers(folder, ["keras-again"]).wait()
    assert codes == [0, 0], outputs
    return folder


def seen(folder, cell):
    """What each of the two workers recorded."""
    if (folder / f"{cell}_0.json").exists():
        return [json.loads((folder / f"{cell}_{index}.json").read_text()) for index in range(2)]
    return [dict(np.load(folder / f"{cell}_{index}.npz")) for index in range(2)]


def assert_same(here, there):
    assert here.keys() == there.keys()
    for name, value in here.items():
        np.testing.assert_array_equal(value, there[name], name)


@pytest.mark.parametrize("cell", TRAINED)
def test_workers_end_with_the_same(workers, cell):
    chief, other = seen(workers, cell)
    assert_same(chief, other)
    masks = [mask for name, mask in chief.items() if name.startswith("masks/")]
    assert sum(mask.size - mask.sum() for mask in masks) == 132 and len(chief["losses"]) == 4
    zeros = sum(np.sum(value == 0) for name, value in chief.items() if name.startswith("weights/") and value.ndim == 2)
    assert zeros == 132
    loaded = tf.saved_model.load(str(workers / cell / "final" / "saved_model"))
    assert np.all(np.isfinite(loaded.serve(distributed_run.points()[0])))


@pytest.mark.parametrize("keras_name", GENERATIONS)
def test_workers_prune_the_same_channels(workers, keras_name):
    chief, other = seen(workers, f"{keras_name}-channels")
    assert_same(chief, other)
    hidden, logits = (chief[f"masks/{name}/kernel"] for name in ("hidden", "logits"))
    kept = hidden.any(axis=0)
    assert chief["widths"][0] == 16 and chief["widths"][-1] == kept.sum()  # Rounds train what is left alone.
    assert 0 < kept.sum() <= 8 and (hidden == kept).all() and (logits == kept[:, np.newaxis]).all()
    served = tf.saved_model.load(str(workers / f"{keras_name}-channels" / "final" / "saved_model"))
    assert sum(int(np.prod(variable.shape)) for variable in served.variables) == kept.sum() * (8 + 1 + 4 + 3) + 3


def test_two_workers_are_as_good_as_two_devices(workers, K, strategy):
    """The same share of the same batches, in the same order: `batch_size` is that of all replicas together."""
    here = prune(distributed_run.make_model(K, strategy))
    there, _ = seen(workers, f"{K.__name__}-float32")
    np.testing.assert_allclose([round_.metrics["loss"] for round_ in here.rounds], there["losses"], rtol=1e-4)
    for path, mask in here.masks.items():
        np.testing.assert_array_equal(mask, there[f"masks/{path}"])


def test_a_killed_run_goes_on_exactly(workers):
    """From the backup after the first epoch of the second round, on both workers, though the chief alone read it."""
    for again, whole in zip(seen(workers, "keras-again"), seen(workers, "keras-float32"), strict=True):
        assert_same(again, whole)


@pytest.mark.parametrize("keras_name", GENERATIONS)
def test_infinity_on_one_worker_skips_the_step_on_all(workers, keras_name):
    assert seen(workers, f"{keras_name}-infinity") == [True, True]


@pytest.mark.parametrize("keras_name", GENERATIONS)
def test_all_workers_refuse_what_is_wrong_on_one(workers, keras_name):
    chief, other = seen(workers, f"{keras_name}-refusals")
    for name, message in {
        "another config": "ValueError: All workers must have the same .* of worker 0, the chief: config of worker 1.",
        "other arrays": "ValueError: All workers .* of worker 0, the chief: data of worker 1.",
        "sequence": "ValueError: The training data is a Batches.*must be a tf.data.Dataset or arrays",
    }.items():
        assert re.fullmatch(f"{message}.*", chief[name]), chief[name]
        assert chief[name] == other[name]
    assert re.match(r"TypeError: On worker 1 of 2: prune has no argument 'batch_sise'", chief["wrong on one"])
    assert re.match(r"TypeError: prune has no argument 'batch_sise'", other["wrong on one"])
    assert re.match("ValueError: workdir .* is a file", chief["unreadable on the chief"])
    assert re.match("ValueError: On worker 0 of 2: workdir .* is a file", other["unreadable on the chief"])
    assert chief["a time"] == other["a time"]
    assert re.match(
        r"ValueError: budget=Latency\(.*\) is for one worker, on whose machine it is timed", chief["a time"]
    )
    assert chief["other weights"] == other["other weights"]
    assert re.match("RuntimeError: Worker 1 has other weights or masks than worker 0", chief["other weights"])
    if keras_name == "keras":
        assert chief["empty share"] == other["empty share"]
        assert "leaves 1 in the last batch of 32: too few for 2 replicas" in chief["empty share"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "needs TF_CONFIG"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"cluster": {"worker": ["a:1"]}}', "cannot be read"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}', "cannot be read"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "does not name this process"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "cannot be read"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "does not name this process"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "does not name this"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "does not name"),
        ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "does not name this process"),
    ],
)
def test_a_wrong_tf_config_is_refused(text, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert is_chief("none") and is_chief("mirrored")
    with pytest.raises(ValueError, match=message):
        is_chief("multi_worker")


def test_who_is_the_chief(monkeypatch):
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for cluster, kind, index, chief in (
        (jobs, "chief", 0, True),
        (jobs, "worker", 0, False),
        ({"worker": jobs["worker"]}, "worker", 0, True),
        ({"worker": jobs["worker"]}, "worker", 1, False),
    ):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        assert is_chief("multi_worker") is chief
