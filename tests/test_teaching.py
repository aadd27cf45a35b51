"""Learning from a teacher: on scikit-learn's digits, where nothing else is said, in both generations of Keras."""

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.config import PruningConfig
from aimp_tf.training import fitting
from aimp_tf.training.teaching import Distilled, Teacher

SETTINGS = {
    "target_sparsity": 0.5,
    "rate": 0.3,
    "epochs": 2,
    "round_epochs": 1,
    "batch_size": 50,
    "seed": 0,
    "verbose": 0,
}


@pytest.fixture
def make(K):
    """A function that makes a compiled classifier of the digits, without dropout or normalisation."""

    def make(seed=1, activation="softmax", loss=None, optimizer=None, units=10):
        K.utils.set_random_seed(seed)
        hidden = K.layers.Dense(24, activation="tanh", name="hidden")
        model = K.Sequential([K.Input((64,)), hidden, K.layers.Dense(units, activation=activation, name="head")])
        loss = loss or K.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
        model.compile(optimizer or K.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        return model

    return make


@pytest.fixture
def data(digits):
    return digits[0][:200], digits[1][:200]


def weights_of(model):
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


def term(teacher, student, x, y, of_targets=0.0, sample_weight=None, **settings):
    """The distance from the teacher, as a step computes it."""
    distilled = Distilled(Teacher(teacher, student), aimp_tf.Distillation(**settings), student)
    return distilled(tf.constant(x), student(x), sample_weight, lambda: tf.constant(of_targets))


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize("temperature", [1, 4])
def test_the_distance_between_classes(make, data, activation, temperature):
    student, teacher = make(1, activation), make(2, activation)
    log_p, log_q = (np.asarray(model(data[0]), "float64") for model in (teacher, student))
    if activation == "softmax":
        log_p, log_q = np.log(log_p), np.log(log_q)

    def softened(logits):
        exponentials = np.exp(logits / temperature)
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    p, q = softened(log_p), softened(log_q)
    expected = temperature**2 * np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
    added, told = term(teacher, student, *data, of_targets=3.0, weight=0.25, temperature=temperature)
    assert float(told) == pytest.approx(expected, rel=1e-4) and expected > 0.01
    assert float(added) == pytest.approx(0.25 * (expected - 3), rel=1e-4)


def test_a_teacher_of_probabilities_and_a_student_of_logits(make, data):
    logits, probabilities = make(1, None), make(1, "softmax")
    probabilities.set_weights(logits.get_weights())
    assert float(term(probabilities, logits, *data)[1]) == pytest.approx(0, abs=1e-5)


def test_what_a_teacher_gives_is_told_by_its_loss_or_its_last_layer(K, make, data):
    """Be the loss in a list or by a name, or one that does not tell, and be it compiled or not."""
    logits = make(1, None)

    def teach(activation=None, loss=None, more=()):
        head = K.layers.Dense(10, activation=activation)
        model = K.Sequential([K.Input((64,)), K.layers.Dense(24, activation="tanh"), head, *more])
        model.set_weights(logits.get_weights())
        if loss is not None:
            model.compile("sgd", loss)
        return model

    def mine(y_true, y_pred):
        return K.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    of_logits = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    by_name = "sparse_categorical_crossentropy"
    teachers = [teach(None, loss) for loss in ([of_logits], {"one": of_logits}, of_logits, mine, None)]
    teachers += [teach("softmax"), teach("softmax", by_name), teach(more=[K.layers.Softmax()])]
    for student in (logits, teach("softmax", [by_name])):
        for teacher in teachers:
            assert float(term(teacher, student, *data, temperature=2)[1]) == pytest.approx(0, abs=1e-5)


def test_a_teacher_that_cannot_be_seen_through_gives_what_its_student_gives(K, make, data):
    class Unseen(K.Model):
        def __init__(self, within):
            super().__init__()
            self.within, self.scale = within, self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, x):
            return self.within(x) * self.scale

    for activation in ("softmax", None):
        teacher = Unseen(make(1, activation))
        teacher(data[0][:1])
        assert float(term(teacher, make(1, activation), *data)[1]) == pytest.approx(0, abs=1e-5)


def test_a_loss_that_is_named_like_one_of_keras_says_nothing(K, make, data):
    def weighted_categorical_crossentropy(y_true, y_pred):
        return K.losses.categorical_crossentropy(y_true, y_pred, from_logits=True)

    model = make(1, None, weighted_categorical_crossentropy)
    with pytest.raises(ValueError, match="weighted_categorical_crossentropy, which does not say how its outputs"):
        term(make(2, None), model, *data)


def test_the_distance_between_yes_and_no(K, make, data):
    student, teacher = (make(seed, "sigmoid", K.losses.BinaryCrossentropy(), units=1) for seed in (1, 2))
    p, q = (np.asarray(model(data[0]), "float64") for model in (teacher, student))
    expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert float(term(teacher, student, *data, temperature=1)[1]) == pytest.approx(expected, rel=1e-3)


def test_numbers_follow_by_the_loss_itself(make, data):
    student, teacher = (make(seed, None, "mse", units=3) for seed in (1, 2))
    expected = np.mean((np.asarray(teacher(data[0])) - np.asarray(student(data[0]))) ** 2)
    assert float(term(teacher, student, *data)[1]) == pytest.approx(expected, rel=1e-5)


def test_examples_are_weighed(make, data):
    student, teacher = make(1), make(2)
    halves = tf.constant(np.repeat([2.0, 0.0], 100).astype("float32"))
    first = float(term(teacher, student, data[0][:100], None)[1])
    assert float(term(teacher, student, data[0], None, sample_weight=halves)[1]) == pytest.approx(first, rel=1e-5)


def test_a_teacher_that_is_the_model_itself_adds_nothing(K, make, data):
    """A step with it is one with the loss of the targets alone, at that part of the rate."""
    ends = []
    for weight in (0.0, 0.4):
        model = make(optimizer=K.optimizers.SGD(0.1 * (1 - 0.4 + weight)))
        teacher = make()
        pruning = aimp_tf.GlobalMagnitudePruning(
            target_sparsity=0.5, epochs=1, rate=0.3, distillation=aimp_tf.Distillation(weight=0.4) if weight else None
        )
        pruning.teacher = teacher if weight else None
        masked = aimp_tf.wrap(model)
        masked.fit(*data, batch_size=200, callbacks=[pruning], verbose=0)
        ends.append(weights_of(model))
        if weight:
            assert pruning.epoch_logs[0]["distillation"] == pytest.approx(0, abs=1e-5)
    assert np.abs(ends[0] - weights_of(make())).max() > 1e-3
    np.testing.assert_allclose(*ends, atol=1e-6)


def test_the_loss_that_is_told_is_that_of_the_targets(make, data):
    model, teacher = make(optimizer="sgd"), make(2)
    expected = model.evaluate(*data, batch_size=200, verbose=0)[0]
    result = aimp_tf.prune(model, *data, teacher=teacher, **SETTINGS | {"batch_size": 200})
    assert result.rounds[0].metrics["loss"] == pytest.approx(expected, rel=1e-4)
    assert result.rounds[0].metrics["distillation"] > 0.01


def test_arrays_batches_and_a_device_teach_the_same(make, data):
    teacher, ends = make(2), []
    before = weights_of(teacher)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(50)
    settings = {name: value for name, value in SETTINGS.items() if name != "batch_size"}
    for x, options in (
        (data, {"batch_size": 50, "shuffle": False}),
        (data, {"batch_size": 50, "shuffle": False, "data_on_device": True}),
        (batches, {}),
        (data, {"batch_size": 50, "shuffle": False, "class_weight": dict.fromkeys(range(10), 1.0)}),
    ):
        result = aimp_tf.prune(make(), x, teacher=teacher, **settings, **options)
        ends.append(weights_of(result.model))
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=1e-6)
    np.testing.assert_array_equal(weights_of(teacher), before)
    plain = aimp_tf.prune(make(), data, shuffle=False, batch_size=50, **settings)
    assert np.abs(weights_of(plain.model) - ends[0]).max() > 1e-3


@pytest.mark.parametrize("room", [2**20, 0])
def test_arrays_are_looked_up_once_unless_that_takes_too_much(K, data, monkeypatch, room):
    """What the teacher gives of one batch tells how much it would be."""
    monkeypatch.setattr(fitting, "_KEPT_BYTES", room)

    def make():
        model = K.Sequential([K.Input((64,)), K.layers.Dense(100)])  # Larger than what it is made of.
        model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    teacher, asked = make(), []
    predict = teacher.predict
    monkeypatch.setattr(teacher, "predict", lambda x, **settings: asked.append(len(x)) or predict(x, **settings))
    aimp_tf.prune(make(), *data, teacher=teacher, **SETTINGS)
    assert asked == [50, 200] if room else asked == [50]


def test_a_step_of_ones_own_that_changes_its_inputs(K, make, data):
    """Its teacher sees what the model sees."""

    class Mixing(K.Model):
        def train_step(self, batch):
            return super().train_step((batch[0][::-1], batch[1]))

    plain = make()
    model = Mixing(plain.inputs, plain.outputs)
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy())
    result = aimp_tf.prune(model, *data, teacher=make(), **SETTINGS | {"batch_size": 200})
    assert result.rounds[0].metrics["distillation"] == pytest.approx(0, abs=1e-6)


def test_in_a_loop_of_ones_own(make, data):
    ends = []
    for own in (True, False):
        model, teacher = make(), make(2)
        if own:
            pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.3, epochs=2, round_epochs=1)
            pruning.teacher = teacher
            masked = aimp_tf.wrap(model)
            while not pruning.finished:
                masked.fit(
                    *data, epochs=pruning.next_epochs, batch_size=50, shuffle=False, callbacks=[pruning], verbose=0
                )
            aimp_tf.strip(masked)
        else:
            aimp_tf.prune(model, *data, teacher=teacher, shuffle=False, **SETTINGS)
        ends.append(weights_of(model))
    np.testing.assert_allclose(*ends, atol=1e-6)


def test_the_dense_model_teaches(make, data, tmp_path):
    options = {"teacher": "dense", "dense_baseline": 3, "validation_split": 0.2}
    model = make()
    result = aimp_tf.prune(model, *data, workdir=tmp_path / "run", **options, **SETTINGS)
    assert result.outcome.dense_epochs == 3
    assert all(round_.metrics["distillation"] > 0 for round_ in result.rounds)
    # The same as a model that was trained so before.
    dense = make()
    dense_run = aimp_tf.prune(
        dense,
        data[0][:160],
        data[1][:160],
        method="dense",
        epochs=3,
        target_sparsity=0.5,
        batch_size=50,
        seed=0,
        verbose=0,
    )
    given = aimp_tf.prune(make(), *data, teacher=dense_run.model, **SETTINGS | {"validation_split": 0.2})
    np.testing.assert_allclose(weights_of(given.model), weights_of(model), atol=1e-6)
    # It goes on with the teacher that it began with, without training one.
    (tmp_path / "run" / "final" / "result.json").unlink()
    again = make()
    aimp_tf.prune(again, *data, workdir=tmp_path / "run", **options, **SETTINGS)
    np.testing.assert_array_equal(weights_of(again), weights_of(model))
    (tmp_path / "run" / "teacher.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="teacher.npz is missing or damaged"):
        aimp_tf.prune(make(), *data, workdir=tmp_path / "run", **options, **SETTINGS)


@pytest.mark.parametrize("options", [{}, {"data_on_device": True}, {"validation_split": 0.2}])
def test_nothing_is_left_on_the_model(make, data, options):
    model = make()
    before = set(vars(model))
    monitor = {"validation_split": "distillation"}.get(next(iter(options), ""))
    callbacks = [] if monitor is None else [early_stopping(model, monitor)]
    aimp_tf.prune(model, *data, teacher=make(2), regularizer="group_lasso", callbacks=callbacks, **options, **SETTINGS)
    assert not {"compute_loss", "reset_metrics", "train_step", "_symbolic_build"} & set(vars(model)) - before
    assert not {"distillation", "penalty"} & set(model.fit(*data, verbose=0).history)


def early_stopping(model, monitor):
    import keras
    import tf_keras

    module = keras if isinstance(model, keras.Model) else tf_keras
    return module.callbacks.EarlyStopping(monitor=monitor, mode="min", patience=9)


def test_padded_positions_do_not_count(K):
    def tagger(seed):
        K.utils.set_random_seed(seed)
        L = K.layers
        model = K.Sequential([K.Input((6,)), L.Embedding(9, 8, mask_zero=True), L.LSTM(5, return_sequences=True)])
        model.add(L.Dense(3, activation="softmax"))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    student, teacher = tagger(1), tagger(2)
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])
    real = x != 0
    p, q = (np.asarray(model(x), "float64") for model in (teacher, student))
    divergences = np.sum(p * np.log(p / q), axis=-1)
    measured = float(term(teacher, student, x, None, temperature=1)[1])
    assert measured == pytest.approx(divergences[real].mean(), rel=5e-3)
    assert abs(divergences.mean() - divergences[real].mean()) > 0.02 * divergences.mean()
    weights = np.arange(12.0).reshape(2, 6).astype("float32")
    measured = float(term(teacher, student, x, None, sample_weight=tf.constant(weights), temperature=1)[1])
    assert measured == pytest.approx((divergences * weights)[real].sum() / real.sum(), rel=5e-3)


def test_a_step_of_ones_own_that_hands_on_no_inputs(K, make, data):
    class Own(K.Model):
        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    plain = make()
    model = Own(plain.inputs, plain.outputs)
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy())
    batches = tf.data.Dataset.from_tensor_slices(data).batch(50)
    settings = {name: value for name, value in SETTINGS.items() if name != "batch_size"}
    result = aimp_tf.prune(model, batches, teacher=make(2), **settings)
    assert result.rounds[0].metrics["distillation"] > 0


def test_another_teacher_is_another_run(make, data, tmp_path):
    aimp_tf.prune(make(), *data, teacher=make(2), workdir=tmp_path, **SETTINGS)
    aimp_tf.prune(make(), *data, teacher=make(2), workdir=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="holds another run: it learned from another teacher"):
        aimp_tf.prune(make(), *data, teacher=make(3), workdir=tmp_path, **SETTINGS)


def test_channels_and_rounds_that_shrink(K, data):
    """The teacher's outputs are those of the whole network, whatever is left of the student."""

    def convolutional(seed):
        K.utils.set_random_seed(seed)
        L = K.layers
        model = K.Sequential(
            [K.Input((8, 8, 1)), L.Conv2D(12, 3, activation="relu"), L.Conv2D(8, 3, activation="relu"), L.Flatten()]
        )
        model.add(L.Dense(10, activation="softmax"))
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    ends = []
    for compact in (True, False):
        result = aimp_tf.prune(
            convolutional(1),
            data[0].reshape(-1, 8, 8, 1),
            data[1],
            teacher=convolutional(2),
            granularity="channel",
            compact_rounds=compact,
            **SETTINGS,
        )
        ends.append(result.rounds[-1].metrics["distillation"])
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_replicas(K, make, data, strategy):
    ends = []
    for scope in (strategy.scope(), tf.distribute.get_strategy().scope()):
        with scope:
            model = make()
        teacher = make(2)
        result = aimp_tf.prune(model, *data, teacher=teacher, **SETTINGS)
        ends.append((weights_of(model), result.rounds[0].metrics["distillation"]))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-5)
    # Older Keras tells what one of the replicas has seen.
    of_all = K.__name__ == "tf_keras" or tuple(map(int, K.__version__.split(".")[:2])) >= (3, 13)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-3 if of_all else 0.5)


def test_half_precision(make, data):
    ends = []
    for precision in (None, "mixed_bfloat16", "mixed_float16"):
        result = aimp_tf.prune(make(), *data, teacher=make(2), mixed_precision=precision, **SETTINGS)
        ends.append(result.rounds[0].metrics["distillation"])
    assert ends == pytest.approx([ends[0]] * 3, rel=0.03)


def test_several_outputs_by_a_function(K, data):
    def two_headed(seed):
        K.utils.set_random_seed(seed)
        inputs = K.Input((64,))
        hidden = K.layers.Dense(16, activation="tanh")(inputs)
        model = K.Model(inputs, [K.layers.Dense(10, name="a")(hidden), K.layers.Dense(2, name="b")(hidden)])
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", [loss, loss])
        return model

    def distance(taught, given):
        return sum(tf.reduce_mean((theirs - ours) ** 2, axis=-1) for theirs, ours in zip(taught, given, strict=True))

    x, y = data[0], (data[1], data[1] % 2)
    with pytest.raises(ValueError, match="does not say how its outputs are to follow"):
        aimp_tf.prune(two_headed(1), x, y, teacher=two_headed(2), **SETTINGS)
    distillation = aimp_tf.Distillation(weight=1, loss=distance)
    result = aimp_tf.prune(two_headed(1), x, y, teacher=two_headed(2), distillation=distillation, **SETTINGS)
    told = [round_.metrics["distillation"] for round_ in result.rounds]
    assert 0 < told[-1] < told[0]


@pytest.mark.slow
def test_features_are_drawn_to_those_of_the_teacher(make, data):
    student, teacher = make(1), make(2)
    hidden = [np.tanh(data[0] @ np.asarray(model.get_layer("hidden").kernel)) for model in (student, teacher)]
    expected = np.mean((hidden[0] - hidden[1]) ** 2) / np.mean(hidden[1] ** 2)
    added = []
    for features in ((), ("hidden",)):
        distillation = aimp_tf.Distillation(weight=1.0, features=features)
        settings = SETTINGS | {"batch_size": 200, "epochs": 8, "round_epochs": 8}
        result = aimp_tf.prune(make(1), *data, teacher=teacher, distillation=distillation, **settings)
        pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, epochs=1, distillation=distillation)
        pruning.teacher, masked = teacher, aimp_tf.wrap(make(1))
        masked.fit(*data, batch_size=200, callbacks=[pruning], verbose=0)
        added.append(pruning.epoch_logs[0]["distillation"])
        ours = np.tanh(data[0] @ np.asarray(result.model.get_layer("hidden").kernel))
        assert features == () or np.mean((ours - hidden[1]) ** 2) / np.mean(hidden[1] ** 2) < 0.95 * expected
        assert not any("call" in vars(layer) for model in (result.model, teacher) for layer in model.layers)
    assert added[1] - added[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.exhaustive
def test_a_better_teacher_makes_a_better_student(make, digits):
    """Of few labels, a teacher that was trained on all of the digits lets more be learnt."""
    teacher = make(3)
    teacher.fit(digits[0][:1400], digits[1][:1400], epochs=30, batch_size=32, verbose=0)
    test, accuracies = (digits[0][1400:], digits[1][1400:]), []
    noisy = np.random.default_rng(0).permutation(digits[1][:100])  # Labels that teach nothing.
    for settings in ({}, {"teacher": teacher, "distillation": aimp_tf.Distillation(weight=1.0)}):
        model = make()
        aimp_tf.prune(model, digits[0][:100], noisy, **settings, **SETTINGS | {"epochs": 60, "batch_size": 10})
        accuracies.append(model.evaluate(*test, verbose=0)[1])
    assert accuracies[0] < 0.3 and accuracies[1] > 0.7


def test_keras_own_distiller_is_pruned_as_it_is(digits):
    keras = pytest.importorskip("keras")
    if not hasattr(keras, "distillation"):
        pytest.skip("This Keras has no Distiller.")

    def network(seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(24, activation="relu", name=f"hidden_{seed}"), keras.layers.Dense(10)]
        return keras.Sequential([keras.Input((64,)), *layers])

    student, teacher = network(1), network(2)
    distiller = keras.distillation.Distiller(
        teacher, student, keras.distillation.LogitsDistillation(temperature=2.0), student_loss_weight=0.5
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    before = weights_of(teacher)
    result = aimp_tf.prune(distiller, digits[0][:200], digits[1][:200], **SETTINGS)
    assert result.sparsity == pytest.approx(0.5, abs=1e-3) and len(result.masks) == 2
    assert aimp_tf.sparsity(student) == pytest.approx(0.5, abs=1e-3)
    np.testing.assert_array_equal(weights_of(teacher), before)


def test_mistakes_are_told_before_training(K, make, data):
    import keras
    import tf_keras

    other = tf_keras if K is keras else keras
    stranger = other.Sequential([other.Input((64,)), other.layers.Dense(10)])
    narrow = K.Sequential([K.Input((64,)), K.layers.Dense(3)])
    unbuilt = K.Sequential([K.layers.Dense(10)])
    hinge = make(loss="squared_hinge")
    for model, settings, error, message in (
        (make(), {"teacher": "dens"}, ValueError, "teacher must be a Keras model or 'dense'"),
        (make(), {"teacher": "dense"}, ValueError, "Write dense_baseline=True"),
        (make(), {"teacher": 3}, TypeError, "Expected a Keras model"),
        (make(), {"teacher": stranger}, TypeError, "The teacher must be a model of"),
        (
            make(),
            {"teacher": narrow},
            ValueError,
            r"outputs of shape \[\(3,\)\], and the model that learns \[\(10,\)\]",
        ),
        (make(), {"teacher": unbuilt}, ValueError, "has no weights yet"),
        (make(), {"distillation": aimp_tf.Distillation()}, ValueError, "Give teacher=model"),
        (make(), {"distillation": 0.5}, TypeError, "distillation must be None or an aimp_tf.Distillation; got 0.5"),
        (hinge, {"teacher": make(2)}, ValueError, "the loss 'squared_hinge', which does not say"),
        (
            make(),
            {"teacher": make(2), "distillation": aimp_tf.Distillation(features=("hiden",))},
            ValueError,
            "has no 'hiden'. Did you mean 'hidden'",
        ),
    ):
        before = weights_of(model)
        with pytest.raises(error, match=message):
            aimp_tf.prune(model, *data, **settings, **SETTINGS)
        np.testing.assert_array_equal(before, weights_of(model))
    model = make()
    with pytest.raises(ValueError, match="has weights that are about to be trained and pruned. Give a copy"):
        aimp_tf.prune(model, *data, teacher=model, **SETTINGS)


def test_settings():
    for settings, error in (
        ({"weight": 0}, ValueError),
        ({"weight": 1.1}, ValueError),
        ({"weight": "much"}, TypeError),
        ({"temperature": 0}, ValueError),
        ({"temperature": float("inf")}, ValueError),
        ({"temperature": None}, TypeError),
        ({"loss": 3}, TypeError),
        ({"features": "hidden"}, TypeError),
    ):
        with pytest.raises(error, match="of a Distillation must"):
            aimp_tf.Distillation(**settings)
    config = PruningConfig(0.5, epochs=2, distillation=aimp_tf.Distillation(0.3, 5, ("hidden",)))
    assert PruningConfig.from_json(config.to_json()) == config
    # Of a function, a file keeps the name: enough to report on the run, and not to train.
    config = PruningConfig(0.5, epochs=2, distillation=aimp_tf.Distillation(loss=term))
    read = PruningConfig.from_json(config.to_json())
    assert read.distillation.loss.endswith("test_teaching.term")
    with pytest.raises(ValueError, match="loss of a Distillation must be a function"):
        read.validate()
