"""Runs a study: every arm at every sparsity from every seed, side by side; then a table and two plots.

    python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits
    python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits --arms=imp,aimp --workers=2
    python tools/study.py --config=configs/study_digits.py --workdir=/shared/study --executor=ray --ray_address=auto

Each cell of the grid has a folder below the workdir. Cells that are done are skipped, so the same command goes on after
an interruption. The exit code is 0 when all cells are done, 1 when some failed, 2 when a setting was wrong and none was
started. With --executor=ray, aimp_tf must be installed on every machine, and the workdir and the data must lie at the
same path on storage that all of them share.
"""

import os
import pathlib
import sys
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file whose get_config() returns a Study; --config.FIELD=VALUE changes a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study: new, or the same study's from before.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where tensorflow-datasets keeps its data; None is its own default.")
_ARMS = flags.DEFINE_list("arms", None, "Names of the arms to run; None is all. The report has whatever is done.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Cells at a time, which share the cores; None is one for every two cores.", lower_bound=1
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "ray"], "Where cells run: on this machine, or on Ray.")
_RAY_ADDRESS = flags.DEFINE_string("ray_address", None, "The Ray cluster's, such as auto; None starts one here.")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Run nothing, and report on the cells that are done.")


def parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except KeyError as error:  # What ml_collections raises for a field that a config does not have.
        refuse(f"The config has no field of this name: {error.args[0]}")
    except (flags.Error, OSError) as error:
        refuse(error)


def main(argv: list[str]) -> None:
    from aimp_tf.experiments import executors, run_study, study_report

    study, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value).absolute()
    data_dir = os.path.abspath(_DATA_DIR.value) if _DATA_DIR.value else None
    try:
        if len(argv) > 1:
            raise ValueError(f"Unexpected arguments: {' '.join(argv[1:])}")
        # Not isinstance: what ml_collections gives for a file that it could not read raises when it is used.
        if not hasattr(study, "arms"):
            raise TypeError(f"The config of a study must be a Study; got {type(study).__name__}.")
        study_report.check_matplotlib()
        jobs, results = run_study.plan_study(study, workdir, [] if _REPORT_ONLY.value else _ARMS.value)
        if _EXECUTOR.value == "ray" and jobs:
            executor = executors.RayExecutor(_WORKERS.value, _RAY_ADDRESS.value)
        else:
            executor = executors.LocalExecutor(_WORKERS.value)
    except (ImportError, OSError, TypeError, ValueError) as error:
        refuse(error)
    print(f"{len(results)} cells are done, {len(jobs)} are to run.", flush=True)
    try:
        new_results, failures = run_study.run_jobs(jobs, executor, data_dir, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the cells that are not done.", file=sys.stderr)
        sys.exit(130)
    results |= new_results
    done = [results[cell] for cell in study.cells() if cell in results]
    print(study_report.write_report(study, done, workdir) if done else "No cell is done.")
    for cell, failure in failures.items():
        print(f"{cell}: failed: {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def refuse(error: object) -> NoReturn:
    print(f"study.py: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
