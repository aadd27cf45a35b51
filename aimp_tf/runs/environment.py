"""What a run is trained with: versions and devices."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

_PACKAGES = ("aimp_tf", "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")


def describe_environment() -> dict[str, Any]:
    """The command, versions and devices of this process."""
    import tensorflow as tf

    return {
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": [
            tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
            for device in tf.config.list_physical_devices()
        ],
    }


def _version(name: str) -> str | None:
    """Of a package; None where it is not installed by that name, as of tensorflow-cpu."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
