"""The one table of options: each is a flag, a FASTSERVE_* variable and a key of the YAML file at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from fastserve.config import EngineConfig, KvDtype, OnLoss, PolicyName, Speculation

_UNITS = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


class _Wrong(ValueError):
    """What a value should have been; the caller adds name, source and value."""


def _text(value: object) -> str:
    if isinstance(value, bool | list | dict) or value is None:
        raise _Wrong("a text")
    return str(value)


def _mode(value: object) -> str:
    """A text, of which YAML reads "off" as false."""
    return "off" if value is False else _text(value)


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Wrong("an integer")
    try:
        return int(value)
    except ValueError:
        raise _Wrong("an integer") from None


def _devices(value: object) -> int | str:
    text = _text(value).strip()
    return int(text) if text.isdecimal() else text


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Wrong("a number")
    try:
        return float(value)
    except ValueError:
        raise _Wrong("a number") from None


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise _Wrong("true or false")


def _size(value: object) -> int:
    """4096, 512MiB, 1.5GB"""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(digits) :].strip()
    unit = unit.removesuffix("b") or unit
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise _Wrong("a size such as 4096, 512MiB or 2GB") from None


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    if isinstance(value, list):
        return [_text(item) for item in value]
    raise _Wrong("a list of texts")


@dataclass(frozen=True, slots=True)
class Option:
    """`convert` takes a string or what YAML holds; a default of None is left to whoever uses it."""

    name: str
    convert: Callable[[object], Any]
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    shown_default: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "FASTSERVE_" + self.name.upper()

    @property
    def is_switch(self) -> bool:
        return self.convert is _flag

    @property
    def is_list(self) -> bool:
        return self.convert is _texts

    def value(self, given: object, source: str) -> Any:
        """The converted value. Raises ValueError naming the source, the rule and the value."""
        try:
            value = self.convert(given)
        except _Wrong as wrong:
            raise ValueError(f"{source} must be {wrong}, got {given!r}") from None
        if self.choices and value not in self.choices:
            raise ValueError(f"{source} must be one of {', '.join(self.choices)}, got {given!r}")
        return value


_ENGINE_DEFAULTS = {field.name: field.default for field in dataclasses.fields(EngineConfig)}


def _engine(
    name: str,
    convert: Callable[[object], Any],
    text: str,
    *,
    choices: tuple[str, ...] = (),
    shown_default: str = "",
) -> Option:
    return Option(name, convert, _ENGINE_DEFAULTS[name], text, choices, shown_default)


ENGINE = (
    _engine("model", _text, "a known model's name, or the path of a GGUF file"),
    _engine(
        "devices",
        _devices,
        "how many devices share the model's layers, or which: cpu:0-15,cpu:16-31, numa, cuda or cuda:0,1",
    ),
    _engine("shares", _text, "the devices' shares of the work: auto (by measured speed), equal, or 2,1"),
    _engine("max_num_tokens", _integer, "rows of a step"),
    _engine(
        "max_step_ms",
        _real,
        "how long a step may take while requests decode: prompts are cut to fit beside them",
    ),
    _engine("max_num_seqs", _integer, "requests that run at a time"),
    _engine("max_model_len", _integer, "longest prompt and answer", shown_default="the model's own"),
    _engine("kv_cache_bytes", _size, "memory for keys and values", shown_default="from free memory"),
    _engine("kv_dtype", _text, "how keys and values are kept", choices=get_args(KvDtype)),
    _engine(
        "activation_bits", _integer, "of activations that meet quantised weights on CPUs: 14, or 8 (faster)"
    ),
    _engine("num_threads", _integer, "threads of each device", shown_default="the cores at hand, divided"),
    _engine(
        "on_loss", _text, "a lost rank is replaced, or the others take its share", choices=get_args(OnLoss)
    ),
    _engine("heartbeat_s", _real, "seconds without a sign of life after which a rank is lost"),
    _engine("offline", _flag, "never fetch a model"),
    _engine("policy", _text, "who runs first", choices=get_args(PolicyName)),
    _engine(
        "speculation",
        _mode,
        "verify several tokens in a step where the text so far suggests them; the answer is the same",
        choices=get_args(Speculation),
    ),
    _engine("max_waiting", _integer, "requests that may wait; more are turned away"),
    _engine("seed", _integer, "for requests that bring none", shown_default="a fresh one each time"),
)

SERVER = (
    Option("host", _text, "127.0.0.1", "address to listen on; 0.0.0.0 is every network"),
    Option("port", _integer, 8000, "0: any free one"),
    Option("api_key", _texts, [], "who knows it may enter; can be repeated", shown_default="none"),
    Option("served_model_name", _text, None, "what requests call the model", shown_default="its name"),
    Option("drain_timeout", _real, 30.0, "seconds that running requests get to finish at the end"),
    Option("access_log", _flag, False, "print a line per request"),
    Option("max_body_bytes", _size, 4 * 1024**2, "longest body of a request", shown_default="4MiB"),
    Option("max_prompts", _integer, 128, "prompts of one request"),
    Option("max_choices", _integer, 256, "prompts times n of one request"),
)

SAMPLING = (
    Option("max_tokens", _integer, 256, "longest answer"),
    Option("temperature", _real, 0.2, "0: always the likeliest token"),
    Option("top_p", _real, 0.9, "draw among the likeliest tokens that hold this much probability"),
    Option("top_k", _integer, 0, "draw among this many of the likeliest tokens; 0: all"),
    Option("min_p", _real, 0.0, "leave out tokens less likely than this share of the likeliest"),
    Option("repetition_penalty", _real, 1.0, "above 1: discourage what was said"),
    Option("presence_penalty", _real, 0.0, "discourage tokens that the answer holds"),
    Option("frequency_penalty", _real, 0.0, "discourage tokens by how often the answer holds them"),
    Option("stop", _texts, [], "end where the answer says this; can be repeated", shown_default="none"),
    Option("ignore_eos", _flag, False, "go on where the model would end"),
)

CHAT = (Option("system", _text, None, "what the model is told first", shown_default="nothing"),)

ALL = ENGINE + SERVER + SAMPLING + CHAT
