"""What `tools/benchmark.py` measures, a module for each of its commands. The package itself does not need them."""

from __future__ import annotations

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


def options_of(command: str, **options: str | None) -> dict[str, str | None]:
    """The options to hand to a command's `run`. Raises ValueError where they do not fit."""
    wanted = COMMANDS[command]
    for name, value in options.items():
        if value is not None and name not in wanted:
            commands = " and ".join(other for other, names in COMMANDS.items() if name in names)
            raise ValueError(f"--{name} is for {commands}, not for {command}.")
    if "model" in wanted and options["model"] is None:
        raise ValueError(f"--model must be given for {command}; see --help.")
    return {name: options[name] for name in wanted}
