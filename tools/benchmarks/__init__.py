"""What `tools/benchmark.py` measures, a module for each of its commands. The package itself does not need them.

Each has a function `run`, with these arguments as far as it needs them, and some of its own:

    repetitions: How often each side is timed or, of what is trained for its accuracy, how many seeds, from 0 on.
    data_dir: Where tensorflow-datasets keeps its data. None is its own default.
    experiment: What is trained, and how.
    architecture: As `experiments.models.build` takes it.
    dataset: As `experiments.datasets.load` takes it.
    generations: Of "keras" and "tf_keras". tfmot is compared in the latter, for it cannot wrap the former.

It gives figures, medians of seconds and ratios unless it says so, and "table", the same as a text. It raises
RuntimeError where sides did not compute the same, so that their times do not compare, or the data is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: dict[str, tuple[str, ...]] = {
    "checkpoints": (),
    "inference": ("model", "inputs"),
    "layers": (),
    "ranking": (),
    "step": (),
    "rounds": (),
    "end_to_end": ("data_dir",),
    "memory": (),
    "compact_rounds": ("data_dir",),
    "peers": ("data_dir",),
    "channels": ("data_dir",),
    "channel_peers": ("data_dir",),
    "latency": (),
    "criteria": ("data_dir",),
    "coverage": ("networks", "compact"),
    "coded": (),
    "gpu": (),
}
"""Each command, and the options that it takes."""


def options_of(command: str, options: Mapping[str, str | None]) -> dict[str, str | None]:
    """The options to hand to a command's `run`. Raises ValueError where they do not fit."""
    wanted = COMMANDS[command]
    for name, value in options.items():
        if value is not None and name not in wanted:
            commands = " and ".join(other for other, names in COMMANDS.items() if name in names)
            raise ValueError(f"--{name} is for {commands}, not for {command}.")
    if "model" in wanted and options["model"] is None:
        raise ValueError(f"--model must be given for {command}; see --help.")
    return {name: options[name] for name in wanted}
