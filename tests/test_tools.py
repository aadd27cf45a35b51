import os
import pathlib
import re
import subprocess
import sys

import pytest

from aimp_tf.experiments.experiment import Experiment
from aimp_tf.experiments.study import Study

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


def test_prune_prints_a_table_and_the_saved_model(tmp_path):
    done = tool(
        "prune.py",
        "--config=configs/digits_mlp.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.pruning.target_sparsity=0.75",
        "--config.pruning.rate=0.75",
        "--config.pruning.epochs=2",
        "--config.pruning.round_epochs=1",
        "--config.keras=tf_keras",
    )
    assert done.returncode == 0, done.stderr
    cells = {line[:18].strip(): line[18:].split() for line in done.stdout.splitlines() if line}
    assert cells["sparsity"] == ["0.00%", "75.00%", "75.00%"]
    assert cells["epochs"] == ["2", "3", "4"]
    saved_model = re.search(r"Pruned SavedModel: (.*)", done.stdout)[1]
    assert os.path.exists(os.path.join(saved_model, "saved_model.pb"))
    assert "Round 1 of 2" in done.stderr


@pytest.mark.parametrize("name", ["prune.py", "study.py", "prepare_fashion_mnist.py"])
def test_help(name):
    done = tool(name, "--help")
    assert "--data_dir" in done.stdout and f"python tools/{name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config"),
        (["--config=configs/digits_mlp.py"], "--workdir"),
        (["--config=configs/digits_mlp.py", "--workdr=x"], "Did you mean: workdir"),
        (["--config=configs/digits_mlp.py", "--workdir=x", "--config.pruning.rat=1"], "rat"),
        (["--config=configs/digits_mlp.py", "--workdir=x", "--config.pruning.rate=2"], "rate must lie in"),
        (["--config=configs/digits_mlp.py", "--workdir=x", "stray"], "Unexpected arguments: stray"),
    ],
)
def test_bad_flags_fail_and_write_nothing(arguments, message):
    done = tool("prune.py", *arguments)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert not (ROOT / "x").exists()
