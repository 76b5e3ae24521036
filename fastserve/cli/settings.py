"""Where an option's value comes from: command line, then environment, then file, then its default."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fastserve.cli.options import ALL, Option

CONFIG_VARIABLE = "FASTSERVE_CONFIG"


class UsageError(ValueError):
    """The command line, the environment or the file asks for what does not exist: exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error of one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class Settings(argparse.Namespace):
    """The values of a verb's arguments and options, as attributes."""

    def __init__(self, values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        super().__init__(**values)
        self._sources = (
            sources  # of those that are not defaults: "--port", "FASTSERVE_PORT", "file.yaml: port"
        )

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def pick(self, options: Sequence[Option]) -> dict[str, Any]:
        return {option.name: getattr(self, option.name) for option in options}

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """A ValueError, which names the argument that is wrong, becomes a UsageError that names its source."""
        try:
            yield
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            text = f"{self._sources[name]} {rest}" if name in self._sources else str(error)
            raise UsageError(text) from None


def add_model(parser: argparse.ArgumentParser) -> None:
    """`fastserve serve MODEL` is `fastserve serve --model MODEL`."""
    parser.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="the same as --model"
    )


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Values stay as they were written: `resolve` checks all sources alike."""
    for option in options:
        text = f"{option.help} (default: {option.shown_default or option.default})".replace("%", "%%")
        if option.is_switch:
            action = argparse.BooleanOptionalAction
            parser.add_argument(option.flag, action=action, default=argparse.SUPPRESS, help=text)
            continue
        shown = "{" + ",".join(option.choices) + "}" if option.choices else option.name.split("_")[-1].upper()
        parser.add_argument(
            option.flag,
            dest=option.name,
            metavar=shown,
            action="append" if option.is_list else "store",
            default=argparse.SUPPRESS,
            help=text,
        )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file of options; all else wins over it",
    )


def resolve(options: Sequence[Option], arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Raises UsageError naming the source of a wrong value, an unknown key or a file that cannot be read."""
    path = arguments.get("config") or environ.get(CONFIG_VARIABLE)
    from_file = read_config(Path(path)) if path else {}
    values: dict[str, Any] = {name: value for name, value in arguments.items() if name != "config"}
    sources: dict[str, str] = {}
    for option in options:
        if option.name in arguments:
            source, given = option.flag, arguments[option.name]
        elif environ.get(option.variable):
            source, given = option.variable, environ[option.variable]
        elif from_file.get(option.name) is not None:
            source, given = f"{path}: {option.name}", from_file[option.name]
        else:
            values[option.name] = option.default
            continue
        try:
            values[option.name] = option.value(given, source)
        except ValueError as error:
            raise UsageError(str(error)) from None
        sources[option.name] = source
    return Settings(values, sources)


def read_config(path: Path) -> dict[str, Any]:
    """The file's keys, with underscores. A file may serve several verbs: it may hold any option of any verb."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold options as 'name: value' lines, got a {type(content).__name__}")
    known = [option.name for option in ALL]
    found = {str(key).replace("-", "_"): value for key, value in content.items()}
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{path}: unknown option {name!r}{hint}")
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
