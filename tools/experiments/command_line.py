"""What the programs in tools/ have in common: how they read their flags, refuse a setting, and end.

The exit code is 0 when the work is done, 1 when it failed, 2 when a setting was wrong and nothing was written, and 130
after an interruption. Nothing here needs TensorFlow, so that help texts and refusals come at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import absl.logging
from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from aimp_tf.config.texts import nearest

# --help then lists what is defined here with the flags of the tool.
flags.disclaim_key_flags()


def define_config(kind: type, when: str = "Required.") -> flags.FlagHolder[Any]:
    """Defines --config, a Python file whose get_config() returns a `kind`, and --config.FIELD to change its fields."""
    text = f"Python file whose get_config() returns the {kind.__name__}; --config.FIELD=VALUE changes a field. {when}"
    try:
        holder = config_flags.DEFINE_config_file("config", None, text)
    except flags.Error as error:  # There is a --flagfile, into which ml_collections looks, and it cannot be read.
        _end(error)
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigParser(kind)
    flag.default_as_str = None  # --help would give 'None' as the default.
    return holder


def define_path(name: str, text: str, default: str | None = None) -> flags.FlagHolder[Any]:
    """Defines a flag that takes a path, in which "~" is the home of the user."""
    return flags.DEFINE(_PathParser(), name, default, text)


def define_data_dir(when: str = "") -> flags.FlagHolder[Any]:
    """Defines --data_dir."""
    return define_path("data_dir", f"Where tensorflow-datasets keeps its data{when}; default: ~/tensorflow_datasets.")


def run(
    main: Callable[..., int | None],
    required: Sequence[str] = (),
    resumable: bool = False,
    commands: Sequence[str] = (),
) -> None:
    """Runs a tool and ends the process.

    Args:
        main: Does the work, once the flags are parsed, and gives the exit code; None is 0. A RuntimeError that aimp_tf
            raises in it is printed in a line, and so is an ImportError, TypeError or ValueError, which it raises before
            it trains or writes. Other errors keep their traceback.
        required: Names of the flags that must be given.
        resumable: Whether the same command goes on after an interruption; the last line then says so.
        commands: What the tool can do: one of them must be its first argument, and is handed to `main`.
    """
    try:
        app.run(
            lambda arguments: main(*arguments[1:]),
            flags_parser=lambda arguments: _parse_flags(arguments, required, commands),
        )
    except KeyboardInterrupt:
        after_caret_c = "\n" if sys.stderr.isatty() else ""
        # Not what would throw away what was trained.
        command = [word for word in sys.orig_argv if not re.match("--?overwrite", word)]
        resume = f" Resume with: {shlex.join(command)}" if resumable else ""
        print(f"{after_caret_c}Interrupted.{resume}", file=sys.stderr)
        sys.exit(130)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        if not _is_own(error):
            raise
        _end(error, 1 if isinstance(error, RuntimeError) else 2)


def quieten() -> None:
    """Leaves what TensorFlow and absl say of themselves off the screen. It must come before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Within it, what C++ writes to stderr is lost: importing TensorFlow tells what hardware there is not, and heeds no
    level in that. Exceptions, which are printed later, are not."""
    sys.stderr.flush()
    stderr = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(nothing)
        os.close(stderr)


def split(values: Sequence[str]) -> list[str]:
    """What a flag was given that may be repeated, with commas between or not. Raises ValueError where it is nothing."""
    parts = [part for value in values for part in value.split(",") if part]
    if not parts:
        raise ValueError(f"A folder must be given; got {','.join(values)!r}.")
    return parts


def check_either(groups: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless the flags of one of the groups are given, all of them, and none of another."""
    given = [[flags.FLAGS[name].value is not None for name in group] for group in groups]
    if [all(group) for group in given].count(True) != 1 or [any(group) for group in given].count(True) != 1:
        ways = ", or ".join(" and ".join(f"--{name}" for name in group) for group in groups)
        raise ValueError(f"Either {ways} must be given; see --help.")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Around what checks settings before anything is written: prints what is wrong with them in a line, and exits by 2.

    That is what aimp_tf raises and any OSError. Other errors are no fault of the settings and keep their traceback.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, OSError) and not _is_own(error):
            raise
        _end(error)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


class _ConfigParser(flags.ArgumentParser):
    """Reads a config file. Says in a line what is wrong with it, or with the flags that change its fields."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def parse(self, argument: str) -> Any:
        config = _load_config(argument)
        if not isinstance(config, self._kind):
            raise ValueError(f"get_config() must return the {self._kind.__name__}; got {type(config).__name__}.")
        for other in flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False):
            if override := re.match(r"--?(?:no)?config\.([^=]+)", other):
                _check_field(config, override[1])
        return config


def _load_config(argument: str) -> Any:
    path, *argument_of_config = argument.split(":", 1)  # As in ml_collections.
    if not os.path.isfile(path):
        raise ValueError("there is no such file.")
    module = sys.modules["config_file"] = types.ModuleType("config_file")
    module.__file__ = path
    try:
        exec(compile(pathlib.Path(path).read_bytes(), path, "exec"), module.__dict__)
        if hasattr(module, "get_config"):
            return module.get_config(*argument_of_config)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"line {lines[-1]}: " if lines else ""
        raise ValueError(f"{place}{type(error).__name__}: {error}") from error
    raise ValueError("it has no function get_config().")


def _check_field(config: Any, path: str) -> None:
    """Raises flags.Error where a flag cannot change the field at a path such as "pruning.rate"."""
    value, walked = config, "config"
    for name in config_path.split(path):
        fields = _fields(value) or {}
        if name not in fields:
            known = f" Its fields are {', '.join(fields)}." if fields else ""
            raise flags.Error(f"--config.{path}: {walked} has no field {name!r}.{nearest(name, fields)}{known}")
        value, walked = fields[name], f"{walked}.{name}"
    parts = _fields(value)
    if parts is not None:
        raise flags.Error(
            f"--config.{path}: {walked} can only be changed field by field: {', '.join(parts) or 'none'}."
        )


def _fields(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    return vars(value) if dataclasses.is_dataclass(value) else None


def _parse_flags(arguments: list[str], required: Sequence[str], commands: Sequence[str]) -> list[str]:
    try:
        program, *stray = flags.FLAGS(arguments)
    except SystemExit:
        sys.exit(0)  # --help, after which absl ends by 1.
    except flags.Error as error:
        if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config."):
            _end(f"--{error.flagname} changes a config, but no --config is given; see --help.")
        _end(error)
    command = stray[:1] if commands else []
    if commands and not (command and command[0] in commands):
        came = f"{command[0]!r}.{nearest(command[0], commands)}" if command else "none."
        _end(f"The first argument must be a command, one of {', '.join(commands)}; got {came} See --help.")
    if stray := stray[len(command) :]:
        _end(f"Unexpected arguments: {' '.join(stray)}. Flags are written as --name=value; see --help.")
    missing = [f"--{name}" for name in required if not flags.FLAGS[name].value]
    if missing:
        _end(f"{' and '.join(missing)} must be given; see --help.")
    return [program, *command]


def _end(error: object, code: int = 2) -> NoReturn:
    lines = (line.strip() for line in str(error).splitlines())
    program = os.path.basename(sys.argv[0])
    print(f"{program}: {' '.join(line for line in lines if line)}", file=sys.stderr)
    sys.exit(code)


def _is_own(error: BaseException) -> bool:
    """Whether aimp_tf or these tools raised it, whose messages are for the user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).split(".")[0] in ("aimp_tf", "experiments", "benchmarks")
