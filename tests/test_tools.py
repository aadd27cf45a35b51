import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from experiments import environment_of_tools
from experiments.experiment import Experiment
from experiments.study import Study

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def tool(name, *arguments):
    return subprocess.run([sys.executable, ROOT / "tools" / name, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_valid(get_config, name):
    config = get_config(name)
    assert isinstance(config, Study if name.startswith("study_") else Experiment)
    config.validate()
    assert f"--config=configs/{name}.py" in (ROOT / "configs" / f"{name}.py").read_text()


@pytest.mark.slow
def test_share_codes_runs_and_tells_size_against_accuracy(tmp_path):
    settings = ["--config=configs/digits_mlp.py", "--config.pruning.rate=0.8", "--config.pruning.target_sparsity=0.9"]
    settings += ["--config.pruning.epochs=3", "--config.pruning.round_epochs=2"]
    for seed in (0, 1):
        done = tool("prune.py", *settings, f"--workdir={tmp_path / str(seed)}", f"--config.seed={seed}")
        assert done.returncode == 0, done.stderr
    run = [*settings, f"--workdir={tmp_path / '0'},{tmp_path / '1'}", f"--output={tmp_path / 'out'}"]
    refused("share.py", [*run, "--levels=1"], tmp_path / "out", "--levels must be whole numbers from 2 to 256; got 1")
    other = [*run, "--config.pruning.target_sparsity=0.8"]
    refused("share.py", other, tmp_path / "out", "holds a run of another config: target_sparsity")
    twice = [*settings, f"--workdir={tmp_path / '0'},{tmp_path / '0'}", f"--output={tmp_path / 'out'}"]
    refused("share.py", twice, tmp_path / "out", "must be of different seeds; theirs are 0, 0")
    done = tool("share.py", *run, "--levels=4,16", "--per=layer", "--epochs=1")
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "out" / "steps.json").read_text())
    names = ["dense", "pruned", "compacted", "compacted, coded"]
    names += [f"shared by {count} a layer{tuned}, coded" for count in (4, 16) for tuned in ("", ", tuned")]
    assert [(step["name"], step["seed"]) for step in steps] == [(name, seed) for seed in (0, 1) for name in names]
    for step in steps:
        file = re.sub(", coded$", "", step["name"]).replace(", ", "_").replace(" ", "_") + ".coded"
        if step["name"].endswith("coded"):
            assert (tmp_path / "out" / f"seed_{step['seed']}" / file).stat().st_size == step["bytes"]
        assert step["accuracy"] > 0.8
    by_name = {step["name"]: step for step in steps if step["seed"] == 0}
    exact = [by_name[name]["accuracy"] for name in names[1:4]]
    assert exact[0] == exact[1] == exact[2] and by_name["dense"]["bytes"] == by_name["pruned"]["bytes"]
    sizes = [by_name[name]["bytes"] for name in (*names[2:4], names[7], names[5])]
    assert sizes == sorted(sizes, reverse=True)
    assert (tmp_path / "out" / "steps.png").exists()
    table = done.stdout.splitlines()[-len(names) :]
    assert [line[:36].strip() for line in table] == names and "±" in table[0]


@pytest.mark.slow
def test_prune_alone_leaves_the_dense_network_out_but_for_a_teacher(tmp_path):
    settings = ["--config=configs/digits_mlp.py", "--config.pruning.rate=0.9", "--config.pruning.target_sparsity=0.9"]
    settings += [
        "--config.pruning.epochs=2",
        "--config.pruning.round_epochs=1",
        "--config.teacher_epochs=5",
        "--config.validation_freq=1",
    ]
    alone = [*settings, "--compare=false", f"--workdir={tmp_path / 'run'}"]
    refused("prune.py", [*alone, "--equal_epochs"], tmp_path / "run", "--equal_epochs .* --compare=false leaves out")
    done = tool("prune.py", *alone)
    assert done.returncode == 0, done.stderr
    assert "90.00% of the prunable weights are zero" in done.stdout
    assert (tmp_path / "run" / "final" / "result.json").exists()
    assert not (tmp_path / "run" / "dense").exists() and not (tmp_path / "run" / "comparison.json").exists()
    share = [
        "--levels=16",
        "--per=layer",
        "--epochs=1",
        f"--workdir={tmp_path / 'run'}",
        f"--output={tmp_path / 'out'}",
    ]
    done = tool("share.py", *settings, *share)
    assert done.returncode == 0, done.stderr
    dense, *_ = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert dense["name"] == "dense" and dense["accuracy"] > 0.8


@pytest.mark.slow
def test_prune_and_export_print_tables(tmp_path):
    run = ["--config=configs/digits_mlp.py", f"--workdir={tmp_path / 'run'}"]
    settings = [
        "--config.pruning.target_sparsity=0.75",
        "--config.pruning.granularity=1x4",
        "--config.pruning.rate=0.75",
        "--config.pruning.epochs=2",
        "--config.pruning.round_epochs=1",
        "--config.keras=tf_keras",
    ]
    done = tool("prune.py", *run, *settings)
    assert done.returncode == 0, done.stderr
    cells = {line[:18].strip(): line[18:].split() for line in done.stdout.splitlines() if line}
    assert cells["sparsity"] == ["0.00%", "75.00%", "75.00%"]
    assert cells["epochs"] == ["2", "3", "4"]
    saved_model = re.search(r"Pruned SavedModel: (.*)", done.stdout)[1]
    assert os.path.exists(os.path.join(saved_model, "saved_model.pb"))
    assert "round 1 of 2   sparsity  0.0%  loss " in done.stdout and done.stderr == ""
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "final" / "model.keras").exists()

    run.append(f"--output={tmp_path / 'out'}")
    refused("export.py", run, tmp_path / "out", "holds a run of another config: .*target_sparsity")
    done = tool("export.py", *run, *settings, "--formats=saved_model,keras,tflite", "--compact")
    assert done.returncode == 0, done.stderr
    header, _, *rows = [line.split() for line in done.stdout.split("\n\n")[0].splitlines()]
    assert header == ["bytes", "gzip", "bytes", "smaller", "max", "difference", "path"]
    assert [row[0] for row in rows] == ["saved_model", "keras", "tflite"]
    for _, size, compressed, smaller, difference, path in rows:
        assert os.path.exists(path) and int(size.replace(",", "")) > int(compressed.replace(",", ""))
        assert float(smaller[:-1]) > 1 and float(difference) < 1e-4
    assert "the model on 360 examples.\n" in done.stdout
    assert re.search(r"\nIt was compacted, .* by (0.0e\+00|\d.\de-0[5-9]).\nparameters +50,610 -> \d", done.stdout)
    done = tool("export.py", f"--model={rows[1][-1]}", f"--output={tmp_path / 'lite'}", "--formats=weights")
    assert done.returncode == 0, done.stderr
    assert "weights.npz" in done.stdout and "examples" not in done.stdout


TOOLS = {
    "prune.py": ["--config=configs/digits_mlp.py", "--workdir=WORKDIR"],
    "study.py": ["--config=configs/study_digits.py", "--workdir=WORKDIR"],
    "prepare_fashion_mnist.py": ["--data_dir=WORKDIR"],
    "report.py": ["--workdir=WORKDIR"],
    "export.py": ["--output=WORKDIR"],
    "share.py": ["--config=configs/digits_mlp.py", "--workdir=WORKDIR", "--output=WORKDIR"],
    "benchmark.py": ["checkpoints"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_help(name):
    done = tool(name, "--help")
    assert done.returncode == 0, done.stderr
    docstring, _, own_flags = done.stdout.partition("\nflags:\n")
    assert re.search(rf"    python tools/{name} (\w+ )?--", docstring) and "The exit code is 0 when" in docstring
    for flag in TOOLS[name]:
        if not flag.startswith("--"):
            assert f"    {flag} " in docstring
            continue
        flag_help = re.search(rf"(?s)  {flag.split('=')[0]}: (.*?)(?=\n  --|\n\n)", own_flags)[1]
        assert flag_help.removesuffix(";\n    repeat this option to specify a list of values").endswith("Required.")


@pytest.mark.slow
def test_without_a_gpu_its_benchmark_says_so(tmp_path):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("There is a GPU.")
    done = tool("benchmark.py", "gpu", f"--output={tmp_path / 'figures.json'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "TensorFlow finds no GPU here, so nothing was measured.\n"


@pytest.mark.parametrize(
    ("arguments", "came"),
    [([], "got none."), (["checkpoint"], "got 'checkpoint'. Did you mean 'checkpoints'?")],
)
def test_a_tool_with_commands_wants_one_first(arguments, came, tmp_path):
    done = refused(
        "benchmark.py",
        arguments,
        tmp_path / "run",
        "must be a command, one of checkpoints, inference, layers, ranking, step, rounds, end_to_end, memory, "
        "compact_rounds, peers, channels, channel_peers, latency, criteria, coverage, coded, gpu; ",
    )
    assert came in done.stderr


@pytest.mark.slow
def test_the_benchmark_of_inference_wants_a_model(tmp_path):
    refused("benchmark.py", ["inference"], tmp_path / "run", "--model must be given for inference")
    arguments = ["inference", f"--model={tmp_path / 'model.keras'}"]
    refused("benchmark.py", arguments, tmp_path / "run", "model.keras cannot be read: .*No such file")


def refused(name, arguments, workdir, message):
    """Checks that a tool says one line, exits by 2 and writes nothing. TensorFlow says more, once it is imported."""
    before = sorted(workdir.parent.rglob("*"))
    done = tool(name, *(argument.replace("WORKDIR", str(workdir)) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert re.search(rf"(?m)^{re.escape(name)}: .*{message}.*\n\Z", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(workdir.parent.rglob("*")) == before
    return done


@pytest.mark.parametrize(
    ("name", "arguments", "missing"),
    [
        ("prune.py", [], "--config and --workdir"),
        ("study.py", ["--config=configs/study_digits.py", "--workdir="], "--workdir"),
        ("prepare_fashion_mnist.py", [], "--data_dir"),
        ("report.py", ["--metric=loss"], "--workdir"),
        ("export.py", ["--model=x.keras"], "--output"),
    ],
)
def test_missing_flags_are_named(name, arguments, missing, tmp_path):
    done = refused(name, arguments, tmp_path / "run", "must be given")
    assert done.stderr == f"{name}: {missing} must be given; see --help.\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *((name, ["--data_dr=x"], "'data_dr'") for name in TOOLS),
        *((name, ["stray"], "Unexpected arguments: stray") for name in TOOLS),
        ("prune.py", ["--config=configs/nothing.py"], "--config=configs/nothing.py: there is no such file"),
        ("prune.py", ["--config=configs/study_digits.py"], "must return the Experiment; got Study"),
        ("study.py", ["--config=configs/digits_mlp.py"], "must return the Study; got Experiment"),
        ("prune.py", ["--config.pruning.rat=1"], "--config.pruning.rat: .* no field 'rat'. Did you mean 'rate'"),
        ("prune.py", ["--config.pruning.rate.x=1"], "config.pruning.rate has no field 'x'"),
        ("study.py", ["--config.arms.imq.epochs_of=aimp"], "config.arms has no field 'imq'. Did you mean 'imp'"),
        ("study.py", ["--config.arms={}"], "--config.arms: .* field by field: dense, one_shot, imp, aimp"),
        ("prune.py", ["--config.pruning=x"], "config.pruning can only be changed field by field: target_sparsity, "),
        ("prune.py", ["--flagfile=nothing"], "nothing"),
        ("prune.py", ["--config.pruning.rate=abc"], "--config.pruning.rate=abc: .*float.*'abc'"),
        ("prune.py", ["--config.pruning.rate=2"], "rate must lie in"),
        ("prune.py", ["--distribute=many"], "--distribute=many: .* one of <none\\|mirrored\\|multi_worker>"),
        ("prune.py", ["--distribute=multi_worker"], "distribute=multi_worker needs TF_CONFIG in the environment"),
        ("prune.py", ["--config.pruning.granularity=2:4"], "target_sparsity must be 0.5; got 0.9"),
        ("prune.py", ["--mixed_precision=float8"], "mixed_precision must be .* got 'float8'"),
        ("prune.py", ["--verbose=3"], r"--verbose=3: value should be one of <auto\|0\|1\|2>"),
        ("study.py", ["--workers=0"], "--workers=0: 0 is not a positive integer"),
        ("study.py", ["--executor=slurm"], "should be one of <local\\|ray>"),
        ("study.py", ["--arms=amp"], "Unknown arm 'amp'"),
        ("study.py", ["--config.seeds=(0,0)"], "0 comes 2 times"),
        ("study.py", ["--config.arms.aimp.epochs_of=imq"], "Arm 'aimp': epochs_of must name another arm"),
        *((name, [f"--workdir={__file__}/run"], "workdir .* cannot be written") for name in ("prune.py", "study.py")),
        ("prune.py", [f"--workdir={ROOT}"], "holds files already"),
        ("prepare_fashion_mnist.py", ["--idx_dir=WORKDIR"], "train-images-idx3-ubyte.gz cannot be read"),
        ("report.py", [], "holds no run: there is no signature.json in it"),
        ("export.py", [], "Either --model, or --config and --workdir must be given"),
        ("export.py", ["--model=x.keras", "--workdir=x"], "Either --model, or --config and --workdir must be given"),
        ("export.py", ["--model=x.keras", f"--output={__file__}/x"], "the folder of --output .* cannot be written"),
        ("benchmark.py", [f"--output={__file__}/x.json"], "the folder of --output .* cannot be written"),
        ("benchmark.py", ["--model=model.keras"], "--model is for inference, not for checkpoints"),
    ],
)
def test_bad_flags_are_refused_in_a_line(name, arguments, message, tmp_path):
    done = refused(name, [*TOOLS[name], *arguments], tmp_path / "run", message)
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"SyntaxError: invalid syntax \(config.py, line 1\)"),
        ("import os\nimport aimp_tff", "line 2: ModuleNotFoundError: No module named 'aimp_tff'"),
        ("get_confi = 1", r"has no function get_config\(\)"),
        ("def get_config():\n    pass", "must return the Experiment; got NoneType"),
        (
            "from aimp_tf import PruningConfig\n\n\ndef get_config():\n    return PruningConfig(0.9, epoch=30)",
            "line 5: TypeError: .*'epoch'",
        ),
        ("def get_config():\n    raise OSError('two\\nlines')", "line 2: OSError: two lines"),
        ("raise SystemExit", "line 1: SystemExit"),
    ],
)
def test_bad_config_files_are_refused_in_a_line(text, message, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(text)
    arguments = [f"--config={config}", "--workdir=WORKDIR", "--config.pruning.rate=0.3"]
    done = refused("prune.py", arguments, tmp_path / "run", f"--config={config}: .*{message}")
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.pruning.min_layer_survivors=10000"], "min_layer_survivors=10000 keep at least .* Relax them"),
        # Below a file, so that nothing is downloaded.
        (["--config.dataset=fashion_mnist", f"--data_dir={__file__}/data"], "Fashion-MNIST is not in .*--data_dir"),
    ],
)
def test_what_the_model_or_the_data_cannot_give_is_refused_in_a_line(arguments, message, tmp_path):
    refused("prune.py", [*TOOLS["prune.py"], *arguments], tmp_path / "run", message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=README.md"], "README.md is not a .keras file"),
        (["--model=nothing.keras"], "No such file or directory: 'nothing.keras'"),
        (["--model=README.md", "--formats=tflight"], "Unknown format 'tflight'.*Did you mean 'tflite'"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(arguments, message, tmp_path):
    refused("export.py", [*TOOLS["export.py"], *arguments], tmp_path / "run", message)


@pytest.mark.slow
def test_a_training_that_fails_says_so_in_a_line(tmp_path):
    done = tool(
        "prune.py",
        "--config=configs/digits_mlp.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.learning_rate=1e30",
        "--config.pruning.epochs=1",
        "--config.pruning.round_epochs=1",
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"(?m)^prune.py: The loss became .*Lower the learning rate.*\n\Z", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_bugs_keep_their_traceback(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys
from experiments import command_line


def main():
    if sys.stdin.read() == "while checking":
        with command_line.refusing():
            int("x")
    raise RuntimeError("while working")


command_line.run(main, required=[])
"""
    )
    for when, error in (("while checking", "ValueError: invalid literal"), ("", "RuntimeError: while working")):
        command = [sys.executable, program]
        done = subprocess.run(command, input=when, capture_output=True, text=True, env=environment_of_tools())
        assert done.returncode == 1
        assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith(error)


@pytest.mark.slow
def test_an_interruption_ends_in_a_line_that_tells_how_to_go_on(tmp_path):
    command = [sys.executable, "tools/prune.py", "--config=configs/digits_mlp.py", f"--workdir={tmp_path / 'a run'}"]
    command += ["--config.pruning.epochs=1000", "--config.pruning.round_epochs=1000", "--config.steps_per_execution=23"]
    for said in ("12 trainings, 12,000 epochs", "of 1,000 epochs of round 1 were done before"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert said in process.stdout.readline() + (process.stdout.readline() if "before" in said else "")
        while not list(tmp_path.rglob("epoch_*/state.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert errors == f"Interrupted. Resume with: {shlex.join(command)}\n"
