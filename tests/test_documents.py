"""README.md and docs/: their programs run or at least exist, and their links lead somewhere."""

import ast
import codeop
import configparser
import dataclasses
import inspect
import operator
import pathlib
import re

import keras
import numpy as np
import pytest

import aimp_tf
from aimp_tf import exporting
from aimp_tf.config import PruningConfig, checks
from aimp_tf.selection import channel_layout
from aimp_tf.training import methods
from experiments.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]


def blocks_of(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def kept_weights(model):
    return sum(np.count_nonzero(layer.kernel) for layer in model.layers if hasattr(layer, "kernel"))


@pytest.mark.slow
def test_the_readme_runs_as_it_stands(monkeypatch, tmp_path):
    """All its blocks, in their order, in one process, and then what they promise."""
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(README, "python")
    namespace = {"__name__": "__main__"}
    for index, block in enumerate(blocks):
        exec(compile(block, f"<block {index} of README.md>", "exec"), namespace)
    runs = {name: namespace[name] for name in ("result", "trained", "further", "run", "gradual")}
    for name, run in runs.items():
        kept = 2_510 if name == "further" else 5_020
        assert kept_weights(run.model) == kept, name
        assert run.sparsity == (50_200 - kept) / 50_200, name
        assert run.model.evaluate(namespace["x_test"], namespace["y_test"], verbose=0)[1] >= 0.9, name
    assert len(namespace["x_test"]) == 360
    result = runs["result"]
    assert (len(result.rounds), result.epochs, result.imp_epochs) == (12, 16, 60)
    assert (runs["trained"].epochs, runs["gradual"].epochs) == (15, 16)
    assert runs["trained"].outcome.dense_metrics["val_accuracy"] >= 0.9
    assert namespace["model"].__module__.startswith("tf_keras") and type(namespace["model"]).__name__ == "Sequential"
    assert aimp_tf.sparsity(namespace["model"]) == pytest.approx(0.8, abs=1e-3)
    assert kept_weights(keras.models.load_model("pruned.keras")) == 5_020
    small = namespace["small"]
    assert small.count_params() < result.model.count_params()
    np.testing.assert_allclose(small(namespace["x_test"]), result.model(namespace["x_test"]), atol=1e-5)
    assert "<img" in pathlib.Path("pruned.html").read_text(encoding="utf-8")
    assert pathlib.Path("pruned.tflite").read_bytes()[4:8] == b"TFL3"
    loaded = aimp_tf.load_coded("pruned.coded")
    for here, there in zip(namespace["shared"].get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert 20 * pathlib.Path("pruned.coded").stat().st_size < 4 * result.model.count_params()
    assert pathlib.Path("runs/mine/final/saved_model/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training.md", "factorization.md", "coded.md"])
def test_a_page_runs_as_it_stands(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for index, block in enumerate(blocks_of(ROOT / "docs" / name, "python")):
        exec(compile(block, f"<block {index} of {name}>", "exec"), namespace)
    assert namespace["result"].rounds[-1].metrics["accuracy"] > 0.85


@pytest.mark.slow
def test_what_extends_the_package_does_so(monkeypatch, tmp_path):
    """Its blocks, in their order, and what each of them adds."""
    monkeypatch.chdir(tmp_path)
    # That the tables are in the end as they were.
    for name in ("method", "budget"):
        monkeypatch.setitem(checks.CHOICES, name, checks.CHOICES[name])
    for table, name in (
        (checks.NOT_USED_BY, "halfway"),
        (methods.METHODS, "halfway"),
        (exporting.FORMATS, "tflite_flex"),
        (checks.COUNTED, "parameters"),
        (channel_layout.BUDGETS, "parameters"),
    ):
        monkeypatch.setitem(table, name, None)
    namespace = {"__name__": "__main__"}
    for index, block in enumerate(blocks_of(ROOT / "docs" / "extending.md", "python")):
        exec(compile(block, f"<block {index} of extending.md>", "exec"), namespace)
    assert [namespace[name].sparsity for name in ("relative", "halfway", "blocks")] == pytest.approx(
        [0.8, 0.8, 0.75], 1e-3
    )
    hidden, _ = namespace["relative"].masks.values()
    assert hidden.any(axis=0).all()  # Something of each output unit, for the scores of each add up to 1.
    assert len(namespace["halfway"].rounds) == 1 and namespace["halfway"].epochs == 4
    mask, _ = namespace["blocks"].masks.values()
    np.testing.assert_array_equal(mask[::2], mask[1::2])
    budget = namespace["small"].budget
    assert (budget.counted, budget.dense) == ("parameter", 64 * 100 + 100 + 100 * 10)
    assert budget.asked - 75 < budget.kept <= budget.asked == budget.dense // 2
    (artefact,) = namespace["artefacts"].values()
    assert 0 < artefact.relative_difference < 1e-5 and artefact.path.stat().st_size == artefact.bytes


def test_the_call_that_the_readme_begins_with_is_in_its_first_program():
    call = README.read_text(encoding="utf-8").split("```\n")[1]
    assert call.startswith("result = aimp_tf.prune(model, x, y, ") and call in blocks_of(README, "python")[0]


def test_the_readme_can_be_pasted_line_by_line():
    """Into Python's own prompt, which ends a `def` or `while` at an empty line and nowhere else."""
    for block in blocks_of(README, "python"):
        entered = []
        for line in [*block.splitlines(), ""]:
            entered.append(line)
            if codeop.compile_command("\n".join(entered), symbol="single") is not None:
                entered = []
        assert not entered, block


def settings_of(function):
    """The names that a function of aimp_tf takes, those behind its ** included."""
    names = set(inspect.signature(function).parameters)
    fields = {field.name for field in dataclasses.fields(PruningConfig)}
    fit = set(inspect.signature(keras.Model.fit).parameters)
    return names | {
        "prune": fields | fit,
        "fine_tune": fit,
        "plan": fields,
        "one_shot": fields,
        "wrap": fields,
        "GlobalMagnitudePruning": fields,
    }.get(function.__name__, set())


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_calls_in_python_blocks_are_those_of_the_package(document):
    for block in blocks_of(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("aimp_tf."):
                continue
            name = ast.unparse(node.func).removeprefix("aimp_tf.")
            assert name.split(".")[0] in aimp_tf.__all__, name
            keywords = {keyword.arg for keyword in node.keywords} - {None}
            assert keywords <= settings_of(operator.attrgetter(name)(aimp_tf)), ast.unparse(node)


def commands_of(block):
    """Tool and flags of each command of a block of shell, with the block's own variables filled in."""
    lines = re.sub(r"\\\n", " ", block).splitlines()
    for name, value in re.findall(r'^\s*(\w+)="(.*)"$', "\n".join(lines), re.MULTILINE):
        lines = [line.replace(f"${name} ", f"{value} ") for line in lines]
    for line in lines:
        for tool, arguments in re.findall(r"python (tools/\w+\.py)\b([^#]*)", line):
            yield tool, re.findall(r"--([\w.]+)", arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_name_files_flags_and_extras_that_exist(document):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    common = (ROOT / "tools" / "experiments" / "command_line.py").read_text(encoding="utf-8")
    for block in blocks_of(document, "sh"):
        for path in re.findall(r"(?<![\w/])(?:tools|configs|tests)/[\w/.]+\w", block):
            assert (ROOT / path).is_file(), path
        for extra in [name for names in re.findall(r"\.\[([\w,]+)\]", block) for name in names.split(",")]:
            assert extra in setup["options.extras_require"], extra
        for tool, flags in commands_of(block):
            source = (ROOT / tool).read_text(encoding="utf-8") + common
            for flag in flags:
                name, *fields = flag.split(".")
                assert f'"{name}"' in source, f"{tool} --{flag}"
                kind = Experiment
                for field in fields:
                    types = {each.name: each.type for each in dataclasses.fields(kind)}
                    assert field in types, f"{tool} --{flag}"
                    kind = types[field]


def anchors_of(document):
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_is_linked_from_the_readme():
    text = README.read_text(encoding="utf-8")
    assert [name for name in NAMES if name.startswith("docs/") and f"({name})" not in text] == []
