"""Runs `prune` again and again in processes that are killed. Used by test_fault_injection.py.

    python killed_run.py KERAS FOLDER KILLS SEED

FOLDER/whole gets a run that nothing disturbs. FOLDER/killed_0 gets the same one, killed until it is done,
FOLDER/killed_1 another, and so on for KILLS kills.
"""

import functools
import importlib
import json
import os
import random
import signal
import sys
import threading
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import aimp_tf
from aimp_tf.runs import saving


def run(K, workdir, event=lambda: None):
    """The run: a small classifier of made-up points, with all that training changes. It tells of each batch."""

    class Batches(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            event()

    tf.config.experimental.enable_op_determinism()
    K.utils.set_random_seed(3)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 512)
    points = (rng.normal(size=(512, 8)) + labels[:, None]).astype("float32")
    layers = [K.Input((8,)), K.layers.Dense(64, activation="relu"), K.layers.BatchNormalization()]
    if K.__name__ == "keras":
        layers.append(K.layers.Dropout(0.3))
    model = K.Sequential([*layers, K.layers.Dense(3)])
    model.compile(
        K.optimizers.Adam(0.01), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    aimp_tf.prune(
        model,
        (points, labels),
        validation_data=(points, labels),
        callbacks=[Batches()],
        workdir=workdir,
        batch_size=32,
        target_sparsity=0.9,
        rate=0.4,
        epochs=6,
        round_epochs=3,
        rewind="weights",
        final_rewind="learning_rate",
        verbose=0,
        seed=1,
    )


def in_child(function):
    """Runs a function in a copy of this process, which has imported everything and begun nothing; waits for its end."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(workdir, event_count, seconds):
    """A run that is killed at an event, such as the end of a batch or a step of a file's writing, or after a time."""
    left = event_count

    def event():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*arguments, **options):
            event()
            return function(*arguments, **options)

        return call

    if seconds is not None:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for name in ("fsync", "replace", "open", "unlink", "mkdir", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    run(K, workdir, event)


keras_name, folder, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
K = importlib.import_module(keras_name)
saving._SECONDS_PER_BACKUP_SECOND = 0
rng = random.Random(seed)
assert in_child(lambda: run(K, f"{folder}/whole")) == 0
killed = runs = 0
while killed < kills:
    workdir = f"{folder}/killed_{runs}"
    # A run has some six hundred events and takes some seconds.
    moment = (0, rng.uniform(0, 4)) if rng.random() < 0.3 else (rng.randrange(1, max(80, 1200 // kills)), None)
    status = in_child(functools.partial(killed_at, workdir, *moment))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        killed += 1
    elif status == 0:
        runs += 1
    else:
        sys.exit("a run failed")
assert in_child(lambda: run(K, f"{folder}/killed_{runs}")) == 0
print(json.dumps({"killed": killed}))
