"""The processes that train one model together, and how they agree: the chief decides, the others hear of it.

What they tell each other goes through the collectives of their tf.distribute strategy, so they need no shared folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.files import pack, save_arrays, unpack

_STRATEGIES = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)
_CHUNK = 2**22
_TEXT_BYTES = 4096
_ERRORS: dict[str, type[Exception]] = {"TypeError": TypeError, "ValueError": ValueError}


class Cluster:
    """The workers of a strategy as one of them sees them. Every worker must call the same methods in the same order.

    With any strategy but MultiWorkerMirroredStrategy there is one worker, the chief, and nothing is exchanged.

    Args:
        strategy: The strategy of a model, such as its `distribute_strategy`.

    Attributes:
        size: Number of workers.
        index: This worker's position among them; the chief's is 0.
        replicas: Number of replicas of the model, over all workers.

    Raises:
        ValueError: The strategy is one that aimp_tf does not know.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        # Without a strategy there is a default one, whose class has no public name.
        if not isinstance(strategy, _STRATEGIES) and type(strategy).__name__ != "_DefaultDistributionStrategy":
            raise ValueError(
                f"The model was made under {type(strategy).__name__}; aimp_tf prunes models made under "
                "OneDeviceStrategy, MirroredStrategy or MultiWorkerMirroredStrategy, or under none."
            )
        self._strategy = strategy
        self.replicas: int = strategy.num_replicas_in_sync
        self.size, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            jobs = resolver.cluster_spec().as_dict()
            counts = {job: len(jobs.get(job, ())) for job in ("chief", "worker")}
            self.size = max(1, sum(counts.values()))
            if self.size > 1:
                self.index = resolver.task_id + (counts["chief"] if resolver.task_type == "worker" else 0)

    def check_one_device(self, what: str, instead: str = "") -> None:
        """Raises ValueError where something is asked for that several devices do not allow."""
        if isinstance(self._strategy, _STRATEGIES[1:]):  # Without, and on one device, variables are plain ones.
            raise ValueError(
                f"{what} takes a model made without a strategy or under OneDeviceStrategy; this one was made under "
                f"{type(self._strategy).__name__}.{instead}"
            )

    @property
    def chief(self) -> bool:
        """Whether this is the worker that decides and writes."""
        return self.index == 0

    def from_chief(self, value: Any) -> Any:
        """The chief's value, on every worker.

        Args:
            value: As `files.pack` takes it; what others than the chief give is not looked at.

        Returns:
            The value itself on a chief; elsewhere a copy, its tuples as lists.
        """
        if self.size == 1:
            return value
        message = _encoded(value) if self.chief else b""
        length = int.from_bytes(self._sum_of_bytes(len(message).to_bytes(8, "little")), "little")
        received = b"".join(
            self._sum_of_bytes(message[start : start + _CHUNK].ljust(min(_CHUNK, length - start), b"\0"))
            for start in range(0, length, _CHUNK)
        )
        return value if self.chief else _decoded(received)

    def gather(self, text: str) -> list[str]:
        """The texts of all workers, in their order, each cut off after 4096 bytes."""
        if self.size == 1:
            return [text]
        slots = [b"\0" * _TEXT_BYTES] * self.size
        slots[self.index] = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        received = self._sum_of_bytes(b"".join(slots))
        return [
            received[start : start + _TEXT_BYTES].rstrip(b"\0").decode(errors="ignore")
            for start in range(0, len(received), _TEXT_BYTES)
        ]

    def differing(self, text: str) -> str:
        """The workers that give another text than the chief, with commas between them."""
        return _others(self.gather(text))

    @contextlib.contextmanager
    def as_one(self) -> Iterator[None]:
        """Around what may fail on one worker alone, and talks to no other: it then fails on all of them.

        Raises:
            TypeError, ValueError, RuntimeError: It failed on another worker, which is named.
        """
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}\n{error}")
            raise
        for index, text in enumerate(self.gather("")):
            if text:
                kind, _, message = text.partition("\n")
                raise _ERRORS.get(kind, RuntimeError)(f"On worker {index} of {self.size}: {message}")

    def check_same(self, **parts: object) -> None:
        """Raises ValueError, on every worker, where a part prints as something else than on the chief."""
        texts = self.gather("\n".join(f"{name} {zlib.crc32(str(part).encode())}" for name, part in parts.items()))
        sums = [dict(line.split() for line in text.splitlines()) for text in texts]
        names = dict.fromkeys(name for each in sums for name in each)
        differing = {name: _others([each.get(name, "") for each in sums]) for name in names}
        if any(differing.values()):
            where = "; ".join(f"{name} of worker {others}" for name, others in differing.items() if others)
            raise ValueError(
                f"All workers must have the same {', '.join(names)}. These differ from those of worker 0, the chief: "
                f"{where}."
            )

    @contextlib.contextmanager
    def explaining_losses(self) -> Iterator[None]:
        """Says what to do when TensorFlow reports that another worker is gone. Raises RuntimeError then."""
        try:
            yield
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.size == 1:
                raise
            raise RuntimeError(
                f"Worker {self.index} of {self.size} stops, for another one has ended or cannot be reached; look at "
                "what that one said. Then start all of them again: with the same workdir, they go on from what was "
                "saved there."
            ) from error

    def _sum_of_bytes(self, own: bytes) -> bytes:
        """Byte by byte, over all workers; all but one of them give zero. All give as many."""
        # Two bytes in a float32, which holds them exactly and which every device can add up.
        numbers = np.frombuffer(own.ljust(len(own) + len(own) % 2, b"\0"), "<u2").astype(np.float32)
        total = self._strategy.reduce("SUM", tf.constant(numbers), axis=None).numpy()
        return total.astype("<u2").tobytes()[: len(own)]


def _others(texts: Sequence[str]) -> str:
    return ", ".join(str(index) for index, text in enumerate(texts) if text != texts[0])


def _encoded(value: Any) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    packed = json.dumps(pack(value, arrays)).encode()
    file = io.BytesIO()
    save_arrays(file, arrays)
    return len(packed).to_bytes(8, "little") + packed + file.getvalue()


def _decoded(message: bytes) -> Any:
    end = 8 + int.from_bytes(message[:8], "little")
    with np.load(io.BytesIO(message[end:]), allow_pickle=False) as arrays:
        return unpack(json.loads(message[8:end]), dict(arrays))
