"""What newcomers type first, by the habits of `fit`, of tfmot and of other tools: it works, or the error says what to
write. Made-up data: this tests mechanics only."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import aimp_tf
from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.files import read_json, write_json

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("float32"), RNG.integers(0, 3, 64)
BRIEF = {"target_sparsity": 0.75, "epochs": 2, "rate": 0.5, "round_epochs": 1, "verbose": 0}


def make(K=keras, loss=True):
    model = K.Sequential(
        [K.Input((8,)), K.layers.Dense(16, activation="relu", name="hidden"), K.layers.Dense(3, name="logits")]
    )
    if loss:
        model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[16 * index : 16 * (index + 1)], Y[16 * index : 16 * (index + 1)]


def prune(*data, K=keras, **settings):
    return aimp_tf.prune(make(K), *data, **{**BRIEF, **settings})


def wrapped_by_tfmot():
    """A model and what `fit` of it needs."""
    return import_with_tfmot("benchmarks.stock_tfmot").wrap_without_pruning(make(tf_keras))


def sequence(y):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6), keras.layers.Reshape((2, 3))])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return aimp_tf.prune(model, X, y, **BRIEF)


def one_output(y):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return aimp_tf.prune(model, X, y, **BRIEF)


def with_loss(loss, y):
    model = make()
    model.compile("adam", loss)
    return aimp_tf.prune(model, X, y, **BRIEF)


# What works, and what to look at in the result.
WORKS = {
    "as fit is called": lambda: prune(X, Y),
    "as fit is called, in tf_keras": lambda: prune(X, Y, K=tf_keras),
    "by name": lambda: prune(x=X, y=Y),
    "batch_size": lambda: prune(X, Y, batch_size=16),
    "class_weight": lambda: prune(X, Y, class_weight={0: 1.0, 1: 2.0, 2: 1.0}),
    "sample_weight": lambda: prune(X, Y, sample_weight=np.ones(64, "float32")),
    "validation_split": lambda: prune(X, Y, validation_split=0.25),
    "validation_data": lambda: prune(X, Y, validation_data=(X, Y)),
    "shuffle and steps_per_epoch": lambda: prune(X, Y, shuffle=False, steps_per_epoch=2),
    "one tuple": lambda: prune((X, Y)),
    "one tuple with weights": lambda: prune((X, Y, np.ones(64, "float32"))),
    "a dataset": lambda: prune(dataset()),
    "a PyDataset": lambda: prune(Batches()),
    "tensors": lambda: prune(tf.constant(X), tf.constant(Y)),
    "inputs in a list": lambda: prune([X], Y),
    "one callback": lambda: prune(X, Y, callbacks=keras.callbacks.TerminateOnNaN()),
    "a callback of one's own, of the other Keras": lambda: prune(
        X, Y, callbacks=type("Mine", (tf_keras.callbacks.Callback,), {})()
    ),
    "a config": lambda: aimp_tf.prune(make(), X, Y, config=aimp_tf.PruningConfig(0.75, epochs=1, rate=0.5), verbose=0),
    "a config and a field": lambda: prune(X, Y, config=aimp_tf.PruningConfig(0.5, epochs=9)),
    "a trained model": lambda: prune(X, Y, start="trained"),
    "epochs in all": lambda: prune(X, Y, total_epochs=4, epochs=None, round_epochs=None),
}

# What does not, and the line that the error must hold.
REFUSED = {
    "percent": (lambda: prune(X, Y, target_sparsity=75), "Write target_sparsity=0.75"),
    "percent as text": (lambda: prune(X, Y, target_sparsity="75%"), "Write target_sparsity=0.75"),
    "a number as text": (lambda: prune(X, Y, target_sparsity="0.75"), "Write target_sparsity=0.75"),
    "no target": (lambda: aimp_tf.prune(make(), X, Y, epochs=3), "target_sparsity=0.9"),
    "no epochs": (lambda: aimp_tf.prune(make(), X, Y, target_sparsity=0.9), "epochs=30"),
    "nothing at all": (lambda: aimp_tf.prune(make(), X, Y), "target_sparsity=0.9, epochs=30"),
    "no data": (lambda: prune(), "prune(model, x, y, ...)"),
    "x without y": (lambda: prune(X), "prune(model, x, y, ...)"),
    "a list of x and y": (lambda: prune([X, Y]), "prune(model, x, y, ...)"),
    "a generator": (lambda: prune(batch for batch in dataset()), "tf.data.Dataset.from_generator"),
    "y beside a dataset": (lambda: prune(dataset(), Y), "prune(model, dataset, ...)"),
    "a second dataset": (lambda: prune(dataset(), dataset()), "validation_data="),
    "a second tuple": (lambda: prune((X, Y), (X, Y)), "validation_data=y"),
    "validation_split of a dataset": (lambda: prune(dataset(), validation_split=0.1), "validation_data="),
    "a split of targets in a list": (lambda: prune(X, Y.tolist(), validation_split=0.1), "np.asarray"),
    "batch_size of a dataset": (lambda: prune(dataset(), batch_size=16), "leave out batch_size=16"),
    "an unbatched dataset": (lambda: prune(dataset().unbatch()), "dataset.batch(32)"),
    "a config by its place": (
        lambda: aimp_tf.prune(make(), (X, Y), aimp_tf.PruningConfig(0.5, epochs=1)),
        "prune(model, x, config=config)",
    ),
    "a dict of settings": (
        lambda: aimp_tf.prune(make(), (X, Y), {"target_sparsity": 0.75, "epochs": 2}),
        "config=aimp_tf.PruningConfig(**settings)",
    ),
    "a dict as config": (
        lambda: aimp_tf.prune(make(), X, Y, config={"target_sparsity": 0.75, "epochs": 2}),
        "config=aimp_tf.PruningConfig(**config)",
    ),
    "fit_options": (lambda: prune(X, Y, fit_options={"batch_size": 16}), "such as batch_size=64"),
    "train_data": (lambda: aimp_tf.prune(make(), train_data=(X, Y), **BRIEF), "Write the data by its place"),
    "tfmot's schedule": (lambda: prune(X, Y, pruning_schedule=object()), "target_sparsity=0.9, epochs=30"),
    "tfmot's final_sparsity": (lambda: prune(X, Y, final_sparsity=0.9), "Write target_sparsity=0.9"),
    "tfmot's steps": (lambda: prune(X, Y, end_step=1000), "method='gradual', ramp=0.5"),
    "tfmot's wrapping": (lambda: aimp_tf.wrap(make(), pruning_schedule=object()), "target_sparsity=0.9, epochs=30"),
    "target in wrap": (lambda: aimp_tf.wrap(make(), target_sparsity=0.9), "GlobalMagnitudePruning(target_sparsity=0.9"),
    "patterns in wrap by place": (lambda: aimp_tf.wrap(make(), ("hidden/*",)), "Write its fields as keywords"),
    "torch's amount": (lambda: prune(X, Y, amount=0.9), "Write target_sparsity=0.9"),
    "a learning rate": (lambda: prune(X, Y, learning_rate=0.1), "model.compile(optimizer=..."),
    "method imp": (lambda: prune(X, Y, method="imp"), "round_epochs=30"),
    "method one_shot": (lambda: prune(X, Y, method="one_shot"), "rate=0.9"),
    "method magnitude": (lambda: prune(X, Y, method="magnitude"), "criterion='magnitude'"),
    "method structured": (lambda: prune(X, Y, method="structured"), "granularity="),
    "a misspelt field": (lambda: prune(X, Y, target_sparcity=0.9), "Did you mean 'target_sparsity'?"),
    "a misspelt argument": (lambda: prune(X, Y, validaton_split=0.2), "Did you mean 'validation_split'?"),
    "export": (lambda: prune(X, Y, export="m.tflite"), "Did you mean 'export_to'?"),
    "a model that tfmot has wrapped": (
        lambda: aimp_tf.prune(wrapped_by_tfmot()[0], X, Y, **BRIEF),
        "tfmot.sparsity.keras.strip_pruning(model)",
    ),
    "tfmot's callback": (lambda: prune(X, Y, K=tf_keras, callbacks=wrapped_by_tfmot()[1]), "Leave it out"),
    "a misspelt choice": (lambda: prune(X, Y, rewind="weight"), "Did you mean 'weights'?"),
    "one pattern": (lambda: prune(X, Y, exclude="logits/*"), "Write exclude=('logits/*',)"),
    "a layer's name": (lambda: prune(X, Y, exclude=("logits",)), "logits/*"),
    "not compiled": (lambda: aimp_tf.prune(make(loss=False), X, Y, **BRIEF), "model.compile(optimizer=..., loss=...)"),
    "a path as model": (lambda: aimp_tf.prune("model.keras", X, Y, **BRIEF), "keras.models.load_model('model.keras')"),
    "a function as model": (lambda: aimp_tf.prune(make, X, Y, **BRIEF), "Expected a Keras model"),
    "data before the model": (lambda: aimp_tf.prune(X, Y, make(), **BRIEF), "prune(model, x, y, ...)"),
    "too few epochs in all": (
        lambda: aimp_tf.prune(make(), X, Y, target_sparsity=0.75, total_epochs=3, verbose=0),
        "Write total_epochs=",
    ),
    "epochs twice": (lambda: prune(X, Y, total_epochs=9), "Either epochs"),
    "x of another shape": (lambda: prune(X[:, :4], Y), "inputs of shape (None, 8)"),
    "y of another length": (lambda: prune(X, Y[:10]), "the same, non-zero number of examples"),
    "the target by its place": (lambda: aimp_tf.prune(make(), X, Y, 0.9), "prune(model, x, y, target_sparsity=0.9"),
    "epochs of fine_tune by their place": (
        lambda: aimp_tf.fine_tune(make(), X, Y, 3),
        "fine_tune(model, x, y, epochs=3)",
    ),
    "texts as y": (lambda: prune(X, np.array(["a", "b"] * 32)), "classes, y = np.unique(y, return_inverse=True)"),
    "texts as objects": (
        lambda: prune(X, np.array(["a", "b"] * 32, object)),
        "classes, y = np.unique(y, return_inverse",
    ),
    "y one-hot": (lambda: prune(X, np.eye(3)[Y]), "y = y.argmax(-1)"),
    "y one-hot, in tf_keras": (lambda: prune(X, np.eye(3)[Y], K=tf_keras), "y = y.argmax(-1)"),
    "y a list of numbers": (lambda: prune(X, Y.tolist()), "np.asarray(x) for a list of numbers"),
    "two classes and one output": (lambda: one_output(Y.clip(0, 1)), "Compile it with binary_crossentropy"),
    "one y for a sequence of outputs": (
        lambda: sequence(Y),
        "a number for each row of 3; got targets of shape (64,)",
    ),
    "a class that is none": (lambda: prune(X, np.where(Y == 2, 255, Y)), "ignore_class=255"),
    "a callback's class": (lambda: prune(X, Y, callbacks=[keras.callbacks.EarlyStopping]), "Write EarlyStopping()."),
    "a result as model": (lambda: aimp_tf.fine_tune(prune(X, Y), X, Y, epochs=1), "Write result.model"),
    "no steps": (lambda: prune(X, Y, steps_per_epoch=0), "steps_per_epoch must be at least 1; got 0"),
    "no batch": (lambda: prune(X, Y, batch_size=0), "batch_size must be at least 1; got 0"),
    "part of a batch": (lambda: prune(X, Y, batch_size=32.0), "batch_size must be a whole number; got 32.0"),
    "balanced": (lambda: prune(X, Y, class_weight="balanced"), "class_weight=dict(enumerate(weights))"),
    "weights in an array": (lambda: prune(X, Y, class_weight=np.ones(3)), "class_weight=dict(enumerate(weights))"),
    "half classes": (lambda: prune(X, Y + 0.5), "no whole numbers, such as"),
    "no class": (lambda: prune(X, np.where(Y == 0, np.nan, Y)), "no whole numbers, such as nan"),
    "texts for validation": (
        lambda: prune(X, Y, validation_data=(X, Y.astype(str))),
        "targets of validation_data are texts",
    ),
    "y not one-hot": (lambda: with_loss("categorical_crossentropy", Y), "y = keras.utils.to_categorical(y, 3)"),
    "classes from 1": (lambda: prune(X, Y + 1), "numbers from 0 to 2, for the model 'sequential"),
    "classes from 1 of fine_tune": (lambda: aimp_tf.fine_tune(make(), X, Y + 1, epochs=1), "got 1 to 3"),
    "a dense model evaluated in training": (
        lambda: prune(X, Y, start="trained", dense_baseline=True),
        "Give validation_data=(x_val, y_val)",
    ),
    "a file that ends in capitals": (lambda: prune(X, Y, export_to="m.KERAS"), "Write m.keras"),
    "tfmot's wrapper": (lambda: aimp_tf.prune_low_magnitude, "aimp_tf.prune(model, x, y, target_sparsity=0.9"),
    "tfmot's strip": (lambda: aimp_tf.strip_pruning, "aimp_tf.strip(model)"),
    "another name": (lambda: aimp_tf.pruner, "It has Criterion, Distillation, GlobalMagnitudePruning"),
    "save of a result": (lambda: prune(X, Y).save, "result.model.save"),
    "predict of a result": (lambda: prune(X, Y).predict, "result.model.predict"),
    "export of a result": (lambda: prune(X, Y).export, "aimp_tf.export(result, 'pruned.keras')"),
    "strip of a plain model": (lambda: aimp_tf.strip(make()), "aimp_tf.wrap(model)"),
    "compact of a file": (lambda: aimp_tf.compact("model.keras"), "keras.models.load_model('model.keras')"),
    "plan with data": (lambda: aimp_tf.plan(make(), X, target_sparsity=0.9, epochs=3), "leave out the data"),
    "plan with x and y": (lambda: aimp_tf.plan(make(), X, Y, target_sparsity=0.9, epochs=3), "target_sparsity=0.9"),
    "plan of a call of fit": (
        lambda: aimp_tf.plan(make(), target_sparsity=0.9, epochs=3, batch_size=16, verbose=0),
        "leave out batch_size, verbose",
    ),
    "mixed_precision=True": (lambda: prune(X, Y, mixed_precision=True), "Write mixed_precision='auto'"),
    "a file of a misspelt kind": (lambda: prune(X, Y, export_to="m.tfl"), "Write m.tflite"),
    "a picture of the curve": (lambda: prune(X, Y).plot("p.png"), "result.plot().figure.savefig('p.png')"),
    "a callback that waits for validation": (
        lambda: prune(X, Y, callbacks=keras.callbacks.EarlyStopping(patience=1)),
        "validation_split=0.1",
    ),
    "targets of another shape": (lambda: with_loss("mse", Y[:, None] * np.ones(4)), "outputs of shape (None, 3)"),
    "Keras' way to go on": (
        lambda: prune(X, Y, callbacks=keras.callbacks.BackupAndRestore("backup")),
        "Leave it out, and write workdir='runs/mine'",
    ),
    "the callback of one's own loop": (
        lambda: prune(X, Y, callbacks=aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, epochs=1)),
        "Leave it out, and give its settings to prune",
    ),
    "a callback of Keras 3 for tf_keras": (
        lambda: prune(X, Y, K=tf_keras, callbacks=keras.callbacks.TerminateOnNaN()),
        "Write tf_keras.callbacks.TerminateOnNaN.",
    ),
    "one's own callback of Keras 3 for tf_keras": (
        lambda: prune(X, Y, K=tf_keras, callbacks=type("Mine", (keras.callbacks.Callback,), {})()),
        "Write tf_keras.callbacks.Callback.",
    ),
    "a callback of tf_keras for Keras 3": (
        lambda: aimp_tf.fine_tune(make(), X, Y, epochs=1, callbacks=tf_keras.callbacks.TerminateOnNaN()),
        "Write keras.callbacks.TerminateOnNaN.",
    ),
    "a callback that watches a misspelt metric": (
        lambda: prune(X, Y, validation_split=0.25, callbacks=keras.callbacks.EarlyStopping("val_acc", mode="max")),
        "Did you mean 'val_accuracy'?",
    ),
    "weights of some classes": (lambda: prune(X, Y, class_weight={0: 1.0, 1: 2.0}), "{**class_weight, 2: 1.0}"),
    "weights of some classes, one-hot": (
        lambda: aimp_tf.fine_tune(make(), X, np.eye(3)[Y], epochs=1, class_weight={0: 1.0}),
        "y = y.argmax(-1)",
    ),
    "epochs as text": (lambda: prune(X, Y, epochs="2"), "Write epochs=2."),
    "epochs with a point": (lambda: prune(X, Y, epochs=2.0), "Write epochs=2."),
    "history of a result": (lambda: prune(X, Y).history, "metrics.jsonl"),
    "a misspelt name": (lambda: aimp_tf.GlobalMagnitudePrunning, "Did you mean 'GlobalMagnitudePruning'?"),
    "one layer's name": (lambda: prune(X, Y, exclude="logits"), "Write exclude=('logits/*',)."),
    "a batch without a list": (lambda: prune(X, Y, callbacks="early_stopping"), "callbacks must be Keras callbacks"),
}


@pytest.mark.parametrize("attempt", WORKS)
def test_a_first_attempt_works(attempt):
    result = WORKS[attempt]()
    assert result.sparsity == pytest.approx(0.75, abs=0.01)
    assert ("val_loss" in result.rounds[-1].metrics) == ("validation" in attempt)


@pytest.mark.parametrize("attempt", REFUSED)
def test_a_first_attempt_is_told_what_to_write(attempt):
    attempted, line = REFUSED[attempt]
    with pytest.raises((AttributeError, TypeError, ValueError)) as raised:
        attempted()
    assert line in str(raised.value)


@pytest.mark.parametrize("K", [keras, tf_keras])
def test_targets_that_the_loss_takes_are_let_through(K):
    def compiled(loss, outputs=3):
        model = K.Sequential([K.Input((8,)), K.layers.Dense(16, activation="relu"), K.layers.Dense(outputs)])
        model.compile("sgd", loss)
        return model

    def categorical_crossentropy(y, outputs):
        """The user's own, which takes numbers for all its name."""
        return K.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)

    @functools.wraps(K.losses.sparse_categorical_crossentropy)
    def wrapped(y, outputs):
        return K.losses.sparse_categorical_crossentropy(y - 1, outputs, from_logits=True)

    class OneHot(K.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **others):
            return super().compute_loss(x, tf.one_hot(tf.cast(y, tf.int32), 3), y_pred, sample_weight, **others)

    if K is keras:  # A subclassed model of tf_keras cannot be wrapped.
        model = OneHot([K.Input((8,)), K.layers.Dense(16, activation="relu"), K.layers.Dense(3, activation="softmax")])
        model.compile("sgd", "categorical_crossentropy")
        aimp_tf.prune(model, X, Y, **{**BRIEF, "epochs": 1, "rate": 0.75})
    sparse = {"from_logits": True, "ignore_class": -1}
    for loss, y, outputs in (
        (K.losses.SparseCategoricalCrossentropy(**sparse), np.where(Y == 2, -1, Y), 3),
        ("sparse_categorical_crossentropy", Y[:, None], 3),
        ("sparse_categorical_crossentropy", Y.astype("float32"), 3),
        (K.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), np.eye(3)[Y], 3),
        (categorical_crossentropy, Y, 3),
        (wrapped, Y + 1, 3),
        ("mse", Y + 10, 1),
    ):
        aimp_tf.prune(compiled(loss, outputs), X, y, **{**BRIEF, "epochs": 1, "rate": 0.75})


@pytest.mark.slow
@pytest.mark.parametrize("K", [keras, tf_keras])
def test_what_a_callback_watches_may_come_from_elsewhere(K, tmp_path):
    class ValidatesItself(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = 1.0

    prune(X, Y, K=K, callbacks=[ValidatesItself(), K.callbacks.EarlyStopping(monitor="val_loss", patience=9)])
    prune(X, Y, K=K, callbacks=K.callbacks.EarlyStopping(monitor="loss", patience=9))
    # Which would watch val_loss, if it were to save the best alone.
    prune(X, Y, K=K, callbacks=K.callbacks.ModelCheckpoint(str(tmp_path / "model.keras")))
    prune(X, Y, K=K, callbacks=K.callbacks.EarlyStopping(patience=9), validation_split=0.25)


@pytest.mark.parametrize("K", [keras, tf_keras])
def test_another_run_in_a_workdir_is_told_in_words(K, tmp_path):
    def refused(text, *data, model=None, **settings):
        with pytest.raises(ValueError, match=text) as raised:
            aimp_tf.prune(model or make(K), *data, **BRIEF, workdir=tmp_path / "run", **settings)
        assert len(str(raised.value)) < 700

    prune(X, Y, K=K, workdir=tmp_path / "run")
    refused("the values of its training data were others. Name another folder", X + 1, Y)
    wider = K.Sequential([K.Input((8,)), K.layers.Dense(17, name="hidden"), K.layers.Dense(3, name="logits")])
    wider.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    refused(r"model\.layers\.\d\.config\.units: 16 there, 17 here", X, Y, model=wider)
    faster = make(K)
    faster.optimizer.learning_rate.assign(0.1)
    refused(r"model\.optimizer\.config\.learning_rate: 0\.001\d* there, 0\.1\d* here", X, Y, model=faster)
    prune(X, Y, K=K, workdir=tmp_path / "run")  # Done before.


@pytest.mark.parametrize("K", [keras, tf_keras])
def test_a_workdir_is_of_one_trained_model(K, tmp_path):
    model, again, other = make(K), make(K), make(K)
    weights = other.get_weights()
    again.set_weights(model.get_weights())
    first = aimp_tf.prune(model, X, Y, **BRIEF, start="trained", workdir=tmp_path / "run")
    with pytest.raises(ValueError, match="it began with other weights"):
        aimp_tf.prune(other, X, Y, **BRIEF, start="trained", workdir=tmp_path / "run")
    for here, there in zip(other.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(here, there)
    aimp_tf.prune(again, X, Y, **BRIEF, start="trained", workdir=tmp_path / "run")
    for here, there in zip(again.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_run_goes_on_that_noted_less_of_its_model(tmp_path):
    """As tf_keras' optimizers by their names alone, and no trained weights, were noted once."""
    settings = {**BRIEF, "K": tf_keras, "start": "trained", "workdir": tmp_path / "run"}
    first = prune(X, Y, **settings)
    signature = read_json(tmp_path / "run" / "signature.json")
    assert signature["model"]["optimizer"]["class_name"] == "Adam" and signature.pop("trained_weights")
    signature["model"]["optimizer"] = "adam"
    write_json(tmp_path / "run" / "signature.json", signature)
    again = prune(X, Y, **settings)
    assert [round_.metrics for round_ in again.rounds] == [round_.metrics for round_ in first.rounds]


@pytest.mark.slow
def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = prune(X, Y, workdir="~/run", export_to="~/pruned.keras")
    result.report("~/page.html")
    # Libraries keep what they found out there, too.
    written = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(path.name for path in written) == ["page.html", "pruned.keras", "run"]


def test_an_interruption_says_how_to_go_on(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    for settings, notes in (({}, []), ({"workdir": tmp_path / "run"}, [f"goes on with {tmp_path / 'run'}."])):
        with pytest.raises(KeyboardInterrupt) as raised:
            prune(X, Y, callbacks=Interrupt(), **settings)
        assert [note.partition("before, ")[2] for note in getattr(raised.value, "__notes__", [])] == notes


def test_a_model_of_pytorch_is_told_from_one_of_keras():
    class Module:
        """As torch.nn.Module, which the tests do not need."""

    Module.__module__ = "torch.nn.modules.module"
    with pytest.raises(TypeError, match=r"torch\.nn.*keras\.Model"):
        aimp_tf.prune(Module(), X, Y, **BRIEF)


def test_forty_attempts_are_listed():
    assert len(WORKS) + len(REFUSED) >= 40
