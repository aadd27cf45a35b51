"""What a run shows: mechanics only, on made-up data."""

import builtins
import io
import logging
import os
import pty
import re
import sys
import threading
import time
import types
import warnings

import numpy as np
import pytest

import aimp_tf
from aimp_tf.config import PruningConfig
from aimp_tf.reports.display import RunDisplay, fit_verbose
from aimp_tf.selection.planning import make_plan
from aimp_tf.training.rounds import RoundResult

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 2, "round_epochs": 1, "seed": 1}
TWELVE = {"target_sparsity": 0.9, "rate": 0.189, "epochs": 30, "round_epochs": 6}
METRICS = {"loss": 0.1234, "accuracy": 0.97, "val_loss": 0.2, "val_accuracy": 0.9512}


def plan_of(weight_count=50_200, **settings):
    return make_plan(PruningConfig(**(settings or TWELVE)), weight_count)


def result_of(round_, metrics=METRICS, weight_count=50_200, epochs=None, seconds=12.3):
    sparsity = 1 - round_.kept / weight_count
    return RoundResult(round_.index, epochs or round_.epochs, round_.kept, sparsity, seconds, dict(metrics))


def train(display, plan, seconds=0.0, clock=None):
    """As `prune` does."""
    for round_ in plan:
        for epoch in range(round_.epochs):
            if clock is not None:
                clock.now += seconds
            display.on_epoch_end(epoch)
        display.round_done(result_of(round_))


@pytest.fixture
def clock(monkeypatch):
    """What the display takes for the time: `clock.now`, in seconds."""
    clock = types.SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("aimp_tf.reports.display.time", clock)
    return clock


class Screen:
    """A terminal: what a program wrote to it, and what that looks like."""

    def __init__(self, reading, columns):
        self.columns, self.raw = columns, ""
        self._reading = reading
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            while data := os.read(self._reading, 4096):
                self.raw += data.decode()
        except OSError:
            pass  # The other end is closed.

    def wait(self):
        self._thread.join(10)

    def wait_for(self, pattern):
        """Until the last line is this."""
        until = time.monotonic() + 10
        while not re.fullmatch(pattern, last := "".join(self.lines[-1:])):
            assert time.monotonic() < until, last
            time.sleep(0.01)

    @property
    def cursor_shown(self):
        return self.raw.rfind("\x1b[?25h") >= self.raw.rfind("\x1b[?25l")

    @property
    def lines(self):
        rows, row, column = [""], 0, 0
        for code, count, kind, char in re.findall(r"(\x1b\[\??([\d;]*)(\w))|(.)", self.raw, re.DOTALL):
            if code:
                if kind == "K":
                    assert count == "2"
                    rows[row] = ""
                elif kind == "A":
                    row -= int(count)
                else:
                    assert kind in "hlm", code
            elif char == "\r":
                column = 0
            elif char == "\n" or column == self.columns:
                row += 1
                rows += [""] * (row + 1 - len(rows))
                if char != "\n":
                    rows[row], column = char, 1
            else:
                rows[row] = rows[row].ljust(column)[:column] + char + rows[row][column + 1 :]
                column += 1
        while rows and not rows[-1].strip():
            rows.pop()
        return [line.rstrip() for line in rows]


@pytest.fixture
def open_terminal(monkeypatch):
    """A function that makes sys.stdout a terminal of so many columns, and gives its Screen; `close` when all is
    written."""
    opened = []

    def make(columns=80, term="xterm"):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("COLUMNS", str(columns))
        reading, writing = pty.openpty()
        stream = os.fdopen(writing, "w")
        screen = Screen(reading, columns)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)

        def close():
            if not stream.closed:
                stream.close()
                screen.wait()
                os.close(reading)

        screen.stream, screen.close = stream, close
        opened.append(close)
        return screen

    yield make
    for close in opened:
        close()


@pytest.fixture
def open_file(monkeypatch, tmp_path):
    """A function that makes sys.stdout a file, and gives one that reads it."""

    def make():
        monkeypatch.setattr(sys, "stdout", open(tmp_path / "out.txt", "w"))
        return (tmp_path / "out.txt").read_text

    return make


SCREEN_OF_TWELVE = [
    "12 trainings, 96 epochs, 90.0% of 50,200 weights",
    "round  1 of 12  sparsity  0.0%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  2 of 12  sparsity 18.9%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  3 of 12  sparsity 34.2%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  4 of 12  sparsity 46.7%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  5 of 12  sparsity 56.7%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  6 of 12  sparsity 64.9%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  7 of 12  sparsity 71.5%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  8 of 12  sparsity 76.9%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round  9 of 12  sparsity 81.3%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round 10 of 12  sparsity 84.8%  loss 0.1234  val_accuracy 0.9512    12 s",
    "round 11 of 12  sparsity 87.7%  loss 0.1234  val_accuracy 0.9512    12 s",
    "last training   sparsity 90.0%  loss 0.1234  val_accuracy 0.9512    12 s",
]


def test_the_screen_of_twelve_rounds_in_a_terminal(open_terminal):
    screen, plan = open_terminal(), plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        train(display, plan)
    screen.close()
    assert screen.lines == SCREEN_OF_TWELVE
    assert "\x1b[2K" in screen.raw and screen.cursor_shown


def test_the_live_line(open_terminal, clock, monkeypatch):
    """It tells where the run is, how much is done, and how long the rest takes by the epochs after the first one."""
    monkeypatch.setattr("aimp_tf.reports.display._REFRESHES_PER_SECOND", 100)
    screen, plan = open_terminal(), plan_of()
    bar = "[━╸╺]{24}"
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        screen.wait_for(f"round 1 of 12, epoch 1 of 6 {bar}   0% 0:00:0\\d")
        clock.now += 500
        display.on_epoch_end(0)
        screen.wait_for(f"round 1 of 12, epoch 2 of 6 {bar}   1% 0:00:0\\d 13.2 h left")
        for epoch in range(1, 6):
            clock.now += 10
            display.on_epoch_end(epoch)
        display.round_done(result_of(plan[0]))
        screen.wait_for(f"round 2 of 12, epoch 1 of 6 {bar}   6% 0:00:0\\d 15 min left")
        clock.now += 120
        screen.wait_for(".* 13 min left")
        clock.now += 10_000
        screen.wait_for(".* 0 s left")
        train(display, plan[1:-1], 10, clock)
        display.on_epoch_end(0)
        screen.wait_for(f"last training, epoch 2 of 30 {bar}  70% 0:00:0\\d .* left")
    screen.close()
    assert screen.lines == SCREEN_OF_TWELVE[:-1]


@pytest.mark.parametrize("columns", [80, 60, 40, 30])
def test_the_live_line_never_wraps(open_terminal, clock, columns):
    """The longest there is; a wrapped one would stay when it is drawn anew."""
    screen, plan = open_terminal(columns), plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        train(display, plan[:9], 500, clock)
        display.on_epoch_end(0)
    screen.close()
    drawn = re.sub(r"\x1b\[\??[\d;]*[a-zA-Z]", "", screen.raw)
    live = [line for line in re.split(r"[\r\n]+", drawn) if "round 1" in line and "sparsity" not in line]
    assert live and max(map(len, live)) <= columns
    assert screen.raw.count("\x1b[1A") == 1  # When it is taken away. One of two lines would go up at each drawing.
    # Lines of rounds may be longer than a narrow terminal, but nothing is between or after them.
    assert re.sub(r"\s", "", "".join(screen.lines)) == re.sub(r"\s", "", "".join(SCREEN_OF_TWELVE[:10]))


def test_what_is_printed_and_logged_appears_above_the_live_line(open_terminal):
    screen, plan = open_terminal(), plan_of(target_sparsity=0.5, rate=0.5, epochs=1)
    handler = logging.StreamHandler()
    logger = logging.getLogger("of_the_user")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with RunDisplay("auto", plan, 50_200) as display:
            display.begin()
            print("printed")
            logger.warning("logged")
            sys.stderr.write("to stderr\n")
            train(display, plan)
        assert handler.stream is sys.stderr is sys.stdout is screen.stream
    finally:
        logger.removeHandler(handler)
    screen.close()
    assert screen.lines == [
        "2 trainings, 2 epochs, 50.0% of 50,200 weights",
        "printed",
        "logged",
        "to stderr",
        "round 1 of 2   sparsity  0.0%  loss 0.1234  val_accuracy 0.9512    12 s",
        "last training  sparsity 50.0%  loss 0.1234  val_accuracy 0.9512    12 s",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_the_terminal_as_it_was(make_mlp, blobs, K, open_terminal, error):
    class Crash(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise error("crashed")

    screen = open_terminal()
    with pytest.raises(error, match="crashed"):
        aimp_tf.prune(make_mlp(), blobs, callbacks=Crash(), **SETTINGS)
    assert sys.stdout is screen.stream
    print("after")
    screen.close()
    assert [line[:14].strip() for line in screen.lines] == [
        "3 trainings, 4",
        "round 1 of 3",
        "round 2 of 3",
        "after",
    ]
    assert "\x1b[?25l" in screen.raw and screen.cursor_shown
    assert "LiveRefresh" not in str(threading.enumerate()) and not any(
        type(thread).__name__ == "_RefreshThread" for thread in threading.enumerate()
    )


def test_a_file_gets_each_line_when_its_round_is_done(make_mlp, blobs, K, open_file, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # Which rich takes for a terminal.
    read, seen = open_file(), []

    class Reader(K.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(read().count("\n"))

    result = aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, callbacks=Reader(), **SETTINGS)
    assert seen == [1, 2, 3]
    rounds = [{name: f"{value:.4f}" for name, value in round_.metrics.items()} for round_ in result.rounds]
    assert re.sub(r" +\d+ s\n", "\n", read()).splitlines() == [
        "3 trainings, 4 epochs, 75.0% of 176 weights",
        f"round 1 of 3   sparsity  0.0%  loss {rounds[0]['loss']}  val_accuracy {rounds[0]['val_accuracy']}",
        f"round 2 of 3   sparsity 50.0%  loss {rounds[1]['loss']}  val_accuracy {rounds[1]['val_accuracy']}",
        f"last training  sparsity 75.0%  loss {rounds[2]['loss']}  val_accuracy {rounds[2]['val_accuracy']}",
    ]
    assert not {"\r", "\x1b"} & set(read())


def test_a_terminal_that_cannot_move_its_cursor_gets_the_lines_alone(open_terminal):
    screen, plan = open_terminal(term="dumb"), plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        train(display, plan)
    screen.close()
    assert screen.raw.replace("\r\n", "\n").splitlines() == SCREEN_OF_TWELVE and "\x1b" not in screen.raw


def test_there_is_no_live_line_beside_keras_own_nor_where_nothing_is_left(open_terminal):
    screen, plan = open_terminal(), plan_of()
    with RunDisplay(1, plan, 50_200) as display:
        display.begin()
        train(display, plan)
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin([result_of(round_) for round_ in plan])
    screen.close()
    assert screen.lines == [*SCREEN_OF_TWELVE, SCREEN_OF_TWELVE[0], "all of it was done before"]
    assert "\x1b" not in screen.raw


def test_without_colours_there_are_none(open_terminal, monkeypatch):
    screen, plan = open_terminal(), plan_of()
    monkeypatch.setenv("NO_COLOR", "1")
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        train(display, plan)
    screen.close()
    assert screen.lines == SCREEN_OF_TWELVE and not re.search(r"\x1b\[[\d;]*3\dm", screen.raw)


def test_another_live_display_is_left_alone(open_terminal, monkeypatch):
    from rich.console import Console
    from rich.live import Live

    screen, plan = open_terminal(), plan_of()
    with Live("of the user", console=Console(file=screen.stream), auto_refresh=False):
        with RunDisplay("auto", plan, 50_200) as display:
            display.begin()
            train(display, plan)
    screen.close()
    assert screen.lines == [*SCREEN_OF_TWELVE, "of the user"] and "epoch 1 of 6" not in screen.raw


class ZMQInteractiveShell:
    """By this name rich knows a notebook."""


def test_a_notebook_gets_a_live_line_without_ipywidgets(monkeypatch):
    """IPython is no dependency, so a made-up one stands for it."""
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    def display_once(bundle, raw, display_id):
        assert raw and display_id is True
        shown.append(bundle)
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display_once
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    plan = plan_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RunDisplay("auto", plan, 50_200) as display:
            display.begin()
            train(display, plan)
        with pytest.raises(KeyError), RunDisplay("auto", plan, 50_200) as display:
            display.begin()
            raise KeyError
    assert sys.stdout.getvalue().splitlines() == [*SCREEN_OF_TWELVE, SCREEN_OF_TWELVE[0]]
    texts = [bundle.pop("text/plain") for bundle in shown]
    assert not any(shown)
    assert re.fullmatch(r"round 1 of 12, epoch 1 of 6 +0% -:--:--|round 1 of 12, epoch 1 of 6 +0% 0:00:00", texts[0])
    assert "done in 0 s" in texts and texts[-1] == "stopped in round 1 of 12, epoch 1 of 6"


@pytest.mark.parametrize(("verbose", "chief"), [(0, True), ("auto", False), (1, False), (2, False)])
def test_silence(open_terminal, verbose, chief):
    screen, plan = open_terminal(), plan_of()
    with RunDisplay(verbose, plan, 50_200, chief=chief) as display:
        display.begin()
        train(display, plan)
    screen.close()
    assert screen.raw == ""


def test_prune_is_silent_with_verbose_0(make_mlp, blobs, capfd):
    aimp_tf.prune(make_mlp(), blobs, verbose=0, **SETTINGS)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_model_that_is_trained_already_is_told_how_to_say_so(make_mlp, blobs, K, capsys, tmp_path):
    model = make_mlp()
    model.fit(*blobs, epochs=2, batch_size=32, verbose=0)
    hint = "trained for 4 steps before; start='trained' prunes the model as it comes"
    aimp_tf.prune(model, *blobs, **SETTINGS)
    assert capsys.readouterr().out.splitlines()[1] == hint and len(hint) <= 80

    class Stop(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                raise RuntimeError("stop")

    # Of steps of the run itself nothing is said, where the same model goes on with it.
    run, again = make_mlp(), {"workdir": tmp_path / "run", "round_epochs": 2}
    with pytest.raises(RuntimeError, match="stop"):
        aimp_tf.prune(run, *blobs, **{**SETTINGS, **again}, callbacks=Stop())
    assert run.optimizer.iterations.numpy() > 0
    for started, settings in (
        (run, again),
        (model, {"start": "trained"}),
        (model, {"method": "gradual", "rate": 0.2, "round_epochs": None}),
        (model, {"verbose": 0}),
        (make_mlp(), {}),
    ):
        aimp_tf.prune(started, *blobs, **{**SETTINGS, **settings})
        assert "steps before" not in capsys.readouterr().out


@pytest.mark.slow
def test_keras_own_lines_come_with_the_lines_of_rounds(make_mlp, blobs, capsys):
    aimp_tf.prune(make_mlp(), blobs, verbose=2, **{**SETTINGS, "rate": 0.8, "round_epochs": 2})
    lines = [line[:12] for line in capsys.readouterr().out.splitlines() if not re.match(r"\d+/", line)]
    assert lines == [
        "2 trainings,",
        "Epoch 1/2",
        "Epoch 2/2",
        "round 1 of 2",
        "Epoch 1/2",
        "Epoch 2/2",
        "last trainin",
    ]


@pytest.mark.parametrize("verbose", [3, -1, "1", None, "silent"])
def test_another_verbose_is_refused_before_training(make_mlp, blobs, verbose):
    model = make_mlp()
    before = model.get_weights()
    with pytest.raises(ValueError, match="verbose must be 'auto'"):
        aimp_tf.prune(model, blobs, verbose=verbose, **SETTINGS)
    for was, is_ in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, is_)


def test_what_fit_gets():
    assert [fit_verbose(verbose) for verbose in ("auto", 0, 1, 2)] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "may_stop", "headline"),
    [
        ({"method": "gradual", "target_sparsity": 0.9, "epochs": 30}, False, "1 training, 30 epochs, 90.0% of {}"),
        ({"method": "gradual", "target_sparsity": 0.9, "epochs": 1}, False, "1 training, 1 epoch, 90.0% of {}"),
        ({"method": "dense", "target_sparsity": 0.9, "epochs": 30}, False, "1 training, 30 epochs, none of {}"),
        (TWELVE, True, "12 trainings, up to 96 epochs, 90.0% of {}"),
        ({"target_sparsity": 0.9996, "rate": 0.9, "epochs": 1}, False, "5 trainings, 5 epochs, 99.96% of {}"),
    ],
)
def test_headlines(capsys, settings, may_stop, headline):
    with RunDisplay(1, plan_of(**settings), 50_200, may_stop=may_stop) as display:
        display.begin()
    assert capsys.readouterr().out == headline.format("50,200 weights") + "\n"


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, "  "),
        ({"loss": 0.5}, "  loss 0.5000"),
        ({"loss": 0.5, "val_loss": 0.25}, "  loss 0.5000  val_loss 0.2500"),
        ({"loss": 0.5, "mae": 0.1, "val_loss": 0.25}, "  loss 0.5000  mae 0.1000"),
        ({"loss": 0.5, "penalty": 0.1, "val_loss": 0.25}, "  loss 0.5000  penalty 0.1000  val_loss 0.2500"),
        ({"distillation": 0.1, "loss": 0.5, "acc": 0.9}, "  loss 0.5000  distillation 0.1000  acc 0.9000"),
        ({"loss": 0.5, "f1": [0.1, 0.2], "val_f1": [0.3, 0.4]}, "  loss 0.5000"),
        ({"loss": 0.5, "f1": [0.1, 0.2], "val_auc": float("nan")}, "  loss 0.5000  val_auc    nan"),
    ],
)
def test_metrics_of_a_line(capsys, metrics, expected):
    (round_,) = plan_of(method="gradual", target_sparsity=0.9, epochs=3)
    RunDisplay("auto", [round_], 50_200).round_done(result_of(round_, metrics))
    assert capsys.readouterr().out == f"training  sparsity 90.0%{expected.rstrip()}    12 s\n"


def test_long_names_are_cut_in_a_terminal(open_terminal):
    screen, plan = open_terminal(), plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin()
        display.round_done(result_of(plan[0], {"loss": 0.5, "val_sparse_categorical_accuracy": 0.25}))
    screen.close()
    assert screen.lines[1:] == [
        "round  1 of 12  sparsity  0.0%  loss 0.5000  val_sparse_categor.. 0.2500    12 s",
    ]
    assert len(screen.lines[1]) == 80


def test_a_round_that_ends_early_counts_as_done(open_terminal, clock, monkeypatch):
    """Of the 96 epochs, 92 are left to count."""
    monkeypatch.setattr("aimp_tf.reports.display._REFRESHES_PER_SECOND", 100)
    screen, plan = open_terminal(), plan_of()
    with RunDisplay("auto", plan, 50_200, may_stop=True) as display:
        display.begin()
        for epoch in range(2):
            clock.now += 60
            display.on_epoch_end(epoch)
        display.round_done(result_of(plan[0], epochs=2))
        screen.wait_for("round 2 of 12, epoch 1 of 6 .*   2% 0:00:0\\d 90 min left")


def test_the_time_left_of_a_run_that_goes_on_is_that_of_this_process(open_terminal, clock, monkeypatch):
    monkeypatch.setattr("aimp_tf.reports.display._REFRESHES_PER_SECOND", 100)
    screen, plan = open_terminal(), plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin([result_of(round_, seconds=1e6) for round_ in plan[:6]], 1)
        screen.wait_for("round 7 of 12, epoch 2 of 6 .*  39% 0:00:0\\d")
        for epoch in (1, 2, 3):
            clock.now += 60
            display.on_epoch_end(epoch)
        screen.wait_for("round 7 of 12, epoch 5 of 6 .*  42% 0:00:0\\d 56 min left")


@pytest.mark.parametrize(
    ("done", "epoch", "told"),
    [
        (0, 0, None),
        (1, 0, "round 1 was done before"),
        (6, 0, "rounds 1 to 6 were done before"),
        (0, 4, "4 of 6 epochs of round 1 were done before"),
        (6, 1, "rounds 1 to 6 and 1 of 6 epochs of round 7 were done before"),
        (11, 20, "rounds 1 to 11 and 20 of 30 epochs of the last training were done before"),
        (12, 0, "all of it was done before"),
    ],
)
def test_what_was_done_before_is_told_in_a_line(capsys, done, epoch, told):
    plan = plan_of()
    with RunDisplay("auto", plan, 50_200) as display:
        display.begin([result_of(round_) for round_ in plan[:done]], epoch)
    assert capsys.readouterr().out.splitlines()[1:] == ([] if told is None else [told])


@pytest.mark.slow
def test_a_run_that_goes_on_and_one_that_is_finished(make_mlp, blobs, K, tmp_path, capsys):
    class Crash(K.callbacks.Callback):
        rounds = 0

        def on_train_begin(self, logs=None):
            self.rounds += 1
            if self.rounds == 3:
                raise KeyError

    with pytest.raises(KeyError):
        aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "run", callbacks=Crash(), **SETTINGS)
    capsys.readouterr()
    headline = "3 trainings, 4 epochs, 75.0% of 176 weights"
    aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "run", **SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [headline, "rounds 1 to 2 were done before"]
    assert len(lines) == 3 and lines[2].startswith("last training  sparsity 75.0%  loss ")
    aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "run", **SETTINGS)
    assert capsys.readouterr().out.splitlines() == [headline, "all of it was done before"]


def test_other_methods(make_mlp, blobs, capsys):
    aimp_tf.prune(make_mlp(), blobs, method="gradual", target_sparsity=0.75, epochs=2)
    headline, line = capsys.readouterr().out.splitlines()
    assert headline == "1 training, 2 epochs, 75.0% of 176 weights"
    assert re.fullmatch(r"training  sparsity 75.0%  loss \d\.\d{4}  accuracy \d\.\d{4} +\d+ s", line)


@pytest.mark.slow
def test_runs_that_may_stop_early_say_so(make_mlp, blobs, K, capsys):
    stopping = K.callbacks.EarlyStopping(monitor="loss")
    aimp_tf.prune(make_mlp(), blobs, callbacks=stopping, **SETTINGS)
    aimp_tf.prune(make_mlp(), blobs, stop_mask_distance=0.1, **{**SETTINGS, "round_epochs": 2})
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "trainings" in line] == [
        "3 trainings, up to 4 epochs, 75.0% of 176 weights",
        "3 trainings, up to 6 epochs, 75.0% of 176 weights",
    ]
