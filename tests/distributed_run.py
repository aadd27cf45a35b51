"""What test_distribution.py trains, here or as one of several workers. Made-up data.

    TF_CONFIG=... python distributed_run.py FOLDER CELL ...

Runs the cells, one after another, in one cluster. Each worker writes what it saw to FOLDER.
"""

import importlib
import json
import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import aimp_tf
from aimp_tf.masking import MaskedModel
from aimp_tf.runs import saving
from aimp_tf.training import input_pipeline

SETTINGS = {"target_sparsity": 0.75, "rate": 0.4, "epochs": 2, "round_epochs": 2, "rewind": "weights", "verbose": 0}

CHANNELS = {"granularity": "channel", "budget": "flops", "target_sparsity": 0.5, "rewind": "learning_rate"}
CHANNELS |= {"criterion": "taylor", "repair": True, "compact_rounds": True}


def points(count=64):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, count)
    return (rng.normal(size=(count, 8)) + labels[:, None]).astype("float32"), labels


def make_model(K, strategy, policy="float32"):
    """A compiled classifier of 8 numbers with batch normalisation, made under a strategy and a dtype policy."""
    get, set_ = (
        (K.config.dtype_policy, K.config.set_dtype_policy)
        if K.__name__ == "keras"
        else (K.mixed_precision.global_policy, K.mixed_precision.set_global_policy)
    )
    before = get()
    set_(policy)
    try:
        with strategy.scope():
            K.utils.set_random_seed(3)
            layers = [K.Input((8,)), K.layers.Dense(16, activation="relu", name="hidden")]
            layers += [K.layers.BatchNormalization(name="norm"), K.layers.Dense(3, dtype="float32", name="logits")]
            model = K.Sequential(layers)
            loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(K.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    finally:
        set_(before)
    return model


def components(model, strategy):
    """Of each variable of the model, what each replica of this process holds."""
    variables = [v.value if isinstance(getattr(v, "value", None), tf.Variable) else v for v in model.weights]
    return [[value.numpy() for value in strategy.experimental_local_results(variable)] for variable in variables]


def step_with_infinity(model, strategy):
    """Takes one step, in which one example of the last replica's share is infinite. Returns before and after."""
    x, y = points(16)
    x[-1] = np.inf
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    masked = aimp_tf.wrap(model)
    kernel = MaskedModel.of(masked).weights
    before = kernel()
    masked.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(16).with_options(options), verbose=0, shuffle=False)
    after = kernel()
    aimp_tf.strip(masked, unfinished=True)
    return before, after


def record(path, result, strategy, seed, widths):
    arrays = {f"masks/{name}": mask for name, mask in result.masks.items()}
    for index, values in enumerate(components(result.model, strategy)):
        arrays |= {f"weights/{index}/{replica}": value for replica, value in enumerate(values)}
    np.savez(
        path,
        **arrays,
        seed=seed,
        widths=[widths[0], widths[-1]],
        losses=[round_.metrics["loss"] for round_ in result.rounds],
    )


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals(K, strategy, index):
    """What prune says, on this worker, of what is wrong on one or on all of them. Nothing is trained."""
    model = make_model(K, strategy)

    class Batches(getattr(K.utils, "PyDataset", None) or K.utils.Sequence):
        def __len__(self):
            return 1

        def __getitem__(self, position):
            return points()

    def prune(data=None, **settings):
        return error_of(lambda: aimp_tf.prune(model, data or points(), **{**SETTINGS, **settings}))

    refused = {
        "another config": prune(seed=index),
        "other arrays": prune(points(64 - index)),
        "wrong on one": prune(**({"batch_sise": 8} if index == 1 else {})),
        "unreadable on the chief": prune(workdir=__file__ if index == 0 else None),
        "sequence": prune(Batches()),
        "empty share": prune(points(65)),
        "a time": prune(granularity="channel", budget=aimp_tf.Latency(speedup=2), target_sparsity=None),
    }
    model.set_weights([weight + index for weight in model.get_weights()])
    return {**refused, "other weights": prune()}


def main(folder, cells):
    # First, for TensorFlow must hear of the cluster before anything else.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    tf.config.experimental.enable_op_determinism()
    saving._SECONDS_PER_BACKUP_SECOND = 0
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    seeds = []
    begin = input_pipeline.Order.begin
    input_pipeline.Order.begin = lambda order, *position: (seeds.append(order.seed), begin(order, *position))
    for cell in cells:
        keras_name, what = cell.split("-")
        K = importlib.import_module(keras_name)
        path = folder / f"{cell}_{index}"

        class Watch(K.callbacks.Callback):
            widths, killed = [], what == "killed" and index == 0

            def on_train_batch_end(self, batch, logs=None):
                self.widths.append(self.model.layers[0].kernel.shape[-1])
                if self.killed and len(self.widths) == 15:  # In the second epoch of the second round.
                    os.kill(os.getpid(), signal.SIGKILL)

        if what == "refusals":
            path.with_suffix(".json").write_text(json.dumps(refusals(K, strategy, index)))
        elif what == "infinity":
            before, after = step_with_infinity(make_model(K, strategy, "mixed_float16"), strategy)
            same = all(np.array_equal(before[name], after[name]) for name in before)
            path.with_suffix(".json").write_text(json.dumps(same))
        else:
            settings = {"seed": 1}
            if what.startswith("mixed_"):
                settings["mixed_precision"] = what
            # Once with all that is drawn where no seed is given.
            if what == "mixed_bfloat16":
                np.random.seed(index)
                settings |= {"seed": None, "criterion": "random", "final_rewind": "reinitialize"}
            if what == "channels":
                settings |= CHANNELS
            result = aimp_tf.prune(
                make_model(K, strategy),
                points(),
                validation_data=points(32),
                callbacks=[Watch()],
                workdir=folder / f"{keras_name}_killed" if what in ("killed", "again") else folder / cell,
                batch_size=16,
                **{**SETTINGS, **settings},
            )
            record(path, result, strategy, seeds[-1], Watch.widths)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
