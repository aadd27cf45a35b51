"""Runs a study: what is done is skipped, what fails is reported, and the rest is carried on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

from aimp_tf.config.texts import nearest
from aimp_tf.files import check_writable
from aimp_tf.training.rounds import duration_text
from experiments import call_in_fresh_process
from experiments.cell import order, read_result
from experiments.executors import Executor
from experiments.experiment import Experiment, to_fields
from experiments.study import Cell, CellResult, Study, differences, planned_epochs


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell, what it runs and where.

    Attributes:
        cell: The cell.
        experiment: What it runs, every setting filled in.
        epochs: Epochs it takes, at most.
        folder: Where it lies.
    """

    cell: Cell
    experiment: Experiment
    epochs: int
    folder: pathlib.Path


def plan_study(
    study: Study, workdir: str | os.PathLike[str], arms: Sequence[str] | None = None
) -> tuple[list[Job], dict[Cell, CellResult]]:
    """What there is to run and what is done. Nothing is written.

    Args:
        study: The study.
        workdir: Its folder.
        arms: Names of the arms to run; None is all of them.

    Returns:
        The cells of these arms that are not done, and the results of all cells that are, in the study's order.

    Raises:
        ValueError, TypeError: The study is not valid, an arm is unknown, `workdir` cannot be written, or a cell was
            done with other settings than the study's.
    """
    study.validate()
    for name in arms or ():
        if name not in study.arms:
            raise ValueError(f"Unknown arm {name!r}; the arms are {', '.join(study.arms)}.{nearest(name, study.arms)}")
    workdir = pathlib.Path(workdir).absolute()
    check_writable(workdir, "workdir")
    cells = study.cells()
    weight_count = _weight_counts([study.merged(cell) for cell in cells])
    jobs, done = [], {}
    for cell in cells:
        experiment, folder = study.resolve(cell, weight_count), workdir / cell.folder
        result = read_result(folder)
        if result is None:
            if arms is None or cell.arm in arms:
                jobs.append(Job(cell, experiment, planned_epochs(experiment, weight_count), folder))
            continue
        if differing := differences(result.experiment, experiment):
            raise ValueError(
                f"The cell {cell} was done with other settings: {'; '.join(differing)}. Name another workdir, or "
                f"remove {folder} to run the cell anew."
            )
        done[cell] = result
    return jobs, done


def at_equal_time(
    study: Study, workdir: str | os.PathLike[str], reference: str, arms: Sequence[str] | None = None
) -> tuple[Study, pathlib.Path, dict[Cell, CellResult]]:
    """A study like one that is done, in which each arm trains as many epochs as take the time that one of them took.

    What an epoch of an arm takes is the median, over seeds, of the ratio to one of the reference. Rounds become
    shorter as the whole does, to whole epochs rounded down, and the last training has the rest. Arms that say
    themselves how many epochs they train are left out.

    Args:
        study: The study that is done, at equal epochs or however its arms have it.
        workdir: Its folder.
        reference: Name of the arm whose wall time the others get.
        arms: Names of the others; None is all of them.

    Returns:
        The study, the folder for it within the other's, and the results of the reference, which are what they were.

    Raises:
        ValueError, TypeError: As `plan_study`, there is no such arm, or a cell of these arms is not done.
    """
    missing, done = plan_study(study, workdir, [reference, *(study.arms if arms is None else arms)])
    if (other := study.arms[reference].epochs_of) is not None:
        raise ValueError(
            f"equal_time must name an arm with epochs of its own; {reference} has those of {other}. Name {other}."
        )
    if missing:
        raise ValueError(
            f"How long arms take is known once they are done; {len(missing)} cells are not, such as {missing[0].cell}. "
            "Run them first, without equal_time."
        )

    def epochs(arm: str) -> float:
        return statistics.fmean(result.epochs for result in done.values() if result.arm == arm)

    def seconds(arm: str, seed: int) -> float:
        """What an epoch took, those of a teacher left out."""
        cells = [result for result in done.values() if (result.arm, result.seed) == (arm, seed)]
        own = sum(each.epochs - (each.experiment["teacher_epochs"] or 0) for each in cells)
        return sum(each.seconds for each in cells) / own

    timed = {reference: study.arms[reference]}
    for name, arm in study.arms.items():
        if name != reference and (arms is None or name in arms) and "epochs" not in arm.pruning:
            factor = statistics.median(seconds(reference, seed) / seconds(name, seed) for seed in study.seeds)
            changes = {**arm.pruning}
            pruning = study.merged(Cell(name, study.sparsities[0], study.seeds[0])).pruning
            if pruning.has_rounds:
                share = min(1.0, factor * epochs(reference) / epochs(name))
                changes["round_epochs"] = max(1, int(share * pruning.resolved_round_epochs))
            timed[name] = dataclasses.replace(arm, pruning=changes, epochs_of=reference, epochs_factor=factor)
    return (
        dataclasses.replace(study, arms=timed),
        pathlib.Path(workdir) / f"time_of_{reference}",
        {cell: result for cell, result in done.items() if cell.arm == reference},
    )


def run_jobs(
    jobs: Sequence[Job], executor: Executor, data_dir: str | None
) -> tuple[dict[Cell, CellResult], dict[Cell, str]]:
    """Runs cells, says how each ended, and gives the results of those now done, and what went wrong with the others."""
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
    by_folder = {job.folder: job for job in jobs}
    orders = {job.folder: order(job.cell, job.experiment) for job in jobs}
    results: dict[Cell, CellResult] = {}
    failures: dict[Cell, str] = {}
    started_at, epochs, ended_epochs = time.monotonic(), sum(job.epochs for job in jobs), 0
    with contextlib.closing(executor.run(orders, data_dir)) as ended:
        for number, (folder, failure) in enumerate(ended, start=1):
            job = by_folder[folder]
            result = None if failure else read_result(folder)
            if result is not None:
                results[job.cell] = result
                outcome = f"accuracy {result.accuracy:.2%}, {result.epochs} epochs in {result.seconds:.0f} s"
            else:
                failures[job.cell] = failure or (
                    f"its result is not to be seen in {folder}; the workdir must lie on storage that all machines share"
                )
                outcome = f"FAILED: {failures[job.cell]}"
            ended_epochs += job.epochs
            seconds_left = (time.monotonic() - started_at) / ended_epochs * (epochs - ended_epochs)
            left = f"; about {duration_text(seconds_left)} left" if number < len(jobs) else ""
            print(f"{number} of {len(jobs)}: {job.cell}: {outcome}{left}", flush=True)
    return results, failures


def _weight_counts(experiments: Sequence[Experiment]) -> Callable[[Experiment], int]:
    """Counts the prunable weights of models in another process, so that this one does without TensorFlow."""
    models = {experiment.counted_by: to_fields(experiment) for experiment in experiments}
    try:
        found = call_in_fresh_process("experiments.run.weight_counts", stored=list(models.values()))
    except RuntimeError as error:
        raise ValueError(f"A model of the study cannot be built: {str(error).splitlines()[-1]}") from error
    counts = dict(zip(models, found, strict=True))
    return lambda experiment: counts[experiment.counted_by]
