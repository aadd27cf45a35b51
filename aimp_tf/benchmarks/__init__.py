"""What `tools/benchmark.py` measures, a module for each of its commands. The package itself does not need them."""

from __future__ import annotations


def options_of(command: str, **options: str | None) -> dict[str, str | None]:
    """The options to hand to a command's `run`, of those for `inference`. Raises ValueError where they do not fit."""
    if command == "inference":
        if options["model"] is None:
            raise ValueError("--model must be given for inference; see --help.")
        return options
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{' and '.join(given)} is for inference, not for {command}.")
    return {}
