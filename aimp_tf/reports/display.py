"""RunDisplay: what `prune` shows of a run, in terminals, notebooks and logs."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from aimp_tf.compat.callbacks import EpochCallback
from aimp_tf.selection.planning import Round
from aimp_tf.training.rounds import (
    ADDED_TO_LOSS,
    RoundResult,
    counted_text,
    duration_text,
    number_text,
    percent_text,
    plan_text,
    telling_metric,
)

_REFRESHES_PER_SECOND = 2
_NOTEBOOK_COLUMNS = 80
_COLUMNS_WITH_A_BAR = 60
_LEAST_NAME = 8


def fit_verbose(verbose: Any) -> int:
    """The `verbose` that `fit` gets. Raises ValueError for one that `prune` does not take."""
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(
            "verbose must be 'auto' (a line a round and a live one), 0 (silent), 1 or 2 (a line a round and Keras' "
            f"own bars, or lines); got {verbose!r}."
        )
    return 0 if verbose == "auto" else int(verbose)


class RunDisplay(EpochCallback):
    """Shows a run: how much it is, then a line a round and, below them, a live one.

    The live line tells the epoch, how much is done and how long the rest takes. It is there in a terminal and, above
    the other lines, in a notebook. It hears of epochs only, and a thread moves it between them, so no batch waits for
    it. In a file, a pipe or a terminal that cannot move its cursor, there are the other lines alone, each as soon as
    its round is done.

    It is a context, a callback of every `fit` within it, and is told of each round that is done. While the live line is
    in a terminal, what is printed or logged through Python appears above it.

    Args:
        verbose: As in `prune`: "auto"; 0, which shows nothing; 1 or 2, which leave the live line to Keras.
        plan: The rounds of the run, as `make_plan` gives them.
        total: How much the model has of what the budget counts, such as prunable weights.
        counted: What that is, such as "weight".
        may_stop: Whether rounds may end before their last epoch.
        title: What to call a run of one training, whose plan is then not shown.
        chief: Whether this is the worker that shows the run; others show nothing.
    """

    def __init__(
        self,
        verbose: str | int,
        plan: Sequence[Round],
        total: int,
        *,
        counted: str = "weight",
        may_stop: bool = False,
        chief: bool = True,
        title: str | None = None,
    ) -> None:
        super().__init__()
        self._shown = chief and verbose != 0
        self._live = self._shown and verbose == "auto"
        self._plan = plan
        self._total = total
        self._counted = counted
        self._may_stop = may_stop
        self._title = title
        self._rounds_done = 0
        self._epochs_done = 0
        self._epoch = 0  # Epochs done of the round that trains.
        self._times: list[float] = []  # When this process began, and when each of its epochs ended.
        self._width: int | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self, rounds: Sequence[RoundResult] = (), epoch: int = 0) -> None:
        """Shows what is to be trained, and begins the live line.

        Args:
            rounds: The results of the rounds that were done before.
            epoch: Epochs that were done before of the next one.
        """
        self._rounds_done, self._epoch = len(rounds), epoch
        self._epochs_done = sum(round_.epochs for round_ in rounds) + epoch
        self._times = [time.monotonic()]
        if not self._shown:
            return
        # Not whatever sys.stdout is later, for a callback may redirect it for a while.
        console = Console(file=sys.stdout)
        if console.is_terminal and not console.is_jupyter:
            self._width = console.width
        if self._title is None:
            self.tell(plan_text(self._plan, self._total, self._may_stop, self._counted))
        if self._epochs_done:
            self.tell(self._done_before())
        if self._live and self._rounds_done < len(self._plan):
            self._open.enter_context(self._live_line(console))

    def round_done(self, result: RoundResult) -> None:
        self._rounds_done, self._epoch = result.index + 1, 0
        self.tell(self._line(result))

    def tell(self, line: str) -> None:
        """Shows a line between those of the rounds."""
        if self._shown:
            print(line, flush=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch + 1
        self._epochs_done += 1
        self._times.append(time.monotonic())

    def _done_before(self) -> str:
        done, count = self._rounds_done, len(self._plan)
        if done == count:
            return "all of it was done before"
        texts = []
        if done:
            texts.append("round 1" if done == 1 else f"rounds 1 to {done}")
        if self._epoch:
            part = (
                "" if count == 1 else f" of the {self._label(done)}" if done + 1 == count else f" of round {done + 1}"
            )
            texts.append(f"{self._epoch} of {counted_text(self._plan[done].epochs, 'epoch')}{part}")
        was = "was" if texts[-1] == "round 1" else "were"
        return f"{' and '.join(texts)} {was} done before"

    def _label(self, index: int, digits: int = 1) -> str:
        count = len(self._plan)
        if index + 1 == count:
            return (self._title or "training") if count == 1 else "last training"
        return f"round {index + 1:{digits}} of {count}"

    def _line(self, result: RoundResult) -> str:
        digits = len(str(len(self._plan)))
        width = max(len(self._label(index, digits)) for index in (0, len(self._plan) - 1))
        parts = [self._label(result.index, digits).ljust(width), f"sparsity {percent_text(result.sparsity, 1):>5}"]
        budget = result.budget
        if budget is not None and budget.counted != "weight":
            parts.append(f"{budget.counted}s {percent_text(budget.kept / budget.dense, 1):>5}")
        metrics = result.metrics
        # What a round was not validated for, it has no number of.
        metric = telling_metric([name for name, value in metrics.items() if isinstance(value, (int, float))])
        names = [name for name in dict.fromkeys(("loss", *ADDED_TO_LOSS, metric)) if name in metrics]
        parts += [f"{name} {number_text(metrics[name]):>6}" for name in names]
        parts.append(f"{duration_text(result.seconds):>6}")
        line = "  ".join(parts)
        if self._width is not None and len(line) > self._width and metric:
            room = len(metric) - (len(line) - self._width)
            if room >= _LEAST_NAME:
                line = line.replace(f"  {metric} ", f"  {metric[: room - 2]}.. ")
        return line

    @contextlib.contextmanager
    def _live_line(self, console: Console) -> Iterator[None]:
        """Within it, the live line is there, if there can be one."""
        progress = _progress(console)
        task = progress.add_task("", total=1, left="")

        def renderable() -> RenderableType:
            left = self._epochs_left()
            progress.update(
                task,
                description=self._where(),
                left=self._time_left(),
                completed=self._epochs_done,
                total=self._epochs_done + left,
            )
            return progress

        if console.is_jupyter:
            notebook = _NotebookLine(renderable)
            try:
                with notebook:
                    yield
            finally:
                notebook.show(Text(self._ending()))
        elif console.is_interactive and console.file.isatty() and not isinstance(sys.stdout, FileProxy):
            # A FileProxy is the live display of somebody else.
            live = Live(
                console=console,
                get_renderable=renderable,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            )
            before = sys.stdout, sys.stderr
            with live, _logging_to(dict(zip(before, (sys.stdout, sys.stderr), strict=True))):
                live.refresh()
                yield
        else:
            yield

    def _where(self) -> str:
        """The training that is on, and the epoch."""
        index = min(self._rounds_done, len(self._plan) - 1)
        epochs = self._plan[index].epochs
        return f"{self._label(index)}, epoch {min(self._epoch + 1, epochs)} of {epochs}"

    def _ending(self) -> str:
        seconds = duration_text(time.monotonic() - self._times[0])
        return f"done in {seconds}" if self._rounds_done == len(self._plan) else f"stopped in {self._where()}"

    def _epochs_left(self) -> int:
        """At most. What a round that ended early did not train is no longer left."""
        return sum(round_.epochs for round_ in self._plan[self._rounds_done :]) - self._epoch

    def _time_left(self) -> str:
        """ "4 min left", by the epochs of this process; nothing where none has ended yet."""
        # Without the first one where there are others, for it waits for TensorFlow to trace and compile.
        times = self._times[1:] if len(self._times) > 2 else self._times
        if len(times) < 2:
            return ""
        each = (times[-1] - times[0]) / (len(times) - 1)
        seconds = each * self._epochs_left() - (time.monotonic() - times[-1])
        return f"{duration_text(max(0.0, seconds))} left"


class _NotebookLine(Live):
    """A live line in the output of a notebook's cell, which needs IPython alone; rich's own needs ipywidgets too."""

    def __init__(self, get_renderable: Any) -> None:
        from IPython.display import display

        plain: dict[str, Any] = {"force_terminal": False, "force_jupyter": False, "color_system": None}
        super().__init__(
            console=Console(file=io.StringIO(), width=_NOTEBOOK_COLUMNS, **plain),
            get_renderable=get_renderable,
            refresh_per_second=1,
            transient=True,
        )
        self._handle = display(self._bundle(self.get_renderable()), raw=True, display_id=True)

    def refresh(self) -> None:
        """Replaces the line, on the thread of rich's Live too."""
        with self._lock:
            self.show(self.get_renderable())

    def show(self, renderable: RenderableType) -> None:
        self._handle.update(self._bundle(renderable), raw=True)

    def _bundle(self, renderable: RenderableType) -> dict[str, str]:
        with self.console.capture() as captured:
            self.console.print(renderable)
        return {"text/plain": captured.get().rstrip()}


def _progress(console: Console) -> Progress:
    """The columns of the live line, none of which wraps. In a narrow terminal, some are left out."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(1, console.width - 18))),
        TaskProgressColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
    ]
    if console.width >= _COLUMNS_WITH_A_BAR:
        columns.insert(1, BarColumn(bar_width=min(24, console.width - 56)))
        columns.insert(3, TimeElapsedColumn(table_column=Column(no_wrap=True)))
    return Progress(*columns, console=console, auto_refresh=False)


@contextlib.contextmanager
def _logging_to(streams: dict[TextIO, TextIO]) -> Iterator[None]:
    """Within it, handlers of loggers write to other streams, for each holds the one that it began with."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    # absl's handler keeps the one that writes in itself.
    handlers = {
        getattr(handler, "python_handler", handler) for logger in loggers for handler in getattr(logger, "handlers", ())
    }
    with contextlib.ExitStack() as undo:
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                undo.callback(handler.setStream, handler.stream)
                handler.setStream(streams[handler.stream])
        yield
