"""What importing does and does not do, and who may import whom."""

import ast
import configparser
import doctest
import graphlib
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import aimp_tf

PACKAGE = pathlib.Path(aimp_tf.__file__).parent
ROOT = pathlib.Path(__file__).parent.parent


def python(program, **environment):
    """What a program prints in a fresh process, with the installed package rather than this folder's (-P)."""
    cleaned = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env={**cleaned, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    """It imports no TensorFlow at all, so it takes no longer than importing keras."""
    heavy = "{'tensorflow', 'keras', 'tf_keras', 'tensorflow_model_optimization', 'sklearn', 'tensorflow_datasets'}"
    assert python(f"import sys, aimp_tf; print({heavy} & sys.modules.keys())") == "set()"


def test_everything_imported_is_keras_and_this_package():
    """And rich, which Keras requires and imports when it first prints."""
    program = """
import keras, sys
before = set(sys.modules)
import aimp_tf
for name in aimp_tf.__all__: getattr(aimp_tf, name)
new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(new))
"""
    assert python(program) == "['aimp_tf', 'rich']"


PRUNE = """
import os, sys
import numpy as np
import tensorflow as tf
import {keras} as K

def state():
    policy = K.mixed_precision.global_policy() if K.__name__ == "tf_keras" else K.config.dtype_policy()
    return dict(os.environ), policy.name, K.backend.floatx(), tf.config.list_logical_devices()

before = state()
model = K.Sequential([K.Input((4,)), K.layers.Dense(3)])
model.compile("sgd", "mse")
import aimp_tf
aimp_tf.prune(model, (np.ones((8, 4)), np.ones((8, 3))), target_sparsity=0.5, rate=0.5, epochs=1, verbose=0)
assert state() == before, (state(), before)
modules = "tensorflow_model_optimization" in sys.modules, "tf_keras" in sys.modules
print(*modules, tf.keras.Model.__module__.split(".")[0])
"""


@pytest.mark.slow
def test_pruning_a_keras_3_model_touches_neither_tfmot_nor_tf_keras():
    assert python(PRUNE.format(keras="keras")) == "False False keras"


@pytest.mark.slow
def test_pruning_a_tf_keras_model_leaves_tf_keras_and_the_environment_as_they_were():
    """Importing tfmot alone would turn this process's tf.keras into Keras 2."""
    assert python(PRUNE.format(keras="tf_keras")) == "True True keras"


def test_a_process_that_chose_keras_2_keeps_it():
    assert python(PRUNE.format(keras="tf_keras"), TF_USE_LEGACY_KERAS="1") == "True True tf_keras"


@pytest.mark.slow
def test_another_backend_is_refused():
    program = """
import sys, types, keras
keras.backend.backend = lambda: "jax"
import aimp_tf
try:
    aimp_tf.sparsity(keras.Sequential([keras.layers.Dense(2)]))
except RuntimeError as error:
    print(error)
"""
    assert "backend 'jax'; aimp_tf needs TensorFlow. Set KERAS_BACKEND=tensorflow" in python(program)


def test_public_names():
    assert set(aimp_tf.__all__) <= set(dir(aimp_tf))
    assert all(getattr(aimp_tf, name).__doc__ for name in aimp_tf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'prun'"):
        _ = aimp_tf.prun
    # A module of the same name would take the place of what it holds as soon as it is imported.
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules & set(aimp_tf.__all__) == {"criteria", "rules"}
    assert aimp_tf.regularizers.GroupLasso and aimp_tf.projections.L1 and aimp_tf.criteria.Taylor


@pytest.mark.parametrize(
    "module",
    [
        "config",
        "config.structure",
        "selection.planning",
        "compat.mixed_precision",
        "selection.ranking",
        "coding.levels",
        "selection.units",
        "selection.criteria",
        "training.shrinking",
    ],
)
def test_examples_in_docstrings(module):
    tested = doctest.testmod(importlib.import_module(f"aimp_tf.{module}"))
    assert tested.attempted > 0 and tested.failed == 0


def test_types_are_shipped():
    assert all((PACKAGE / name).exists() for name in ("py.typed", "reports/report.css"))


# Each district, or module outside of them, may import those before it.
LAYERS = [
    ["config", "extras", "files"],
    ["compat"],
    ["arguments", "coding"],
    ["selection"],
    ["graph"],
    ["masking"],
    ["exporting"],
    ["training"],
    ["runs"],
    ["reports"],
    ["pruning", "fine_tuning", "post_training", "preview", "criteria", "factorization", "rules", "sharing"],
]
LEVELS = {district: level for level, districts in enumerate(LAYERS) for district in districts}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "aimp_tf" else [f"aimp_tf.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from names


def test_imports_point_downwards():
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(files) > 15
    for path in files:
        home = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "aimp_tf" and parts[1] != home:
                assert LEVELS[parts[1]] < LEVELS[home], f"{path} imports {name}"


def test_compat_alone_knows_what_keras_keeps_to_itself():
    """No other district imports tf_keras or tfmot, or reads what begins with an underscore and is not its own."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {"_fields"}  # Of named tuples.
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
        elif isinstance(node, ast.keyword):
            own.add(node.arg)
        elif isinstance(node, ast.AnnAssign):
            own.add(ast.unparse(node.target))
    for path in trees.keys() - set((PACKAGE / "compat").iterdir()):
        foreign = {name.split(".")[0] for name in imports_of(path)} & {"tf_keras", "tensorflow_model_optimization"}
        assert not foreign and not any(".src" in name for name in imports_of(path)), path
        for node in ast.walk(trees[path]):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                name = getattr(node.args[1], "value", "")
            private = isinstance(name, str) and name.startswith("_") and not name.startswith("__")
            assert not private or name in own, f"{path}:{node.lineno} reads {name}"


def test_no_module_needs_what_needs_it():
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("aimp_tf", *path.relative_to(PACKAGE).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    order = graphlib.TopologicalSorter({name: set(imports_of(path)) & files.keys() for name, path in files.items()})
    assert len(list(order.static_order())) == len(files)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("config/__init__.py", {"tensorflow", "keras", "tf_keras", "numpy"}),
        ("selection/planning.py", {"tensorflow", "keras", "tf_keras", "numpy"}),
        ("files.py", {"tensorflow", "keras", "tf_keras"}),
        ("runs/outcome.py", {"tensorflow", "keras", "tf_keras"}),
        ("selection/ranking.py", {"tensorflow", "keras", "tf_keras"}),
        ("selection/criteria.py", {"tensorflow", "keras", "tf_keras"}),
        ("tools/experiments/command_line.py", {"tensorflow", "keras", "tf_keras", "numpy"}),
        ("tools/experiments/study.py", {"tensorflow", "keras", "tf_keras", "numpy"}),
        ("training/callback.py", {"tf_keras", "tensorflow_model_optimization"}),
        ("pruning/__init__.py", {"tf_keras", "keras", "tensorflow_model_optimization"}),
        ("masking/masked_model.py", {"tf_keras", "keras", "tensorflow_model_optimization"}),
        ("compat/mixed_precision.py", {"tf_keras", "keras", "tensorflow_model_optimization"}),
    ],
)
def test_modules_do_without(module, forbidden):
    assert not forbidden & {
        name.split(".")[0] for name in imports_of((ROOT if module.startswith("tools/") else PACKAGE) / module)
    }


def test_what_is_installed_imports_only_what_is_installed_with_it():
    """And what an extra brings, where it is used: matplotlib and TensorBoard. A notebook has IPython."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = f"{setup['options']['install_requires']}\n{setup['options.extras_require']['report']}"
    names = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in required.split() if line[0].isalpha()}
    assert {"tensorflow", "keras", "tf_keras", "tensorflow_model_optimization", "numpy"} <= names
    for path in PACKAGE.rglob("*.py"):
        imported = {name.split(".")[0] for name in imports_of(path)} - {"aimp_tf", "IPython", *sys.stdlib_module_names}
        assert imported <= names, path


@pytest.mark.slow
def test_types_hold():
    """What TensorFlow and the like have no types for is taken as it comes."""
    # The sources, for to mypy an installed package is somebody else's.
    command = f"{sys.executable} -m mypy --ignore-missing-imports --cache-dir=/dev/null --explicit-package-bases"
    environment = {**os.environ, "MYPYPATH": "tools"}
    sources = [*command.split(), "aimp_tf", "tools"]
    checked = subprocess.run(sources, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert checked.returncode == 0, checked.stdout
