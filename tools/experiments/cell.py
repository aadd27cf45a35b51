"""One cell of a study, in a process of its own: `start` makes the process, `main` is what it does.

The folder of a cell holds cell.json (what to run), log.txt, run/ (the run directory of `prune`) and, once the cell is
done, result.json, which is written last.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading

from experiments import environment_of_tools
from experiments.experiment import Experiment, from_fields, to_fields
from experiments.study import Cell, CellResult


def order(cell: Cell, experiment: Experiment) -> str:
    """What cell.json is to hold."""
    return json.dumps({**dataclasses.asdict(cell), "experiment": to_fields(experiment)}, indent=2)


def read_result(folder: pathlib.Path) -> CellResult | None:
    """The result of a cell, or None where it is not done. Raises ValueError for a file that is something else."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        return CellResult(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the result of a cell: {error}. Remove its folder to run it anew.") from error


def start(folder: pathlib.Path, order: str, data_dir: str | None, threads: int) -> subprocess.Popen[bytes]:
    """Writes cell.json and starts the process of a cell, which goes on with what an unfinished run left.

    Its output goes to log.txt, and TensorFlow gets so many threads in it. It ends when this process ends, however that
    comes about. Raises RuntimeError where another process runs this cell.
    """
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # Several cells may share a GPU.
        **environment_of_tools(),
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
    }
    # -P: this folder must not come before the installed package. A crash of native code leaves its stack in the log.
    options = ["-P", "-X", "faulthandler"]
    command = [sys.executable, *options, "-m", "experiments.cell", os.fspath(folder), *filter(None, [data_dir])]
    with open(folder / "log.txt", "ab") as log:
        try:
            # The process inherits the lock with the file, and holds it until it ends.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another study runs it at this moment, in {folder}.") from error
        log.truncate(0)
        (folder / "cell.json").write_text(order + "\n", encoding="utf-8")
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def failure(folder: pathlib.Path, process: subprocess.Popen[bytes]) -> str | None:
    """Waits for the process of a cell, and says in a line why the cell is not done, or None where it is.

    Of a crash of native code it tells what came before the stack.
    """
    with process:
        returncode = process.wait()
    if (folder / "result.json").exists():
        return None
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").partition("Fatal Python error: ")[0].splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    ended = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
    return f"ended by {ended}; the last line of {log}: {last}"


def run_cell(folder: pathlib.Path, data_dir: str | None) -> CellResult:
    """Runs what cell.json says and writes result.json."""
    # Not at the top: whoever starts cells, for hours, need not hold TensorFlow in memory.
    from aimp_tf.files import write_atomically
    from experiments.run import accuracy_of, load_data, train_pruned

    fields = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    experiment = from_fields(fields["experiment"])
    data = load_data(experiment, data_dir)
    pruned = train_pruned(experiment, data, folder / "run", verbose=0)
    # "auto" stays, as the study has it.
    pruning = pruned.config.replace(mixed_precision=experiment.pruning.mixed_precision)
    result = CellResult(
        **{**fields, "experiment": to_fields(dataclasses.replace(experiment, pruning=pruning))},
        accuracy=accuracy_of(pruned.model, data),
        measured_sparsity=pruned.sparsity,
        epochs=pruned.epochs + (experiment.teacher_epochs or 0),
        seconds=pruned.seconds,
    )
    write_atomically(folder / "result.json", json.dumps(dataclasses.asdict(result), indent=2))
    return result


def main(folder: str, data_dir: str | None = None) -> None:
    """Runs the cell of a folder, and ends when standard input does."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("aimp_tf").setLevel(logging.INFO)
    run_cell(pathlib.Path(folder), data_dir)


def _end_with_stdin() -> None:
    """Whoever started this process holds the other end of its standard input, which closes when they are gone."""
    # Not sys.stdin, whose lock a thread must not hold when Python ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
