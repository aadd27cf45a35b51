import base64
import dataclasses
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import aimp_tf
from aimp_tf.files import read_json, write_json
from aimp_tf.reports import plots
from aimp_tf.reports.report import write_report
from aimp_tf.runs.outcome import Outcome, accuracy_margin, difference_margin, times_as_fast
from aimp_tf.runs.recorded_run import RecordedRun, read_run
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.training.rounds import RoundResult, percent_text

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 1, "verbose": 0, "seed": 1}


TAGS = "html head meta title style body main h1 h2 h3 p span div section ul li table thead tbody tr th td img"
TAGS += " details summary"


class Page(html.parser.HTMLParser):
    """What a browser would show of a page, and what it would have to fetch."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.rows, self.pictures, self.fetched, self.marked = [], [], {}, [], []
        self.figures, self.lengths, self.folded, self.kinds = {}, {}, [], {}
        self._figure, self._details, self._kind, self._open = None, 0, "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._kind = attributes.get("class", "")
        if tag == "tr":
            self.rows.append([])
            if self._details:
                self.folded.append(self.rows[-1])
            if attributes.get("class") == "marked":
                self.marked.append(self.rows[-1])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            kind, _, data = attributes["src"].partition(";base64,")
            assert kind == "data:image/svg+xml"
            self.pictures[attributes["alt"].partition(":")[0]] = base64.b64decode(data).decode()
        elif tag == "details":
            assert "open" not in attributes
            self._details += 1
        elif tag == "section" and "figure" in self._kind.split():
            self._figure = []
        elif "style" in attributes:
            length = float(attributes["style"].removeprefix("width: ").removesuffix("%"))
            self.lengths.setdefault(self._figure[0], []).append(length)
        assert tag in TAGS.split(), tag
        if tag not in ("meta", "img"):
            self._open.append(tag)
        self.fetched += [
            value for name, value in attributes.items() if name in ("src", "href") and "data:" not in value
        ]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "details":
            self._details -= 1
        elif tag == "section" and self._figure is not None:
            self.figures[self._figure[0]] = self._figure[1:]
            self._figure = None

    def handle_data(self, data):
        self.texts.append(data)
        self.kinds.setdefault(self._kind, []).append(data)
        if self._figure is not None and data.strip():
            self._figure.append(data.strip().replace("\N{NO-BREAK SPACE}", " "))
        if self.rows and self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")

    def row(self, name):
        return next(row[1:] for row in self.rows if row[0] == name)

    @property
    def answer(self):
        """The first paragraph."""
        kind = min((kind for kind in ("answer", "unfinished") if kind in self.kinds), key=list(self.kinds).index)
        return self.kinds[kind][0].replace("\N{NO-BREAK SPACE}", " ")


def made_up_run(name="made up", kept=(100, 50, 25), finished=True, losses=(0.9, 0.8, 0.7), outcome=None, **fields):
    config = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 1, **fields}
    rounds = []
    for index, (count, loss) in enumerate(zip(kept, losses, strict=True)):
        mask = np.arange(100) < count
        rounds.append(
            RoundResult.of(
                index,
                [{"loss": loss, "val_loss": loss, "val_accuracy": 1 - loss, "accuracy": 1 - loss}]
                * (1 if index < 2 else 4),
                {"a/kernel": np.linspace(-1, 1, 100, dtype="float32")},
                {"a/kernel": mask},
                seconds=2.0 if index < 2 else 8.0,
            )
        )
    return RecordedRun(name, config, {"python": "3.11"}, rounds, finished, outcome or Outcome())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run on scikit-learn's digits in a run directory, and its result."""
    import keras
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    layers = keras.layers
    model = keras.Sequential([keras.Input((64,)), layers.Dense(16, "relu", name="hidden"), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    folder = tmp_path_factory.mktemp("report") / "run"
    data = (images / 16, labels)
    return aimp_tf.prune(model, data, validation_data=data, workdir=folder, **SETTINGS), folder


# No run gave these figures.
MADE_UP = Outcome(
    dense_metrics={"val_accuracy": 0.29, "val_loss": 0.75, "loss": 0.7, "accuracy": 0.29},
    dense_epochs=4,
    examples=400,
    file_format="SavedModel",
    bytes=(250_000, 249_000),
    gzip_bytes=(200_000, 25_000),
    multiply_adds=(50_200, 4_731),
    call_seconds=((0.002,) * 10, (0.001, *(0.001,) * 8, 0.004)),
    call="1 example on a machine that is made up",
)


def page_of(runs, folder, **options):
    write_report(runs, folder / "page.html", **options)
    return Page(folder / "page.html")


def test_the_page_opens_with_the_answer_and_four_figures(tmp_path):
    page = page_of([made_up_run(outcome=MADE_UP)], tmp_path)
    assert page.answer == (
        "75.0% of the prunable weights are gone, and the validation accuracy is 30.0%, 1.0 points above the dense "
        "model's (± 6.3: 400 examples cannot tell them apart; it was trained for 4 epochs, the pruned one for 6)."
    )
    assert page.figures == {
        "Accuracy (validation)": [
            "30.0%",
            "± 4.7",
            "1.0 points above the dense model's, ± 6.3",
            *("dense", "29.0% ± 4.6, 4 epochs", "now", "30.0% ± 4.7"),
        ],
        "Weights left": ["25.0%", "1 in 4 of those that can be pruned", "dense", "100", "now", "25"],
        "File size": [
            "249 kB",
            "SavedModel",
            "as large as the dense one; 8.0 times smaller as gzip",
            *("dense", "250 kB", "now", "249 kB", "dense, gzip", "200 kB", "now, gzip", "25.0 kB"),
        ],
        "Time a call": [
            "1.00 ms",
            "(1.00 to 1.00 ms)",
            "2 times as fast (2 to 2)",
            *("dense", "2.00 ms (2.00 to 2.00 ms)", "now", "1.00 ms (1.00 to 1.00 ms)"),
            "1 example on a machine that is made up.",
            "Multiply-adds for one example: 50,200 dense, 4,731 now.",
        ],
    }
    # What they are drawn as is linear in them.
    assert page.lengths == {
        "Accuracy (validation)": [29, 30],
        "Weights left": [100, 25],
        "File size": [100, 99.6, 80, 10],
        "Time a call": [100, 50],
    }
    notes = "".join(page.kinds["note"])
    assert (
        "± is 95%: about 1.96 standard errors of an accuracy on 400 examples (" in notes
        and "median of 10 calls" in notes
    )
    write_report([made_up_run(outcome=MADE_UP)], tmp_path / "page.md")
    opening = (tmp_path / "page.md").read_text(encoding="utf-8").partition("## ")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert opening.split("\n\n")[1] == f"**{page.answer}**"
    assert "- **Weights left: 25.0%**; 1 in 4 of those that can be pruned; dense: 100.\n" in opening
    assert "dense: 250 kB; dense, gzip: 200 kB." in opening


LENGTHS = "it was trained for 4 epochs, the pruned one for 6"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "metric", "end"),
    [
        ({"dense_epochs": 6}, None, "1.0 points above the dense model's (± 6.3: 400 examples cannot tell them apart)."),
        ({"dense_epochs": 1}, None, "; it was trained for 1 epoch, the pruned one for 6)."),
        ({"dense_epochs": 0}, None, "1.0 points above the dense model's (± 6.3: 400 examples cannot tell them apart)."),
        ({"examples": 40_000}, None, f"1.0 points above the dense model's (± 0.6; {LENGTHS})."),
        (
            {"examples": None},
            None,
            f"the validation accuracy is 30.0%, 1.0 points above the dense model's ({LENGTHS}).",
        ),
        (
            {"dense_metrics": {"val_accuracy": 0.3001}},
            None,
            f"30.0%, the same as the dense model's (± 6.3; {LENGTHS}).",
        ),
        ({"dense_metrics": {"val_accuracy": 0.5}}, None, f", 20.0 points below the dense model's (± 6.7; {LENGTHS})."),
        ({"dense_metrics": None}, None, "and the validation accuracy is 30.0%."),
        ({"dense_metrics": {"val_accuracy": float("nan")}}, None, "and the validation accuracy is 30.0%."),
        ({}, "val_loss", f"and the validation loss is 0.7000, 0.0500 below the dense model's ({LENGTHS})."),
        ({}, "accuracy", f"and the accuracy in training is 30.0%, 1.0 points above the dense model's ({LENGTHS})."),
        ({}, "loss", f"and the loss in training is 0.7000, the same as the dense model's ({LENGTHS})."),
    ],
)
def test_the_answer_says_what_is_known(tmp_path, changes, metric, end):
    outcome = dataclasses.replace(MADE_UP, **changes)
    page = page_of([made_up_run(outcome=outcome)], tmp_path, metric=metric)
    assert page.answer.startswith("75.0% of the prunable weights are gone, and the ") and page.answer.endswith(end)


def test_what_was_not_measured_is_said_to_be_so(tmp_path):
    page = page_of([made_up_run()], tmp_path)
    assert page.answer == "75.0% of the prunable weights are gone, and the validation accuracy is 30.0%."
    figures = page.figures
    assert figures["Accuracy (validation)"][:3] == ["30.0%", "dense", "not measured"]
    assert "dense_baseline=True" in figures["Accuracy (validation)"][-1]
    assert figures["File size"][0] == figures["Time a call"][0] == "not measured"
    assert "±" not in "".join(page.texts) and "None" not in "".join(page.texts)
    # The accuracy of a run that goes on may be compared, but its model is not there yet.
    unfinished = made_up_run(kept=(100, 50), losses=(0.9, 0.8), finished=False, outcome=MADE_UP)
    page = page_of([unfinished], tmp_path)
    assert page.answer == (
        "Not finished: 2 of 3 rounds are done. So far, 50.0% of the prunable weights are gone, and the validation "
        "accuracy is 20.0%, 9.0 points below the dense model's (± 6.0)."
    )
    assert page.figures["File size"] == page.figures["Time a call"][:2] == ["not measured", "The run is not done."]


def test_several_runs_open_with_an_answer_each_and_a_table(tmp_path):
    runs = [made_up_run("a", outcome=MADE_UP), made_up_run("b", (100, 50), False, (0.9, 0.8))]
    page = page_of(runs, tmp_path)
    assert [page.kinds[kind][0][:24] for kind in ("answer", "unfinished")] == [
        "75.0% of the prunable we",
        "Not finished: 2 of 3 rou",
    ]
    texts = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in page.rows]
    for row in (
        ["Accuracy (validation)", "30.0% ± 4.7", "20.0%"],
        ["Accuracy (validation): dense", "29.0% ± 4.6, 4 epochs", "not measured"],
        ["Weights left", "25.0%", "50.0%"],
        ["File size: dense", "250 kB", ""],
        ["Time a call", "1.00 ms (1.00 to 1.00 ms)", "not measured"],
        ["Time a call: change", "2 times as fast (2 to 2)", ""],
    ):
        assert row in texts, texts


@pytest.mark.slow
def test_a_person_can_choose_the_title(pruned, tmp_path):
    result, folder = pruned
    result.report(tmp_path / "page.html", title="Digits & more")
    assert Page(tmp_path / "page.html").texts.count("Digits & more") == 2
    run = made_up_run("runs/wide_mlp")
    for runs, title, expected in (
        ([run], None, "What pruning made of wide_mlp"),
        ([made_up_run("sequential_3")], None, "What pruning made of the model"),
        ([run], "Wider", "Wider"),
        ([run, made_up_run("b"), made_up_run("c")], None, "What pruning made of wide_mlp, b and c"),
        ([made_up_run(name) for name in "abcd"], None, "What pruning made of 4 runs"),
    ):
        write_report(runs, tmp_path / "page.md", title=title)
        assert (tmp_path / "page.md").read_text().splitlines()[0] == f"# {expected}"
    command = [sys.executable, "tools/report.py", f"--workdir={folder}", f"--output={tmp_path / 'b.html'}"]
    subprocess.run([*command, "--title=Mine"], check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "b.md").read_text().startswith("# Mine\n")


def test_fields_at_their_defaults_and_the_environment_are_folded_away(tmp_path):
    page = page_of([made_up_run(rewind="weights", scope="global")], tmp_path)
    folded = [row[0] for row in page.folded]
    assert {"scope", "method", "criterion", "python"} <= set(folded)
    assert not {"target_sparsity", "rate", "epochs", "round_epochs", "rewind"} & set(folded)
    # In one run it is not at its default.
    page = page_of([made_up_run("a"), made_up_run("b", scope="layer")], tmp_path)
    assert page.row("scope") == ["global", "layer"] and "scope" not in [row[0] for row in page.folded]


def test_percent_is_never_all_or_nothing_unless_it_is():
    fractions = (0.9, 0.99999, 0.0000123, 1, 0, 0.5)
    assert [percent_text(fraction) for fraction in fractions] == [
        "90.00%",
        "99.999%",
        "0.001%",
        "100.00%",
        "0.00%",
        "50.00%",
    ]
    assert percent_text(0.9996, 1) == "99.96%"


def test_margins_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for accuracy, examples in ((0.9, 300), (0.98, 300), (0.5, 30), (0.3, 1000)):
        drawn, others = rng.binomial(examples, accuracy, (2, 4000)) / examples
        held = [abs(value - accuracy) <= accuracy_margin(value, examples) for value in drawn]
        assert 0.94 < np.mean(held) < 0.99
        held = [abs(a - b) <= difference_margin(a, b, examples) for a, b in zip(drawn, others, strict=True)]
        assert 0.94 < np.mean(held) < 0.99
    # The lower end of Wilson's interval of 100 of 100 is 1 / (1 + 1.96**2 / 100).
    assert accuracy_margin(1.0, 100) == pytest.approx(1 - 1 / 1.038416)
    assert accuracy_margin(0.9, 10**6) == pytest.approx(1.96 * (0.9 * 0.1 / 10**6) ** 0.5, rel=3e-3)
    held = []
    for _ in range(2000):
        low, _, high = times_as_fast(rng.lognormal(1.0, 0.5, 20), np.ones(20))
        held.append(low <= np.e <= high)
    assert 0.94 < np.mean(held) < 0.98
    # The tables of this interval give the second and the ninth of ten, and nothing within five.
    assert times_as_fast(np.arange(1, 11), np.ones(10)) == (2, 5.5, 9)
    assert times_as_fast([4, 1, 2], [1, 1, 1]) == (1, 2, 4)


def test_pictures_are_in_percent_and_on_a_linear_scale(tmp_path):
    run = made_up_run()
    figure = plots.plot_layers(run.rounds[-1].layers)
    figure.canvas.draw()
    sparsities, counts = figure.axes
    assert [label.get_text() for label in sparsities.get_xticklabels()] == ["0%", "50%", "100%"]
    assert counts.get_xscale() == "linear" and [bar.get_width() for bar in counts.patches] == [100, 25]
    figure = plots.plot_metric({"a": run.rounds}, "val_accuracy", "accuracy", {"a": 0.29}, {"a": 400})
    figure.canvas.draw()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0%", "50%", "80%"]
    assert all(label.get_text().endswith("%") for label in axes.get_yticklabels())
    assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == "dense"] == [0.29]
    (error,) = axes.containers
    (((_, low), (_, high)),) = error.lines[2][0].get_segments()
    assert high - low == pytest.approx(2 * accuracy_margin(0.3, 400)) and high + low == pytest.approx(0.6)
    figure = plots.plot_metric({"a": run.rounds}, "val_loss", "loss", {"a": 0.29}, {"a": 400})
    figure.canvas.draw()
    (axes,) = figure.axes
    assert not axes.containers and not any("%" in label.get_text() for label in axes.get_yticklabels())


def test_the_page_and_its_pictures_have_colours_for_the_dark(tmp_path):
    page = page_of([made_up_run(outcome=MADE_UP), made_up_run("b")], tmp_path)
    for picture in page.pictures.values():
        root = ElementTree.fromstring(picture)
        styles = [element.get("style", "") for element in root.iter()]
        used = set(re.findall(r"(?:fill|stroke): (#\w+)", " ".join(styles)))
        rules = root.find("{http://www.w3.org/2000/svg}style").text.partition("prefers-color-scheme: dark")[2]
        assert used and used <= set(re.findall(r': (#\w+)"', rules)), used
        # Nothing without a colour of its own is drawn, for it would be black, and there is no background.
        texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
        assert texts and all("fill: #" in text.get("style") for text in texts)
        assert "#ffffff" not in picture
    style = (pathlib.Path(aimp_tf.__file__).parent / "reports" / "report.css").read_text()
    assert not re.search(r"url\(|@import", style)
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    for colours in (light, dark):
        named = dict(re.findall(r"--(\w+): (#\w{6})", colours))
        for ink in ("ink", "soft"):
            for paper in ("page", "panel"):
                assert contrast(named[ink], named[paper]) > 4.5
        # As WCAG 2.2 asks of what is no text.
        assert contrast(named["now"], named["panel"]) > 3


def contrast(*colours):
    """Of two colours, by WCAG 2.2."""
    luminances = []
    for colour in colours:
        channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(luminances) / min(luminances)


def test_a_page_tells_of_a_run_and_needs_no_other_file(pruned, tmp_path):
    result, folder = pruned
    assert result.report(tmp_path / "page.html") == [tmp_path / "page.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    page = Page(tmp_path / "page.html")
    assert page.fetched == []
    last = result.rounds[-1]
    assert page.row("accuracy (validation), last round") == [f"{last.metrics['val_accuracy']:.2%}"]
    assert page.row("weights kept") == ["296 of 1,184"] and page.row("sparsity") == ["75.00% (target 75%)"]
    assert page.row("epochs") == ["6 (50% of plain IMP's 12)"]
    for layer in last.layers:
        assert page.row(layer.path)[1:3] == [f"{layer.kept:,}", f"{layer.sparsity:.2%}"]
    assert page.row("last")[:3] == ["4", "296", "75.00%"]
    assert page.row("rewind") == ["learning_rate"] and page.row("python")[0].startswith("3.")
    assert set(page.pictures) == {
        "accuracy (validation) against sparsity",
        "epochs and seconds beside plain IMP",
        *(f"{what}, {result.model.name}" for what in ("sparsity and kept weights of each variable",)),
        f"magnitudes of the surviving weights before and after pruning, {result.model.name}",
    }
    for picture in page.pictures.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg") and "<path" in picture


@pytest.mark.slow
def test_a_run_directory_gives_the_same_report(pruned, tmp_path):
    result, folder = pruned
    result.report(tmp_path / "a.html")
    done = subprocess.run(
        [sys.executable, "tools/report.py", f"--workdir={folder}", f"--output={tmp_path / 'b.html'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'b.html'}\n{tmp_path / 'b.md'}\n"
    here, there = (Page(tmp_path / name).rows for name in ("a.html", "b.html"))
    assert [row for row in here if row not in there] == []
    assert [row[0] for row in there if row not in here] == ["started"]
    text = (tmp_path / "b.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.parse(tmp_path / picture)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    as_markdown = [[cell.replace("\\", "") for cell in row] for row in cells if set(row[0]) != {"-"} and any(row)]
    assert as_markdown == [[cell.replace("\\", "") for cell in row] for row in there]


def test_runs_stand_side_by_side(tmp_path):
    runs = [made_up_run("runs/a", rewind="weights"), made_up_run("runs/b", rewind="learning_rate")]
    write_report(runs, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[0] == ["", "a", "b"]
    assert page.row("rewind") == ["weights", "learning_rate"]
    assert page.marked == [["rewind", "weights", "learning_rate"]] and page.marked[0] not in page.folded
    assert len(page.pictures) == 6
    write_report([made_up_run("here/run"), made_up_run("there/run")], tmp_path / "page.html")
    assert Page(tmp_path / "page.html").rows[0] == ["", "here/run", "there/run"]


def test_a_run_that_is_not_done_is_reported_as_far_as_it_is(tmp_path):
    runs = [made_up_run("a", kept=(100, 50), losses=(0.9, 0.8), finished=False), made_up_run("b", (), False, ())]
    write_report(runs, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.row("state") == ["2 of 3 rounds done"]
    assert page.row("epochs") == ["2 (25% of plain IMP's 8)"]
    assert "No round is done yet, and nothing to show, in: b." in page.texts
    assert [row[0] for row in page.rows if row[0] in ("last", "2")] == ["2"]
    with pytest.raises(ValueError, match="No round is done yet in b"):
        write_report(runs[1:], tmp_path / "other.html")


def test_the_metric_can_be_chosen(tmp_path):
    write_report([made_up_run()], tmp_path / "page.html")
    assert Page(tmp_path / "page.html").row("accuracy (validation), last round") == ["30.00%"]
    write_report([made_up_run()], tmp_path / "page.html", metric="loss")
    page = Page(tmp_path / "page.html")
    assert page.row("loss, last round") == ["0.7000"] and page.row("loss, first round") == ["0.9000"]
    with pytest.raises(
        ValueError, match="No run has.*'val_acuracy'.*loss, val_loss, val_accuracy.*Did you mean 'val_accuracy'"
    ):
        write_report([made_up_run()], tmp_path / "other.html", metric="val_acuracy")
    assert not (tmp_path / "other.html").exists()


def test_names_are_shown_and_not_run(tmp_path):
    hostile = "<script>alert(1)<script>|`*"
    write_report([made_up_run(hostile, exclude=[hostile])], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.row("exclude") == [hostile] and page.texts.count(f"What pruning made of {hostile}") == 2
    write_report([made_up_run(hostile, exclude=[hostile])], tmp_path / "page.md")
    assert r"| exclude | \<script>alert(1)\<script>\|\`\* |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_bad_paths_are_refused(pruned, tmp_path, monkeypatch):
    result, _ = pruned
    with pytest.raises(ValueError, match=r"ends in .html or .md; got .*page.pdf"):
        result.report(tmp_path / "page.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="the folder of the report .*file cannot be written"):
        result.report(tmp_path / "file" / "page.html")
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"\.\[report\]\""):
        result.report(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_read_as_it_was(pruned):
    result, folder = pruned
    run = read_run(folder)
    assert run.finished and run.rounds == result.rounds and run.name == str(folder)
    assert run.config == json.loads(result.config.to_json())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "signature.json").unlink(), "holds no run: there is no signature.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json is damaged: its checksum"),
        (lambda folder: truncate(folder / "round_001" / "result.json"), "round_001/result.json is damaged"),
        (lambda folder: move(folder / "round_000", folder / "round_001"), "round_001 holds round 1"),
        (lambda folder: link(folder / "final"), "final is a link"),
        (lambda folder: change(folder / "final" / "result.json", layers=[{"path": 1}]), "not the result of a round"),
        (lambda folder: change(folder / "final" / "result.json", seconds=1e999, epochs=1e999), "not the result of"),
    ],
)
def test_damaged_and_hostile_runs_are_refused(pruned, tmp_path, damage, message):
    folder = shutil.copytree(pruned[1], tmp_path / "run")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_run(folder)


def test_an_outcome_is_read_as_it_was_written(pruned, tmp_path):
    folder = shutil.copytree(pruned[1], tmp_path / "run")
    assert read_run(folder).outcome == pruned[0].measured != Outcome()
    write_json(folder / "outcome.json", MADE_UP.to_fields())
    assert read_run(folder).outcome == MADE_UP
    assert Outcome.from_fields(Outcome().to_fields()) == Outcome()
    # Of a run that is begun anew there, it tells nothing.
    with RunDirectory(folder, pruned[0].config, {}, overwrite=True) as directory:
        directory.begin(3)
        assert not (folder / "outcome.json").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"bytes": [1]},
        {"bytes": [-1, 1]},
        {"bytes": 5},
        {"examples": 0},
        {"examples": 1e999},
        {"dense_epochs": -1},
        {"dense_metrics": 3},
        {"call_seconds": [[1.0], [1.0, 2.0]]},
        {"call_seconds": [[], []]},
        {"call_seconds": [[0.0], [1.0]]},
        {"call_seconds": [[1.0], ["x"]]},
    ],
)
def test_the_outcome_of_something_else_is_refused(pruned, tmp_path, fields):
    folder = shutil.copytree(pruned[1], tmp_path / "run")
    write_json(folder / "outcome.json", fields)
    with pytest.raises(ValueError, match="cannot be trusted: .*outcome.json is not the outcome of a run"):
        read_run(folder)
    write_json(folder / "outcome.json", MADE_UP.to_fields())
    truncate(folder / "outcome.json")
    with pytest.raises(ValueError, match="cannot be trusted: .*outcome.json is damaged"):
        read_run(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def move(source, target):
    shutil.rmtree(target)
    source.rename(target)
    shutil.copytree(target, source)


def link(folder):
    elsewhere = folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(elsewhere)


def change(path, **fields):
    write_json(path, {**read_json(path), **fields})


def test_a_run_of_version_1_is_reported_as_it_was_planned(tmp_path):
    old = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": None}
    runs = [dataclasses.replace(made_up_run("old"), config=old), made_up_run("new", version=5)]
    write_report(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    for row in (
        "| round_epochs | 1 | 1 |",
        "| **min_layer_share** | **0.0** | **0.05** |",
        "| **shrink** | **1.0** | **0.7** |",
        "| method | iterative | iterative |",
    ):
        assert row in page, page
    with pytest.raises(ValueError, match="config of new is not that of a run: The config is of version 6"):
        write_report([dataclasses.replace(runs[1], config={**old, "version": 6})], tmp_path / "page.md")


def test_what_former_versions_had_and_this_one_has_not_is_reported(tmp_path):
    runs = [
        dataclasses.replace(
            made_up_run("by tfmot", version=3, method="tfmot", rate=0.3), rounds=made_up_run().rounds[-1:]
        ),
        made_up_run("late in its schedule", version=2, round_schedule="tail"),
    ]
    write_report(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| **method** | **tfmot** | **iterative** |" in page and "| **head** | **tail** |" in page, page


def test_settings_that_are_objects_are_reported_by_their_names(tmp_path):
    settings = {"regularizer": "module.Lasso(strength=0.1)", "projection": "module.Ball(radius=1)", "scope": "a.shares"}
    run = made_up_run("own", **settings, distillation={"weight": 0.5, "temperature": 2.0, "loss": "module.loss"})
    write_report([run, made_up_run("plain")], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert all(setting in page for setting in settings.values()), page


def test_a_config_of_something_else_is_refused(tmp_path):
    run = dataclasses.replace(made_up_run(), config={"target_sparsity": "x", "epochs": 2})
    with pytest.raises(ValueError, match="config of made up is not that of a run: target_sparsity must be a number"):
        write_report([run], tmp_path / "page.html")


@pytest.mark.slow
def test_the_figures_of_inference_are_shown_too(tmp_path):
    def form(size, *seconds):
        settings = ((1, 1), (1, 0), (32, 0))
        latency = [
            {
                "batch_size": batch_size,
                "threads": threads,
                "median_seconds": median,
                "p95_seconds": 2 * median,
                "times_as_fast": [1.0, 3.0, 0.002 / median],
            }
            for (batch_size, threads), median in zip(settings, seconds, strict=True)
        ]
        return {"bytes": size, "gzip_bytes": size // 2, "memory_bytes": 2 * size, "latency": latency}

    forms = {"dense": form(4_000_000, 0.002, 0.001, 0.02), "sparse, for 1": form(500_000, 0.001, 0.001, 0.04)}
    figures = {"model": "m.keras", "repetitions": 3, "cores": 2, "processor": "a processor", "forms": forms}
    file = tmp_path / "inference.json"
    file.write_text(json.dumps(figures))
    write_report([made_up_run()], tmp_path / "report.html", inference=file)
    page = Page(tmp_path / "report.html")
    assert page.row("form")[3:] == [
        f"{setting}: times as fast"
        for setting in ("batch 1, 1 thread", "batch 1, all threads", "batch 32, all threads")
    ]
    assert page.row("sparse, for 1") == ["0.500", "0.250", "1.000", "2.00", "2.00", "1.00"]
    (picture,) = (svg for name, svg in page.pictures.items() if name.startswith("latency"))
    assert picture.count("batch 32, all threads") == 1 and "sparse, for 1" in picture
    # The bars are the medians in milliseconds, not the percentiles.
    assert re.search(r">40 ?</text>", picture) and not re.search(r">80 ?</text>", picture)
    del forms["dense"]
    file.write_text(json.dumps(figures))
    for broken in (file, tmp_path / "report.html", tmp_path / "nothing.json"):
        with pytest.raises(ValueError, match=f"{broken.name} is not what tools/benchmark.py inference --output writes"):
            write_report([made_up_run()], tmp_path / "other.html", inference=broken)
    assert not (tmp_path / "other.html").exists()
