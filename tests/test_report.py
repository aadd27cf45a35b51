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
from aimp_tf import plots
from aimp_tf.report import write_report
from aimp_tf.rounds import RoundResult
from aimp_tf.run_directory import RecordedRun, read_run
from aimp_tf.safe_files import read_json, write_json

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 1, "verbose": 0, "seed": 1}


class Page(html.parser.HTMLParser):
    """What a browser would show of a page, and what it would have to fetch."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.rows, self.pictures, self.fetched, self.marked = [], [], {}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr":
            self.rows.append([])
            if attributes.get("class") == "marked":
                self.marked.append(self.rows[-1])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            kind, _, data = attributes["src"].partition(";base64,")
            assert kind == "data:image/svg+xml"
            self.pictures[attributes["alt"]] = base64.b64decode(data).decode()
        assert tag in "html head meta title style body h1 h2 h3 p div section table tr th td img".split(), tag
        self.fetched += [
            value for name, value in attributes.items() if name in ("src", "href") and "data:" not in value
        ]

    def handle_data(self, data):
        self.texts.append(data)
        if self.rows and self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data.strip("\n")

    def row(self, name):
        return next(row[1:] for row in self.rows if row[0] == name)


def made_up_run(name="made up", kept=(100, 50, 25), finished=True, losses=(0.9, 0.8, 0.7), **fields):
    config = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 4, "round_epochs": 1, **fields}
    rounds = []
    for index, (count, loss) in enumerate(zip(kept, losses, strict=True)):
        mask = np.arange(100) < count
        rounds.append(
            RoundResult.of(
                index,
                [{"loss": loss, "val_loss": loss, "val_accuracy": 1 - loss}] * (1 if index < 2 else 4),
                {"a/kernel": np.linspace(-1, 1, 100, dtype="float32")},
                {"a/kernel": mask},
                seconds=2.0 if index < 2 else 8.0,
            )
        )
    return RecordedRun(name, config, {"python": "3.11"}, rounds, finished)


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


def test_a_page_tells_of_a_run_and_needs_no_other_file(pruned, tmp_path):
    result, folder = pruned
    assert result.report(tmp_path / "page.html") == [tmp_path / "page.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    page = Page(tmp_path / "page.html")
    assert page.fetched == []
    last = result.rounds[-1]
    assert page.row("accuracy (validation), last round") == [f"{last.metrics['val_accuracy']:.4f}"]
    assert page.row("weights kept") == ["296 of 1,184"] and page.row("sparsity") == ["0.7500 (target 0.75)"]
    assert page.row("epochs") == ["6 (50% of plain IMP's 12)"]
    for layer in last.layers:
        assert page.row(layer.path)[1:3] == [f"{layer.kept:,}", f"{layer.sparsity:.4f}"]
    assert page.row("final")[:3] == ["4", "296", "0.7500"]
    assert page.row("rewind") == ["learning_rate"] and page.row("python")[0].startswith("3.")
    assert set(page.pictures) == {
        "accuracy (validation) against sparsity",
        "epochs and seconds beside plain IMP",
        *(f"{what}, {result.model.name}" for what in ("sparsity and kept weights of each variable",)),
        f"magnitudes of the surviving weights before and after pruning, {result.model.name}",
    }
    for picture in page.pictures.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg") and "<path" in picture


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
    assert there[0] == ["", "run"]
    assert [row for row in here if row not in there] == [["", result.model.name]] * 3
    assert [row[0] for row in there if row not in here] == ["", "", "", "started"]
    text = (tmp_path / "b.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.parse(tmp_path / picture)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    as_markdown = [[cell.replace("\\", "") for cell in row] for row in cells if set(row[0]) != {"-"}]
    assert as_markdown == [[cell.replace("\\", "") for cell in row] for row in there]


def test_runs_stand_side_by_side(tmp_path):
    runs = [made_up_run("runs/a", rewind="weights"), made_up_run("runs/b", rewind="learning_rate")]
    write_report(runs, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.rows[0] == ["", "a", "b"]
    assert page.row("rewind") == ["weights", "learning_rate"]
    assert page.marked == [["rewind", "weights", "learning_rate"]]
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
    assert [row[0] for row in page.rows if row[0] in ("final", "1")] == ["1"]
    with pytest.raises(ValueError, match="No round is done yet in b"):
        write_report(runs[1:], tmp_path / "other.html")


def test_the_metric_can_be_chosen(tmp_path):
    write_report([made_up_run()], tmp_path / "page.html")
    assert Page(tmp_path / "page.html").row("accuracy (validation), last round") == ["0.3000"]
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
    assert page.row("exclude") == [hostile] and page.rows[0] == ["", hostile]
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
    runs = [dataclasses.replace(made_up_run("old"), config=old), made_up_run("new", version=2)]
    write_report(runs, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    for row in (
        "| round_epochs | 1 | 1 |",
        "| **min_layer_share** | **0.0** | **0.05** |",
        "| method | iterative | iterative |",
    ):
        assert row in page, page
    with pytest.raises(ValueError, match="config of new is not that of a run: The config is of version 3"):
        write_report([dataclasses.replace(runs[1], config={**old, "version": 3})], tmp_path / "page.md")


def test_a_config_of_something_else_is_refused(tmp_path):
    run = dataclasses.replace(made_up_run(), config={"target_sparsity": "x", "epochs": 2})
    with pytest.raises(ValueError, match="config of made up is not that of a run: target_sparsity must be a number"):
        write_report([run], tmp_path / "page.html")


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
    assert re.search(r"<!-- 40\s*-->", picture) and not re.search(r"<!-- 80\s*-->", picture)
    del forms["dense"]
    file.write_text(json.dumps(figures))
    for broken in (file, tmp_path / "report.html", tmp_path / "nothing.json"):
        with pytest.raises(ValueError, match=f"{broken.name} is not what tools/benchmark.py inference --output writes"):
            write_report([made_up_run()], tmp_path / "other.html", inference=broken)
    assert not (tmp_path / "other.html").exists()
