"""Prunes a named model on named data and compares it with the dense one.

    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp
    python tools/prune.py --config=configs/digits_mlp.py --workdir=runs/digits_95 --config.pruning.target_sparsity=0.95

The workdir gets the masks, weights and metrics of every round, the pruned model as a SavedModel and as model.keras, and
a page about the run, report.html. The same command goes on with a run that was interrupted. The exit code is 0 when it
is done, 1 when it failed, 2 when a setting was wrong and nothing was written, and 130 after Ctrl-C.
"""

import contextlib
import importlib.util
import os
import pathlib
import shlex

from absl import flags

from aimp_tf.runs.run_files import check_workdir
from experiments import command_line
from experiments.distribution import STRATEGIES, is_chief, make_strategy
from experiments.experiment import Experiment

_CONFIG = command_line.define_config(Experiment)
_WORKDIR = command_line.define_path("workdir", "Folder of the run: new, or the same run's from before. Required.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier run left in the workdir first.")
_DATA_DIR = command_line.define_data_dir()
_DISTRIBUTE = flags.DEFINE_enum(
    "distribute",
    "none",
    STRATEGIES,
    "Train on one device, on all GPUs of this machine, or on the workers that TF_CONFIG names, each of which runs the "
    "same command.",
)
_MIXED_PRECISION = flags.DEFINE_string("mixed_precision", None, "Short for --config.pruning.mixed_precision.")
_EQUAL_EPOCHS = flags.DEFINE_bool(
    "equal_epochs", False, "Train a dense model for as many epochs as the whole pruning run, too, for the table."
)
_COMPARE = flags.DEFINE_bool(
    "compare",
    True,
    "Train the dense network beside it, and compare the exports of both. Without this, the workdir gets the run alone.",
)
flags.register_multi_flags_validator(
    ["equal_epochs", "compare"],
    lambda given: given["compare"] or not given["equal_epochs"],
    "--equal_epochs trains a dense model to compare with, which --compare=false leaves out.",
)
_VERBOSE = flags.DEFINE_enum(
    "verbose",
    "auto",
    ["auto", "0", "1", "2"],
    "auto: a line a round and a live one with the time left; 1, 2: a line a round and Keras' bars, or a line an epoch; "
    "0: nothing.",
)


def main() -> None:
    command_line.quieten()
    experiment, workdir = _CONFIG.value, _WORKDIR.value
    with command_line.refusing():
        if _MIXED_PRECISION.value is not None:
            experiment.pruning.mixed_precision = _MIXED_PRECISION.value
        experiment.validate()
        chief = is_chief(_DISTRIBUTE.value)
        if chief:
            check_workdir(workdir)
        with command_line.silent_stderr():  # Only now, for TensorFlow takes seconds to import.
            from experiments.run import compare, load_on_all, train_pruned

        strategy = make_strategy(_DISTRIBUTE.value)
        data = load_on_all(experiment, _DATA_DIR.value, strategy)
    verbose = "auto" if _VERBOSE.value == "auto" else int(_VERBOSE.value)
    settings = {"verbose": verbose if chief else 0, "overwrite": _OVERWRITE.value, "strategy": strategy}
    if not _COMPARE.value:
        result = train_pruned(experiment, data, workdir, **settings)
        if chief:
            print(f"\n{result.summary()}")
        return
    comparison = compare(experiment, data, workdir, equal_epochs=_EQUAL_EPOCHS.value, **settings)
    if comparison is not None:
        print(f"\n{comparison.table()}\n\nPruned SavedModel: {comparison.saved_model}")
        _tell_what_is_next(experiment, pathlib.Path(workdir))


def _tell_what_is_next(experiment: Experiment, workdir: pathlib.Path) -> None:
    if (workdir / "final" / "model.keras").exists():
        print(f"In Python: {experiment.keras}.models.load_model({os.fspath(workdir / 'final' / 'model.keras')!r})")
    if importlib.util.find_spec("matplotlib") is None:
        print('The page: pip install ".[report]", then tools/report.py --workdir=' + shlex.quote(os.fspath(workdir)))
    else:
        from aimp_tf.reports.report import write_report
        from aimp_tf.runs.recorded_run import read_run

        try:
            page, *_ = write_report([read_run(workdir)], workdir / "report.html")
        except (OSError, ValueError) as error:
            raise SystemExit(f"The run is done, but not its page: {error}") from error
        print(f"The page: {page}")
    if experiment.pruning.target_sparsity is not None and experiment.pruning.method != "dense":
        further = experiment.pruning.replace(target_sparsity=1 - (1 - experiment.pruning.target_sparsity) / 2)
        with contextlib.suppress(ValueError):  # 2:4 is half of all weights and nothing else.
            further.validate()
            print(
                "Next: the same command with --config.pruning.target_sparsity="
                f"{further.target_sparsity:g} and another --workdir, or with your own file for --config."
            )


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"], resumable=True)
