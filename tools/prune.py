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
from aimp_tf.experiments.distribution import STRATEGIES, is_chief, make_strategy
from aimp_tf.experiments.experiment import Experiment
from aimp_tf.run_directory import check_workdir

_CONFIG = command_line.define_config(Experiment)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: new, or the same run's from before. Required.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier run left in the workdir first.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where tensorflow-datasets keeps its data; default: ~/tensorflow_datasets."
)
_DISTRIBUTE = flags.DEFINE_enum(
    "distribute",
    "none",
    STRATEGIES,
    "Train on one device, on all GPUs of this machine, or on the workers that TF_CONFIG names, each of which runs the "
    "same command.",
)
_MIXED_PRECISION = flags.DEFINE_string("mixed_precision", None, "Short for --config.pruning.mixed_precision.")
_VERBOSE = flags.DEFINE_integer(
    "verbose", 0, "Keras' progress: 0 none, 1 a bar, 2 a line an epoch.", lower_bound=0, upper_bound=2
)


def main() -> None:
    # A line a round is what a person wants to see; TensorFlow's own notes are not.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    experiment, workdir = _CONFIG.value, _WORKDIR.value
    with command_line.refusing():
        if _MIXED_PRECISION.value is not None:
            experiment.pruning.mixed_precision = _MIXED_PRECISION.value
        experiment.validate()
        chief = is_chief(_DISTRIBUTE.value)
        if chief:
            check_workdir(workdir)
            logging.getLogger("aimp_tf").setLevel(logging.INFO)
        from aimp_tf.experiments.run import compare, load_on_all  # Only now, for TensorFlow takes seconds to import.

        strategy = make_strategy(_DISTRIBUTE.value)
        data = load_on_all(experiment, _DATA_DIR.value, strategy)
    comparison = compare(
        experiment,
        data,
        workdir,
        _VERBOSE.value if chief else 0,
        overwrite=_OVERWRITE.value,
        strategy=strategy,
    )
    if comparison is not None:
        print(f"\n{comparison.table()}\n\nPruned SavedModel: {comparison.saved_model}")


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"], resumable=True)
