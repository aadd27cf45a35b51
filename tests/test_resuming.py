"""Runs that are interrupted and go on: mechanics only, on made-up data, unless a test says otherwise."""

import json

import numpy as np
import pytest

import aimp_tf

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 3, "verbose": 0, "seed": 1}


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
        layers = [K.Input((8,)), K.layers.Dense(16, activation="relu", name="hidden"), K.layers.BatchNormalization()]
        if K.__name__ == "keras":  # tf_keras' keeps the state of its random numbers where nothing can read it.
            layers.append(K.layers.Dropout(0.3))
        model = K.Sequential([*layers, K.layers.Dense(3, name="logits")])
        schedule = K.optimizers.schedules.CosineDecay(0.05, 4 * 4)
        model.compile(
            optimizer=K.optimizers.Adam(schedule) if optimizer is None else optimizer,
            loss=K.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return model

    return make


def run(make_model, blobs, workdir, callbacks=(), optimizer=None, **settings):
    settings = {**SETTINGS, **settings}
    options = {"batch_size": 16, **settings.pop("fit_options", {})}
    return aimp_tf.prune(
        make_model(optimizer and optimizer()),
        blobs,
        validation_data=blobs,
        callbacks=callbacks,
        workdir=workdir,
        fit_options=options,
        **settings,
    )


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(here, there):
    for a, b in zip(here.model.get_weights(), there.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for path, mask in here.masks.items():
        np.testing.assert_array_equal(mask, there.masks[path])
    for a, b in zip(here.rounds, there.rounds, strict=True):
        assert {**vars(a), "seconds": 0} == {**vars(b), "seconds": 0}


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rewind": "weights", "rewind_epoch": 2},
        {"rewind": "reinitialize", "criterion": "random", "final_rewind": "weights"},
        {"method": "gradual", "epochs": 7},
        {"stop_mask_distance": 0.9},
        {"fit_options": {"steps_per_epoch": 3}},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_a_run_goes_on_bit_for_bit(K, make_model, blobs, tmp_path, settings, batch):
    """From a crash at the edge or in the middle of each epoch in turn."""
    whole = run(make_model, blobs, tmp_path / "whole", **settings)
    crashes = 0
    for epochs in (1, 2, 3, 1, 2, 1, 5):
        try:
            resumed = run(make_model, blobs, tmp_path / "run", [CrashAt(K, epochs, batch)], **settings)
            break
        except Crash:
            crashes += 1
    else:
        resumed = run(make_model, blobs, tmp_path / "run", **settings)
    assert crashes > 2
    assert_same(resumed, whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
