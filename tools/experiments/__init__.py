"""Named data, architectures and experiments, for the tools and configs."""

from __future__ import annotations

import os
import pathlib


def environment_of_tools() -> dict[str, str]:
    """The environment of this process, in which Python finds the packages beside the tools, too."""
    paths = [os.fspath(pathlib.Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
