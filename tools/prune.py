"""Prunes a named model on named data and compares it with the dense one.

    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp
    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_95 --config.pruning.target_sparsity=0.95

The workdir gets the masks, weights and metrics of every round and the pruned SavedModel. The same command goes on with
a run that was interrupted. The exit code is 0 when it is done, 1 when it failed, 2 when a setting was wrong and nothing
was written, and 130 after Ctrl-C.
"""

import logging
import os

import absl.logging
from absl import flags

from aimp_tf.experiments import command_line
from aimp_tf.experiments.experiment import Experiment
from aimp_tf.run_directory import check_workdir

_CONFIG = command_line.define_config(Experiment)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: new, or the same run's from before. Required.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier run left in the workdir first.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where tensorflow-datasets keeps its data; default: ~/tensorflow_datasets."
)
_VERBOSE = flags.DEFINE_integer(
    "verbose", 0, "Keras' progress: 0 none, 1 a bar, 2 a line an epoch.", lower_bound=0, upper_bound=2
)


def main() -> None:
    # A line a round is what a person wants to see; TensorFlow's own notes are not.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("aimp_tf").setLevel(logging.INFO)
    experiment, workdir = _CONFIG.value, _WORKDIR.value
    with command_line.refusing():
        experiment.validate()
        check_workdir(workdir)
        from aimp_tf.experiments.run import compare, load_data  # Only now, for TensorFlow takes seconds to import.

        data = load_data(experiment, _DATA_DIR.value)
    comparison = compare(experiment, data, workdir, _VERBOSE.value, overwrite=_OVERWRITE.value)
    print(f"\n{comparison.table()}\n\nPruned SavedModel: {comparison.saved_model}")


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"], resumable=True)
