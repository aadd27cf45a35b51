"""Where the cells of a study run: in processes on this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from typing import Any

from experiments import cell, environment_of_tools

_POLL_SECONDS = 0.1

Ended = Generator[tuple[pathlib.Path, str | None], None, None]
"""The folder of each cell as it ends, and what went wrong or None."""


class LocalExecutor:
    """Runs so many cells at a time on this machine, whose cores they share, each in a process of its own.

    Args:
        workers: Cells at a time, at least 1. None is one for every two cores.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers, self.threads = _workers_and_threads(workers)

    def run(self, orders: Mapping[pathlib.Path, str], data_dir: str | None) -> Ended:
        """Runs what `cell.order` gave for the folders of cells, which exist. Closing it ends what still runs."""
        waiting = list(orders)[::-1]
        running: dict[pathlib.Path, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    folder = waiting.pop()
                    try:
                        running[folder] = cell.start(folder, orders[folder], data_dir, self.threads)
                    except (OSError, RuntimeError) as error:
                        yield folder, str(error)
                ended = [folder for folder, process in running.items() if process.poll() is not None]
                for folder in ended:
                    yield folder, cell.failure(folder, running.pop(folder))
                if not ended:
                    time.sleep(_POLL_SECONDS)
        finally:
            for process in running.values():
                with process:
                    process.kill()


class RayExecutor:
    """Runs cells on a Ray cluster, as many at a time as it has cores for. Each takes the cores it would take here.

    The folders of the cells, the data and the tools must lie on storage that all machines share, under the same paths,
    and aimp_tf must be installed on all of them.

    Args:
        workers: As in `LocalExecutor`; says how many cores a cell takes.
        address: Of the cluster, as in `ray.init`, such as "auto". None starts one on this machine.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: There is no cluster at `address`.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self.workers, threads = _workers_and_threads(workers)
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('Ray is not installed; install it with pip install ".[study]".') from error
        if address is not None:
            _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"address": address}
        if address is None:
            options = {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": environment_of_tools()["PYTHONPATH"]}}
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
        except (RuntimeError, ValueError) as error:
            if address is None:
                raise
            raise ConnectionError(f"{address!r} is not the address of a Ray cluster: {error}") from error
        most = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        self.threads = max(1, min(threads, most))

    def run(self, orders: Mapping[pathlib.Path, str], data_dir: str | None) -> Ended:
        import ray

        try:
            task = ray.remote(_run_on_node).options(num_cpus=self.threads, max_retries=0)
            running = {task.remote(folder, order, data_dir, self.threads): folder for folder, order in orders.items()}
            while running:
                (ended, *_), _ = ray.wait(list(running))
                try:
                    failure = ray.get(ended)
                except ray.exceptions.RayError as error:
                    *_, reason = ("", *str(error).strip().splitlines())
                    failure = f"{type(error).__name__}: {reason}"
                yield running.pop(ended), failure
        finally:
            ray.shutdown()


Executor = LocalExecutor | RayExecutor


def _run_on_node(folder: pathlib.Path, order: str, data_dir: str | None, threads: int) -> str | None:
    """Runs a cell on whatever machine this is."""
    if not folder.exists():
        return (
            f"the machine {socket.gethostname()} does not see {folder}; the workdir must lie on storage that all "
            "machines share"
        )
    try:
        return cell.failure(folder, cell.start(folder, order, data_dir, threads))
    except RuntimeError as error:
        return str(error)


def _check_address(address: str) -> None:
    """Raises ConnectionError at once where nothing answers at HOST:PORT; Ray itself tries for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"No Ray cluster answers at {address} ({error}).") from error


def _workers_and_threads(workers: int | None) -> tuple[int, int]:
    cores = len(os.sched_getaffinity(0))
    if workers is None:
        workers = max(1, cores // 2)
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}.")
    return workers, max(1, cores // workers)
