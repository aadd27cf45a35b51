"""The strategies that tools train under, by name. TensorFlow is imported only when one is made."""

from __future__ import annotations

import json
import os
import re
from typing import Any

STRATEGIES = ("none", "mirrored", "multi_worker")

_EXAMPLE = '{"cluster": {"worker": ["host-0:2222", "host-1:2222"]}, "task": {"type": "worker", "index": 0}}'


def is_chief(name: str) -> bool:
    """Whether this process is the one that writes. Only one of several workers is not.

    Raises:
        ValueError: `name` is "multi_worker", and TF_CONFIG does not say which worker of which cluster this is.
    """
    if name != "multi_worker":
        return True
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise ValueError(f"distribute=multi_worker needs TF_CONFIG in the environment, such as {_EXAMPLE}.")
    try:
        fields = json.loads(text)
        cluster, task = dict(fields["cluster"]), fields["task"]
        kind, index = task["type"], int(task["index"])
        addresses = [address for job in cluster.values() for address in job]
        valid = (
            {"worker"} <= cluster.keys() <= {"chief", "worker"}
            and all(isinstance(job, list) and job for job in cluster.values())
            and len(cluster.get("chief", [0])) == 1
            and len(addresses) == len(set(addresses))
            and all(re.fullmatch(r".+:\d+", address) for address in addresses)
            and 0 <= index < len(cluster[kind])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"TF_CONFIG={text!r} cannot be read ({error!r}); expected such as {_EXAMPLE}.") from error
    if not valid:
        raise ValueError(
            f"TF_CONFIG={text!r} does not name this process as one of the workers, each with an address of its own, of "
            f"which one may be called chief; expected such as {_EXAMPLE}."
        )
    return index == 0 and (kind == "chief" or "chief" not in cluster)


def make_strategy(name: str) -> Any:
    """A tf.distribute strategy: before any other use of TensorFlow, for "multi_worker", which waits for all workers.

    Args:
        name: One of `STRATEGIES`. "mirrored" takes all GPUs of this machine, "multi_worker" those of all machines.

    Raises:
        RuntimeError: The cluster cannot be joined.
    """
    import tensorflow as tf

    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise RuntimeError(f"The cluster of TF_CONFIG={os.environ['TF_CONFIG']} cannot be joined: {error}") from error
