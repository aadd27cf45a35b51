"""Reports on the run in a workdir, or on several side by side, as one HTML page and as Markdown with pictures.

    python tools/report.py --workdir=runs/digits_mlp
    python tools/report.py --workdir=runs/aimp,runs/imp --output=runs/comparison.html
    python tools/report.py --workdir=runs/aimp --workdir=runs/imp --output=runs/comparison.html --metric=val_loss
    python tools/report.py --workdir=runs/wide_mlp --inference=runs/inference.json --title="A wide MLP"

A run that still trains is reported as far as it is. The exit code is 0 when the report is written, 1 when that failed,
2 when a setting was wrong and nothing was written, and 130 after Ctrl-C.
"""

import pathlib

from absl import flags

from aimp_tf.reports.report import write_report
from aimp_tf.runs.recorded_run import read_run
from experiments import command_line

_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a run. Give the flag again, or put commas between, for several. Required."
)
_OUTPUT = command_line.define_path(
    "output",
    "The page to write; Markdown goes beside it. Default: report.html in the workdir, or, of several, in this folder.",
)
_METRIC = flags.DEFINE_string("metric", None, "Metric to plot, such as val_loss. Default: that of the validation data.")
_TITLE = flags.DEFINE_string("title", None, "Heading of the report. Default: one that names the run.")
_INFERENCE = command_line.define_path("inference", "What tools/benchmark.py inference wrote, to be shown too.")


def main() -> None:
    with command_line.refusing():
        workdirs = command_line.split(_WORKDIR.value)
        runs = [read_run(workdir) for workdir in workdirs]
        page = pathlib.Path(_OUTPUT.value or pathlib.Path(workdirs[0] if len(workdirs) == 1 else "", "report.html"))
        for path in (page, page.with_suffix(".md")):
            written, *_ = write_report(runs, path, _METRIC.value, _INFERENCE.value, _TITLE.value)
            print(written)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
