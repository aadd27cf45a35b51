"""Named data, architectures and experiments, for the tools and configs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any


def environment_of_tools() -> dict[str, str]:
    """The environment of this process, in which Python finds the packages beside the tools, too."""
    paths = [os.fspath(pathlib.Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def call_in_fresh_process(function: str, **arguments: Any) -> Any:
    """What a function, such as "experiments.run.weight_counts", gives in a process of its own, of and to JSON.

    Raises:
        RuntimeError: The process failed; its last lines are told.
    """
    module, _, name = function.rpartition(".")
    program = f"import json, sys; from {module} import {name}; print(json.dumps({name}(**json.load(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],  # -P, lest modules in this folder be taken for others of their name.
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **environment_of_tools()},
    )
    if done.returncode != 0:
        reason = done.stderr.strip()[-2000:] or "it was killed"
        raise RuntimeError(f"{function} failed in a fresh process, of {json.dumps(arguments)[:400]}:\n{reason}")
    return json.loads(done.stdout.splitlines()[-1])
