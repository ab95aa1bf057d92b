"""TOML profile -> validated `Config`, with errors that name the file, the field and the remedy.

`load_config(path, {"train.steps": 2})` reads a profile and applies dotted overrides (the CLI's
`--set`); `load_run_config` reads the resolved copy in a run folder. Not covered: includes and
inheritance between profiles; a profile is one readable file.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from skiff.config.checks import check
from skiff.config.schema import Config
from skiff.errors import ConfigError
from skiff.files import write_atomic

SHOWN = 120  # characters of a wrong value in an error


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read, override, validate and cross-check. Raises ConfigError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "no such profile", where=str(path), remedy="profiles/ holds the shipped ones"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    data = _parse(raw, str(path))
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value)
    return parse_config(data, where=str(path))


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"not valid TOML: no UTF-8 in line {line}", where=where, remedy="save it as UTF-8"
        ) from None
    except RecursionError:
        raise ConfigError("not valid TOML: nested too deeply", where=where) from None
    except ValueError as error:  # tomllib's own is one; a number of too many digits another
        raise ConfigError(f"not valid TOML: {error}", where=where) from None


def load_run_config(path: Path) -> Config:
    """Read `config.toml` of a run folder: a profile with nothing left to default."""
    return load_config(path)


def parse_config(data: Mapping[str, Any], *, where: str = "config") -> Config:
    """Validate and cross-check plain data. Raises ConfigError with every fault, one a line."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(fault) for fault in error.errors()]
        raise ConfigError("\n  ".join(faults), where=where) from None
    faults = check(config)
    if faults:
        raise ConfigError("\n  ".join(faults), where=where)
    return config


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=2` -> ("train.steps", 2). Values are TOML; a bare word is a string."""
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"'{text}' is not of the form section.key=value", where="--set")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    return dotted.strip(), value


def write_config(config: Config, path: Path) -> None:
    """Write every field, defaults too, so that a run folder needs no code to be understood."""
    write_atomic(path, dump_toml(config))


def dump_toml(config: Config) -> str:
    """TOML of all sections. Fields that are None are left out (TOML has no null)."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    if not sections:
        raise ConfigError(f"'{dotted}' names no section", where="--set", remedy="section.key=value")
    table = data
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{section}' is not a section", where="--set")
    table[key] = value


def _sentence(fault: Any) -> str:
    field = ".".join(_shown(str(part)) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _names(fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"{field}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{field}: is required"
    if fault["type"] == "model_type":
        return f"{field}: is a section, got {_shown(repr(fault['input']))}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{field}: {message[:1].lower()}{message[1:]}, got {_shown(repr(fault['input']))}"


def _shown(text: str) -> str:
    """`text` as far as it can be printed in a sentence."""
    plain = text if text.isprintable() else repr(text)
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."


def _names(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
