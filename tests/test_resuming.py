"""Runs that are interrupted and go on: mechanics only, on made-up data, unless a test says otherwise."""

import errno
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.files import checksum, read_json, write_arrays, write_json
from aimp_tf.masking import MaskedModel
from aimp_tf.runs import run_files, saving

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 3, "verbose": 0, "seed": 1}
REWINDS = {"rewind": "weights", "final_rewind": "learning_rate"}


class Crash(BaseException):
    """Nothing catches it."""


class CrashAt:
    """A callback that raises after so many epochs, or in the middle of the next one."""

    def __new__(cls, K, epochs, batch=None):
        class Callback(K.callbacks.Callback):
            seen = 0

            def on_epoch_begin(self, epoch, logs=None):
                if batch is None and self.seen == epochs:
                    raise Crash

            def on_train_batch_end(self, index, logs=None):
                if self.seen == epochs and index == batch:
                    raise Crash

            def on_epoch_end(self, epoch, logs=None):
                self.seen += 1

            def on_train_end(self, logs=None):
                if batch is None and self.seen == epochs:
                    raise Crash

        return Callback()


@pytest.fixture
def make_model(K):
    """A function that makes a compiled classifier of 8 numbers with all that training changes, always the same."""

    def make(optimizer=None):
        K.utils.set_random_seed(3)
        # Without names: Keras numbers the layers of the model that goes on in another way.
        layers = [K.Input((8,)), K.layers.Dense(16, activation="relu"), K.layers.BatchNormalization()]
        if K.__name__ == "keras":  # tf_keras' keeps the state of its random numbers where nothing can read it.
            layers.append(K.layers.Dropout(0.3))
        model = K.Sequential([*layers, K.layers.Dense(3)])
        schedule = K.optimizers.schedules.CosineDecay(0.05, 4 * 4)
        model.compile(
            optimizer=K.optimizers.Adam(schedule) if optimizer is None else optimizer,
            loss=K.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return model

    return make


def run(make_model, blobs, workdir, callbacks=(), optimizer=None, **settings):
    settings = {**SETTINGS, "batch_size": 16, **settings}
    return aimp_tf.prune(
        make_model(optimizer and optimizer()),
        blobs,
        validation_data=blobs,
        callbacks=callbacks,
        workdir=workdir,
        **settings,
    )


def as_version_1(workdir, **fields):
    """Lets what a run has left be what version 1 would have: its config said no version, and had no shares and
    factors."""
    config = json.loads((workdir / "config.json").read_text())
    del config["version"], config["min_layer_share"], config["shrink"]
    then = {"round_schedule": "compress", "compact_rounds": False}
    (workdir / "config.json").write_text(json.dumps({**config, **then, **fields}, indent=2))
    signature = read_json(workdir / "signature.json")
    signature["files"]["config.json"] = checksum(workdir / "config.json")
    write_json(workdir / "signature.json", signature)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def what_must_be_same(round_):
    """All but the time, and the names of layers, which Keras numbers."""
    return {**vars(round_), "seconds": 0, "layers": [{**vars(layer), "path": ""} for layer in round_.layers]}


def assert_same(here, there):
    for a, b in zip(here.model.get_weights(), there.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(here.masks.values(), there.masks.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(here.rounds, there.rounds, strict=True):
        assert what_must_be_same(a) == what_must_be_same(b)


@pytest.fixture
def backup_each_epoch(monkeypatch):
    """Not only as often as costs next to nothing."""
    monkeypatch.setattr(saving, "_SECONDS_PER_BACKUP_SECOND", 0)


def crash_and_go_on(K, make_model, blobs, workdir, batch, **settings):
    """The result of a run that crashes again and again, and how often it did."""
    crashes = 0
    for epochs in (2, 1, 2, 3):
        try:
            return run(make_model, blobs, workdir, [CrashAt(K, epochs, batch)], **settings), crashes
        except Crash:
            crashes += 1
    return run(make_model, blobs, workdir, **settings), crashes


WEIGHTS = {"rewind": "weights", "rewind_epoch": 2}
REINITIALIZE = {"rewind": "reinitialize", "criterion": "random", "final_rewind": "weights", "seed": None}
BLOCKS = {"granularity": "1x4", "criterion": "lamp"}
GRADUAL = {"method": "gradual", "epochs": 7, "rate": 0.2, "round_epochs": None}
HALF = {"mixed_precision": "mixed_float16"}
SETTLED = {"stop_mask_distance": 0.9, "steps_per_epoch": 3}
SHRUNK = {"shrink": 1e-300, "optimizer": lambda: "sgd"}
"""By less, in fact: by what each round has moved the weights, which counts where its steps alone would allow more."""


@pytest.mark.parametrize(
    ("K", "settings", "batch"),
    [
        ("keras", SHRUNK, 2),
        ("tf_keras", WEIGHTS, None),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("tf_keras", {}, 2),
                ("keras", REINITIALIZE, 2),
                ("keras", GRADUAL, 2),
                ("tf_keras", BLOCKS, 2),
                ("tf_keras", SETTLED, None),
                ("keras", HALF, 2),
                ("tf_keras", HALF, None),
            )
        ),
    ],
    indirect=["K"],
)
def test_a_run_goes_on_bit_for_bit(K, make_model, blobs, tmp_path, backup_each_epoch, settings, batch):
    """From crashes between and within epochs, at the end of a round and in the final training."""
    whole = run(make_model, blobs, tmp_path / "whole", **settings)
    resumed, crashes = crash_and_go_on(K, make_model, blobs, tmp_path / "run", batch, **settings)
    assert crashes >= 2
    assert_same(resumed, whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("backup")) and not list((tmp_path / "run").rglob(".unfinished*"))


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({}, 3), ({"criterion": "gradient", "criterion_batches": 1}, 2)],
    ids=["order of examples", "sample"],
)
def test_a_run_goes_on_with_what_it_drew(K, make_model, blobs, tmp_path, backup_each_epoch, settings, epochs):
    """Whatever the process that goes on would draw."""

    def make_where_others_are_drawn(optimizer):
        model = make_model(optimizer)
        np.random.seed(99)
        return model

    whole = run(make_model, blobs, tmp_path / "whole", seed=None, **settings)
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [CrashAt(K, epochs)], seed=None, **settings)
    assert_same(run(make_where_others_are_drawn, blobs, tmp_path / "run", seed=None, **settings), whole)


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_run_goes_on_with_its_masks(K, make_model, blobs, tmp_path, backup_each_epoch):
    """What `test_a_run_goes_on_bit_for_bit` cannot tell: that what is the same is right."""
    n = 8 * 16 + 16 * 3

    class Masks(K.callbacks.Callback):
        begun = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begun.append(MaskedModel.of(self.model).masks())

    crashes = (3 + 2, 1 + 2)  # Within the second of four trainings, and within the third.
    settings = {"target_sparsity": 0.875, "workdir": tmp_path}
    for epochs in crashes:
        with pytest.raises(Crash):
            run(make_model, blobs, callbacks=[CrashAt(K, epochs, 2), Masks()], **settings)
    run(make_model, blobs, callbacks=[Masks()], **settings)
    # Each crash comes in an epoch that begins again.
    kept = [sum(int(mask.sum()) for mask in masks.values()) for masks in Masks.begun]
    assert kept == 3 * [n] + (3 + 1) * [n // 2] + (3 + 1) * [n // 4] + 4 * [n // 8]
    for before, after in itertools.pairwise(Masks.begun):
        for had, has in zip(before.values(), after.values(), strict=True):
            assert not np.any(has & ~had)


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_compact_rounds_go_on_bit_for_bit(K, blobs, tmp_path, backup_each_epoch, caplog):
    """From crashes in a round that the model became smaller for, and in one that went on as small."""

    def make_model(optimizer):
        K.utils.set_random_seed(3)
        layers = K.layers
        hidden = layers.Dense(64, activation="relu"), layers.BatchNormalization(), layers.Dense(32, activation="relu")
        model = K.Sequential([K.Input((8,)), *hidden, layers.Dense(3)])
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(K.optimizers.Adam(0.01), loss, metrics=["accuracy"])
        return model

    caplog.set_level("INFO", "aimp_tf")
    settings = {"compact_rounds": True, "target_sparsity": 0.98, "rate": 0.2, "epochs": 2, "round_epochs": 2}
    whole = run(make_model, blobs, tmp_path / "whole", **settings)
    smaller = [int(number) - 1 for number in re.findall(r"Round (\d+) trains without", caplog.text)]
    as_small = [index for index in range(smaller[0], len(whole.rounds)) if index not in smaller]
    assert len(smaller) > 2 and as_small
    first, second = sorted((smaller[1], as_small[0]))
    for epochs in (2 * first + 1, 2 * (second - first)):
        with pytest.raises(Crash):
            run(make_model, blobs, tmp_path / "run", [CrashAt(K, epochs, 2)], **settings)
    resumed = run(make_model, blobs, tmp_path / "run", **settings)
    assert_same(resumed, whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_callbacks_of_keras_go_on_within_a_round(K, make_model, blobs, tmp_path, backup_each_epoch):
    """A rate from a function of the last rate, one that falls, and an early stop with the best weights."""

    def callbacks():
        return [
            K.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.8),
            K.callbacks.ReduceLROnPlateau(monitor="accuracy", mode="min", patience=1, factor=0.5),
            K.callbacks.EarlyStopping(monitor="loss", mode="max", patience=3, restore_best_weights=True),
        ]

    # tf_keras keeps the rates of legacy optimizers elsewhere.
    optimizers = K.optimizers.legacy if K.__name__ == "tf_keras" else K.optimizers
    settings = {"optimizer": lambda: optimizers.SGD(0.1, momentum=0.9), "epochs": 8, "round_epochs": 5}
    whole = run(make_model, blobs, tmp_path / "whole", callbacks(), **settings)
    assert [round_.epochs for round_ in whole.rounds] == [4, 4, 4], "the early stop"
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [*callbacks(), CrashAt(K, 2)], **settings)
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [*callbacks(), CrashAt(K, 7, 1)], **settings)
    assert_same(run(make_model, blobs, tmp_path / "run", callbacks(), **settings), whole)


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
@pytest.mark.parametrize("crashed_after", [5, 8])
def test_a_run_goes_on_at_the_step_that_it_rewinds_to(K, make_model, blobs, tmp_path, backup_each_epoch, crashed_after):
    """Four batches an epoch: the weights return to the end of epoch 2 of the first round, and so do the steps."""
    settings = {**WEIGHTS, "optimizer": lambda: K.optimizers.SGD(0.01, momentum=0.9)}
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [CrashAt(K, crashed_after)], **settings)
    result = run(make_model, blobs, tmp_path / "run", **settings)
    assert [round_.epochs for round_ in result.rounds] == [3, 3, 4]
    batches = -(-len(blobs[0]) // 16)
    assert int(np.asarray(result.model.optimizer.iterations)) == 2 * batches + 4 * batches


def test_what_counts_as_better_is_the_same_after_a_crash(K, make_model, blobs, tmp_path, backup_each_epoch):
    """Keras 3 gives `min_delta` its sign in the first epoch that it looks at; and the history has all epochs."""

    def callbacks():
        return [K.callbacks.EarlyStopping(monitor="loss", min_delta=0.5, patience=2), K.callbacks.History()]

    settings = {"optimizer": lambda: K.optimizers.SGD(0.001), "epochs": 8, "round_epochs": 7}
    whole = run(make_model, blobs, tmp_path / "whole", callbacks(), **settings)
    assert [round_.epochs for round_ in whole.rounds] == [3, 3, 3], "the early stop"
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [*callbacks(), CrashAt(K, 7, 1)], **settings)
    stop, history = callbacks()
    assert_same(run(make_model, blobs, tmp_path / "run", [stop, history], **settings), whole)
    assert len(history.history["loss"]) == len(history.epoch) == 3


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_executions_of_several_steps_go_on_at_their_examples(K, make_model, blobs, tmp_path, backup_each_epoch):
    """Keras 3 reads whole executions: six batches an epoch, of five."""

    def prune(folder, *callbacks):
        model = make_model()
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(K.optimizers.SGD(0.1), loss, metrics=["accuracy"], steps_per_execution=3)
        settings = {"batch_size": 8, "steps_per_epoch": 5, "callbacks": callbacks, "workdir": tmp_path / folder}
        return aimp_tf.prune(model, *blobs, **settings, **SETTINGS)

    whole = prune("whole")
    with pytest.raises(Crash):
        prune("run", CrashAt(K, 8))
    assert_same(prune("run"), whole)


def test_a_line_tells_where_a_run_goes_on(K, make_model, blobs, tmp_path, backup_each_epoch, caplog):
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path, [CrashAt(K, 4, 1)])
    caplog.set_level("INFO", "aimp_tf")
    run(make_model, blobs, tmp_path)
    assert re.fullmatch(r"Round 2 of 3 goes on after 1 of 3 epochs, about \d+ s left\.", caplog.records[0].getMessage())


@pytest.mark.slow
def test_the_loss_scale_goes_on(K, make_model, blobs, tmp_path, backup_each_epoch):
    """It doubles after every sixth step."""

    def optimizer():
        if K.__name__ == "keras":
            return K.optimizers.LossScaleOptimizer(K.optimizers.SGD(0.1), dynamic_growth_steps=6)
        return K.mixed_precision.LossScaleOptimizer(K.optimizers.SGD(0.1), dynamic_growth_steps=6)

    def scale_of(result):
        name = "dynamic_scale" if K.__name__ == "keras" else "loss_scale"
        return float(getattr(result.model.optimizer, name))

    whole = run(make_model, blobs, tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [CrashAt(K, 5, 2)], optimizer=optimizer)
    resumed = run(make_model, blobs, tmp_path / "run", optimizer=optimizer)
    assert scale_of(resumed) == scale_of(whole) == 2**15 * 2 ** ((3 + 3 + 4) * 4 // 6)
    assert_same(resumed, whole)


def test_a_run_that_is_done_is_not_trained_again(K, make_model, blobs, tmp_path):
    whole = run(make_model, blobs, tmp_path / "run")
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*.*")
        if path.is_file() and not {"saved_model", "tensorboard"} & set(path.parts)
    }
    again = run(make_model, blobs, tmp_path / "run", [CrashAt(K, 0)])
    assert_same(again, whole)
    assert again.seconds == whole.seconds and again.imp_epochs == whole.imp_epochs
    assert before == {path: path.read_bytes() for path in before}
    # Whatever lies there: a SavedModel is a program.
    (tmp_path / "run" / "final" / "saved_model" / "saved_model.pb").write_text("other")
    run(make_model, blobs, tmp_path / "run", [CrashAt(K, 0)])
    loaded = tf.saved_model.load(str(tmp_path / "run" / "final" / "saved_model"))
    np.testing.assert_allclose(loaded.serve(blobs[0]), whole.model.predict(blobs[0], verbose=0), atol=1e-6)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_seed_that_a_layer_has_drawn_is_not_another_run(K, tmp_path):
    data = np.zeros((16, 6, 6, 1), "float32"), np.zeros(16, "int32")

    def prune():
        model = K.Sequential([K.Input((6, 6, 1)), K.layers.RandomCrop(6, 6), K.layers.Flatten(), K.layers.Dense(2)])
        model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
        return aimp_tf.prune(model, *data, workdir=tmp_path, **SETTINGS)

    prune()
    assert prune().epochs == 10


@pytest.fixture
def interrupted(K, make_model, blobs, tmp_path, backup_each_epoch):
    """The folder of a run that stopped after an epoch of its second round, and what it would have come to."""
    whole = run(make_model, blobs, tmp_path / "whole", **REWINDS)
    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [CrashAt(K, 5)], **REWINDS)
    return tmp_path / "run", whole


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_another_run_is_refused_with_what_differs(K, make_model, blobs, interrupted):
    folder, _ = interrupted
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    x, y = blobs
    other_x = x.copy()
    other_x[3, 3] += 1
    for data, changes, message in (
        (blobs, {"rate": 0.4, "epochs": 5}, r"config.rate: 0.5 there, 0.4 here; config.epochs: 4 there, 5 here"),
        (blobs, {"optimizer": lambda: K.optimizers.SGD(0.1)}, "model.optimizer.class_name: 'Adam' there, 'SGD' here"),
        (blobs, {"batch_size": 8}, "data.fit_options.batch_size: 16 there, 8 here"),
        ((other_x, y), {}, "the values of its training data were others"),
        ((x[:40], y[:40]), {}, r"data.batches: 4 there, 3 here"),
        ((x, y, np.ones(64)), {}, "data.spec: "),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            run(make_model, data, folder, **{**REWINDS, **changes})
        assert "overwrite=True" in str(refused.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # What an overwriting call cannot begin, it leaves as it was.
    with pytest.raises(ValueError, match="fit failed before its first step"):
        aimp_tf.prune(make_model(), (x[:, :5], y), workdir=folder, overwrite=True, **SETTINGS)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "round_000_of_mine").mkdir()
    begun_anew = run(make_model, blobs, folder, overwrite=True, rate=0.4)
    assert len(begun_anew.rounds) == len(list(folder.glob("round_???"))) + 1 == 4
    assert (folder / "round_000_of_mine").exists()


def files_of(folder):
    """All that is read again, which what TensorBoard shows is not."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != ".aimp_tf_lock")
    return sorted(path for path in files if path.parts[0] != "tensorboard")


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_damaged_files_are_named_and_never_used(K, make_model, blobs, interrupted, tmp_path, caplog):
    """Each file in turn: a byte changed, cut short, gone, or a link to what was there."""
    folder, whole = interrupted
    names = files_of(folder)
    assert {path.name for path in names} == {
        "config.json",
        "environment.json",
        "signature.json",
        "metrics.jsonl",
        "masks.npz",
        "state.npz",
        "weights.weights.h5",
        "result.json",
        "state.json",
    }
    changes = [
        lambda path, content: path.write_bytes(content[: len(content) // 2]),
        lambda path, content: path.write_bytes(
            content[: len(content) // 3] + bytes([content[len(content) // 3] ^ 1]) + content[len(content) // 3 + 1 :]
        ),
        lambda path, content: path.unlink(),
        lambda path, content: (path.rename(tmp_path / "there"), path.symlink_to(tmp_path / "there")),
    ]
    for position, name in enumerate(names):
        shutil.copytree(folder, tmp_path / "damaged")
        path = tmp_path / "damaged" / name
        changes[position % 4](path, path.read_bytes())
        caplog.clear()
        try:
            resumed = run(make_model, blobs, tmp_path / "damaged", **REWINDS)
        except ValueError as error:
            assert name.name in str(error)
            if name.parts[0] == "round_000" and name.name != "result.json":
                assert f"remove {tmp_path / 'damaged' / 'round_000'}" in str(error)
                shutil.rmtree(tmp_path / "damaged" / "round_000")
                assert_same(run(make_model, blobs, tmp_path / "damaged", **REWINDS), whole)
        else:
            # Without its result, a round is not done.
            gone = name.name == "result.json" and position % 4 == 2
            assert name.name == "metrics.jsonl" or "backup" in name.parts and name.name in caplog.text or gone
            assert_same(resumed, whole)
            assert metrics_of(tmp_path / "damaged") == metrics_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "damaged")


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_hostile_folder_is_refused(K, make_model, blobs, interrupted, tmp_path):
    """What has right checksums and wrong content, and links that lead elsewhere."""
    folder, whole = interrupted

    def forged(change, message):
        shutil.copytree(folder, tmp_path / "forged")
        round_ = tmp_path / "forged" / "round_000"
        fields = read_json(round_ / "result.json")
        change(round_ / "state.npz", fields)
        fields["files"] = {name: checksum(round_ / name) for name in fields["files"]}
        write_json(round_ / "result.json", fields)
        shutil.rmtree(tmp_path / "forged" / "round_001")
        with pytest.raises((ValueError, RuntimeError), match=message):
            run(make_model, blobs, tmp_path / "forged", **REWINDS)
        shutil.rmtree(tmp_path / "forged")

    def pickled(state, fields):
        np.savez(state, **{**np.load(state), "evil": np.array([print], object)})

    def other_shapes(state, fields):
        arrays = dict(np.load(state))
        name = next(name for name in arrays if "snapshots.first.0" in name)
        write_arrays(state, {**arrays, name: arrays[name][:1]})

    def other_state(state, fields):
        fields["state"]["weights"] = []

    def no_state(state, fields):
        fields["state"] = {}

    def list_for_dict(state, fields):
        fields["state"]["variables"] = [1]

    def file_elsewhere(state, fields):
        fields["files"] = {"../config.json": ""}

    forged(pickled, "not an array of numbers")
    forged(other_shapes, "does not fit this model")
    forged(other_state, "does not fit this model")
    forged(no_state, "does not fit this model")
    forged(list_for_dict, "does not fit this model")
    forged(file_elsewhere, "names other files")

    (tmp_path / "outside").mkdir()
    for name in ("round_001", "round_001/backup", "round_000", "metrics.jsonl", "round_007", ".aimp_tf_lock"):
        shutil.copytree(folder, tmp_path / "forged")
        path = tmp_path / "forged" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "outside", target_is_directory=True)
        try:
            assert_same(run(make_model, blobs, tmp_path / "forged", **REWINDS), whole)
        except RuntimeError as error:
            assert name == ".aimp_tf_lock" and "cannot be read or written" in str(error)
        assert list((tmp_path / "outside").iterdir()) == []
        shutil.rmtree(tmp_path / "forged")


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_full_disk_leaves_the_rounds_before(K, make_model, blobs, tmp_path, monkeypatch, backup_each_epoch):
    """Wherever it fills up. Root may write everywhere, so a failing fsync stands for the disk."""
    whole = run(make_model, blobs, tmp_path / "whole")
    sync, left = os.fsync, 0

    def fill_up(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    failures = 0
    for room in (3, 8, 17, 13, 20, 9, 1000):
        left = room
        try:
            resumed = run(make_model, blobs, tmp_path / "run")
            break
        except RuntimeError as error:
            assert "No space left" in str(error) and str(tmp_path / "run") in str(error)
            failures += 1
    assert failures > 3
    assert_same(resumed, whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_folder_in_use_is_refused(K, make_model, blobs, tmp_path):
    """In use by a run of this process; it is free when that ends, by an exception too."""

    class Meanwhile(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with pytest.raises(RuntimeError, match="Another process uses workdir"):
                run(make_model, blobs, tmp_path / "run")
            raise Crash

    with pytest.raises(Crash):
        run(make_model, blobs, tmp_path / "run", [Meanwhile()])
    assert run(make_model, blobs, tmp_path / "run").sparsity == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("crash", [{"epochs": 4}, {"epochs": 2}, {"epochs": 4, "batch": 1}])
def test_optimizers_that_a_model_holds_go_on_as_well(make_gan, blobs, tmp_path, monkeypatch, crash):
    """Two rounds of 3 epochs and a last training of 4."""
    import keras

    monkeypatch.setattr(saving, "_SECONDS_PER_BACKUP_SECOND", 0)
    tf.config.experimental.enable_op_determinism()

    def run(workdir, *callbacks):
        model = make_gan()
        data = (blobs[0], blobs[0])
        options = {"batch_size": 16}
        aimp_tf.prune(model, data, workdir=workdir, **options, callbacks=callbacks, **SETTINGS)
        slots = [variable.numpy() for optimizer in model.own.values() for variable in optimizer.variables]
        return [*model.get_weights(), *slots]

    whole = run(None)
    with pytest.raises(Crash):
        run(tmp_path / "run", CrashAt(keras, **crash))
    for one, other in zip(whole, run(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(one, other)


def fade(model):
    """Lets one kernel start so small that one ranking leaves nothing of it."""
    layer = model.layers[0]
    layer.set_weights([layer.get_weights()[0] * 1e-4, *layer.get_weights()[1:]])
    return model


def today_rounds_take_all_epochs(monkeypatch):
    """Lets the default length of a round be another one than version 1 had."""
    length = property(lambda config: config.round_epochs or config.epochs)
    monkeypatch.setattr(aimp_tf.PruningConfig, "resolved_round_epochs", length)


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", ["first round", "all rounds"])
def test_a_run_of_version_1_ends_under_its_defaults(K, make_model, blobs, tmp_path, monkeypatch, caplog, stopped_after):
    def prune(**settings):
        settings = {**SETTINGS, "round_epochs": None, "epochs": 6, **settings}
        return aimp_tf.prune(fade(make_model(K.optimizers.SGD(1e-9))), blobs, workdir=tmp_path / "run", **settings)

    begun = prune(min_layer_share=0, round_epochs=2, shrink=1, round_schedule="compress")
    as_version_1(tmp_path / "run", round_epochs=None)
    if stopped_after == "first round":
        shutil.rmtree(tmp_path / "run" / "final")
        shutil.rmtree(tmp_path / "run" / "round_001")
    today_rounds_take_all_epochs(monkeypatch)
    caplog.set_level("INFO", logger="aimp_tf")
    again = prune()
    # A fifth of 6, rounded up, in each of two rounds; today they would be 6. Of 128 and 48 weights, 44 are kept.
    assert [round_.epochs for round_ in again.rounds] == [2, 2, 6]
    assert [round_.kept for round_ in again.rounds] == [176, 88, 44]
    assert [layer.kept for layer in again.rounds[-1].layers] == [0, 44] and again.rounds[-1].guarded == ()
    assert (again.config.round_epochs, again.config.min_layer_share) == (2, 0)
    assert_same(again, begun)
    (message,) = [record.getMessage() for record in caplog.records if "older version" in record.getMessage()]
    assert message.endswith(
        "goes on with its defaults: round_epochs=2, shrink=1.0, round_schedule='compress', min_layer_share=0.0."
    )
    with pytest.raises(ValueError, match=r"another run: config.min_layer_share: 0.0 there, 0.2 here. Name"):
        prune(min_layer_share=0.2)
    with pytest.raises(ValueError, match=r"another run: config.round_epochs: 2 there, 3 here. Name"):
        prune(round_epochs=3)
    # And anew, under those of today.
    anew = prune(overwrite=True)
    assert [round_.epochs for round_ in anew.rounds] == [6, 6, 6]
    assert [layer.kept for layer in anew.rounds[-1].layers] == [2, 42]  # 0.05 of 0.25 of 128, rounded up.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["version"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_an_overwriting_that_was_killed_leaves_the_old_run_its_defaults(make_model, blobs, tmp_path):
    workdir, settings = tmp_path / "run", {"epochs": 1, "round_epochs": 1}
    whole = run(make_model, blobs, workdir, min_layer_share=0, **settings)
    as_version_1(workdir)
    aside = workdir / ".unfinished_overwritten"
    assert run_files.OVERWRITTEN == aside.name
    aside.mkdir()
    for entry in list(workdir.iterdir()):
        if entry.name not in (aside.name, ".aimp_tf_lock"):
            entry.rename(aside / entry.name)
    assert_same(run(make_model, blobs, workdir, **settings), whole)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_run_of_a_newer_version_is_refused(make_model, blobs, tmp_path):
    settings = {"epochs": 1, "round_epochs": 1}
    run(make_model, blobs, tmp_path / "run", **settings)
    as_version_1(tmp_path / "run", version=6, min_layer_share=0.1)
    with pytest.raises(ValueError, match="cannot be trusted: The config is of version 6, .* install that one"):
        run(make_model, blobs, tmp_path / "run", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_pruning_further_goes_on_from_the_same_zeros_alone(K, make_model, blobs, tmp_path):
    tf.config.experimental.enable_op_determinism()
    pruned = make_model()
    aimp_tf.prune(pruned, blobs, target_sparsity=0.5, rate=0.5, epochs=1, seed=0, verbose=0)
    zeros = pruned.get_weights()

    def further(workdir, *callbacks, weights=zeros):
        model = make_model()
        model.set_weights(weights)
        return aimp_tf.prune(
            model,
            blobs,
            masks="zeros",
            workdir=workdir,
            callbacks=callbacks,
            batch_size=16,
            **SETTINGS,
        )

    whole = further(None)
    assert [round_.kept for round_ in whole.rounds] == [88, 44]
    with pytest.raises(Crash):
        further(tmp_path / "run", CrashAt(K, 4))
    assert_same(further(tmp_path / "run"), whole)
    others = [np.where(np.arange(weight.size).reshape(weight.shape) % 3, weight, 0) for weight in zeros]
    with pytest.raises(ValueError, match="holds another run: it began with other masks"):
        further(tmp_path / "run", weights=others)
