"""Runs a study: every arm at every sparsity from every seed, side by side; then a table and two plots.

    python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits
    python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits --arms=imp,aimp --workers=2
    python tools/study.py --config=configs/study_digits.py --workdir=runs/study_digits --equal_time=aimp
    python tools/study.py --config=configs/study_digits.py --workdir=/shared/study --executor=ray --ray_address=auto

Each cell of the grid has a folder below the workdir. Cells that are done are skipped, so the same command goes on after
an interruption. With --executor=ray, aimp_tf must be installed on every machine, and these tools, the workdir and the
data must lie at the same path on storage that all of them share.

--equal_time=aimp, once aimp and all of --arms are done, runs the others anew in time_of_aimp, below the workdir, each
for as many epochs as take the time that aimp was measured to take.

The exit code is 0 when all cells are done, 1 when some failed, 2 when a setting was wrong and nothing was written, and
130 after Ctrl-C.
"""

import os
import pathlib
import sys

from absl import flags

from aimp_tf.reports.plots import check_matplotlib
from experiments import command_line, executors, run_study, study_report
from experiments.study import Cell, CellResult, Study

_CONFIG = command_line.define_config(Study)
_WORKDIR = command_line.define_path("workdir", "Folder of the study: new, or the same study's from before. Required.")
_DATA_DIR = command_line.define_data_dir()
_ARMS = flags.DEFINE_list("arms", None, "Names of the arms to run; default: all. The report has whatever is done.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Cells at a time, which share the cores; default: one for every two cores.", lower_bound=1
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "ray"], "Where cells run: on this machine, or on Ray.")
_RAY_ADDRESS = flags.DEFINE_string("ray_address", None, "The Ray cluster's, such as auto; default: one started here.")
_EQUAL_TIME = flags.DEFINE_string(
    "equal_time", None, "Name of an arm: once all are done, runs the others of --arms anew for as long as it took."
)
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Run nothing, and report on the cells that are done.")


def main() -> int:
    study, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value).absolute()
    data_dir = os.path.abspath(_DATA_DIR.value) if _DATA_DIR.value else None
    with command_line.refusing():
        check_matplotlib("study")
        arms, known = _ARMS.value, dict[Cell, CellResult]()
        if _EQUAL_TIME.value:
            study, workdir, known = run_study.at_equal_time(study, workdir, _EQUAL_TIME.value, arms)
            arms = [name for name in study.arms if name != _EQUAL_TIME.value]
        jobs, results = run_study.plan_study(study, workdir, [] if _REPORT_ONLY.value else arms)
        results |= known
        executor: executors.Executor
        if _EXECUTOR.value == "ray" and jobs:
            executor = executors.RayExecutor(_WORKERS.value, _RAY_ADDRESS.value)
        else:
            executor = executors.LocalExecutor(_WORKERS.value)
    for name, arm in study.arms.items():
        if arm.epochs_factor != 1:
            print(f"{name} trains {arm.epochs_factor:.2f} times as many epochs as {arm.epochs_of}.", flush=True)
    print(f"{len(results)} cells are done, {len(jobs)} are to run.", flush=True)
    new_results, failures = run_study.run_jobs(jobs, executor, data_dir)
    results |= new_results
    done = [results[cell] for cell in study.cells() if cell in results]
    print(study_report.write_report(study, done, workdir) if done else "No cell is done.")
    for cell, failure in failures.items():
        print(f"{cell}: failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"], resumable=True)
