"""Prunes a named model on named data and compares it with the dense one.

    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp
    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_95 --config.pruning.target_sparsity=0.95

The workdir gets the masks and metrics of every round and the pruned SavedModel. It must be new or empty.
"""

import logging
import os

import absl.logging
from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file whose get_config() returns an Experiment; --config.FIELD=VALUE changes a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the run, new or empty.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where tensorflow-datasets keeps its data; None is its own default.")
_VERBOSE = flags.DEFINE_integer("verbose", 0, "Keras' progress: 0 none, 1 a bar, 2 a line an epoch.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    # A line a round is what a person wants to see; TensorFlow's own notes are not.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("aimp_tf").setLevel(logging.INFO)
    from aimp_tf.experiments.run import run  # Not at the top: --help need not wait for TensorFlow.

    comparison = run(_CONFIG.value, _WORKDIR.value, _DATA_DIR.value, _VERBOSE.value)
    print(f"\n{comparison.table()}\n\nPruned SavedModel: {comparison.saved_model}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
