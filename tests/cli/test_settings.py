"""Command line, then environment, then file, then default; whoever is wrong is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastserve.cli.options import ALL, ENGINE, SERVER, Option
from fastserve.cli.settings import Parser, Settings, UsageError, add_options, resolve
from fastserve.config import EngineConfig
from fastserve.request import SamplingParams
from fastserve.server.limits import Limits


def settle(
    argv: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    options: Sequence[Option] = ENGINE + SERVER,
) -> Settings:
    parser = Parser()
    add_options(parser, options)
    return resolve(options, vars(parser.parse_args(argv)), environ or {})


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\ndevices: 1\nmax-num-seqs: 11\n")
    environ = {"FASTSERVE_PORT": "2", "FASTSERVE_DEVICES": "2"}
    settings = settle(["--config", str(file), "--port", "3"], environ)
    assert (settings.port, settings.devices, settings.max_num_seqs) == (3, 2, 11)
    assert settings.host == "127.0.0.1"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 9\n")
    assert settle(environ={"FASTSERVE_CONFIG": str(file)}).port == 9


@pytest.mark.parametrize("option", ALL, ids=lambda option: option.name)
def test_every_option_has_a_flag_a_variable_and_a_key(option: Option, tmp_path: Path) -> None:
    written, value = _example(option)
    file = tmp_path / "config.yaml"
    file.write_text(f"{option.name}: {written}\n")
    flag = [option.flag] if option.is_switch else [option.flag, written]
    for settings in (
        settle(flag, options=[option]),
        settle(environ={option.variable: written}, options=[option]),
        settle(["--config", str(file)], options=[option]),
    ):
        assert getattr(settings, option.name) == value
    assert getattr(settle(options=[option]), option.name) == option.default


def _example(option: Option) -> tuple[str, Any]:
    if option.is_switch:
        return "true", True
    if option.is_list:
        return "abc", ["abc"]
    if option.choices:
        other = [choice for choice in option.choices if choice != option.default]
        chosen = other[0] if other else option.choices[0]
        return chosen, chosen
    return {
        "_text": ("abc", "abc"),
        "_integer": ("77", 77),
        "_devices": ("numa", "numa"),
        "_real": ("0.25", 0.25),
        "_size": ("1KiB", 1024),
    }[
        option.convert.__name__  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize(
    ("argv", "environ", "text", "message"),
    [
        (["--port", "x"], {}, "", "--port must be an integer, got 'x'"),
        ([], {"FASTSERVE_PORT": "x"}, "", "FASTSERVE_PORT must be an integer, got 'x'"),
        ([], {}, "port: x", "config.yaml: port must be an integer, got 'x'"),
        ([], {}, "port: 1.5", "config.yaml: port must be an integer, got 1.5"),
        ([], {}, "port: true", "config.yaml: port must be an integer, got True"),
        ([], {}, "port: [1]", "config.yaml: port must be an integer"),
        ([], {}, "host: {a: 1}", "config.yaml: host must be a text"),
        ([], {}, "offline: perhaps", "config.yaml: offline must be true or false, got 'perhaps'"),
        ([], {"FASTSERVE_OFFLINE": "perhaps"}, "", "FASTSERVE_OFFLINE must be true or false"),
        (["--kv-dtype", "f8"], {}, "", "--kv-dtype must be one of auto, f32, bf16, int8, got 'f8'"),
        (["--kv-cache-bytes", "many"], {}, "", "--kv-cache-bytes must be a size"),
        (["--drain-timeout", "soon"], {}, "", "--drain-timeout must be a number"),
        ([], {}, "prot: 1", "config.yaml: unknown option 'prot'; did you mean port?"),
        ([], {}, "xyzzy: 1", "config.yaml: unknown option 'xyzzy'"),
        ([], {}, "- port", "config.yaml must hold options as 'name: value' lines, got a list"),
        ([], {}, "port: [", "config.yaml is not valid YAML"),
        (["--max-num"], {}, "", "unrecognized arguments: --max-num"),
    ],
)
def test_what_is_wrong_names_its_source(
    tmp_path: Path, argv: list[str], environ: dict[str, str], text: str, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        settle(["--config", str(file), *argv], environ)
    assert message in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no-such\.yaml: No such file"):
        settle(["--config", str(tmp_path / "no-such.yaml")])


def test_a_key_of_another_verb_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("temperature: 0.5\nport: 5\n")
    settings = settle(["--config", str(file)])
    assert settings.port == 5
    assert not hasattr(settings, "temperature")


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("512MiB", 512 * 2**20), ("2GB", 2 * 10**9), ("1.5k", 1500), ("3 GiB", 3 * 2**30)],
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert settle(["--kv-cache-bytes", text]).kv_cache_bytes == size


def test_lists_take_commas_or_repetition() -> None:
    assert settle(["--api-key", "a", "--api-key", "b"]).api_key == ["a", "b"]
    assert settle(environ={"FASTSERVE_API_KEY": "a,b"}).api_key == ["a", "b"]


def test_a_rule_that_the_engine_checks_names_the_source_too() -> None:
    settings = settle(environ={"FASTSERVE_DEVICES": "0"})
    with pytest.raises(UsageError, match="FASTSERVE_DEVICES must be >= 1, got 0"), settings.blamed():
        EngineConfig(**settings.pick(ENGINE))


def test_defaults_are_those_of_the_things_they_fill() -> None:
    settings = settle(options=ALL)
    assert EngineConfig(**settings.pick(ENGINE)) == EngineConfig()
    limits = Limits()
    assert settings.max_body_bytes == limits.max_body_bytes
    assert settings.max_prompts == limits.max_prompts
    assert settings.max_choices == limits.max_choices
    assert SamplingParams(max_tokens=settings.max_tokens, stop=settings.stop, top_k=settings.top_k)
