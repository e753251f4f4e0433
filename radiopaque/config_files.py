"""Configuration files: TOML tables as classes, read with every problem at once, and printed.

What is printed is made from the same fields that are read, so that the two cannot drift apart.
"""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from radiopaque.certificates import Role
from radiopaque.errors import ConfigError

_MAX_FILE_BYTES: Final = 1 << 20
_PORTS: Final = {"crypto_provider": 7301, "model_owner": 7302}


class Table(BaseModel):
    """A table of a file. Its docstring and the descriptions of its fields are printed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Config = TypeVar("_Config", bound=Table)


def print_example(config: type[Table], role: Role) -> str:
    """A commented file with all keys, that loads as it is."""
    head = [
        f"# {config.__doc__}",
        "# Paths are relative to this file. Commented keys are optional.",
        "",
    ]
    return "\n".join([*head, *_example_table(config, role, ())]).rstrip() + "\n"


def read_file(path: Path, config: type[_Config], role: Role) -> _Config:
    """Read a file as the table ``config``. Raises ConfigError with every problem in it."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} has over {_MAX_FILE_BYTES} bytes; that is no configuration")
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; "
            f"print an example with: radiopaque config example {role}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    try:
        return config.model_validate(document, context={"folder": path.absolute().parent})
    except ValidationError as error:
        problems = [_problem(one, config) for one in error.errors(include_url=False)]
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(
            f"{path} has {len(problems)} problem(s):\n{lines}\n"
            f"see: radiopaque config example {role}"
        ) from error


def _problem(error: Any, config: type[Table]) -> str:
    """One line: where, what, and what to do."""
    location = error["loc"]
    key = ".".join(str(part) for part in location)
    kind = error["type"]
    if kind == "missing":
        return f"{key} is missing; add it"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _keys(config, location[:-1]), n=1)
        return f"{key} is not a known key; " + (
            f"did you mean {close[0]}?" if close else "remove it"
        )
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    shown = "" if isinstance(value, dict | list) else f" (it is {value!r})"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def _keys(config: type[Table], location: tuple[str | int, ...]) -> list[str]:
    """The keys of the table at ``location``."""
    for part in location:
        if isinstance(part, str):
            table = _table_of(config.model_fields[part])
            if table is None:
                return []
            config = table[0]
    return list(config.model_fields)


def _table_of(field: FieldInfo) -> tuple[type[Table], Literal["table", "array"]] | None:
    """The table class behind a field and how it is written, or None for a plain value."""
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation, "table"
    for argument in getattr(annotation, "__args__", ()):
        if isinstance(argument, type) and issubclass(argument, Table):
            return argument, "array"
    return None


def _example_table(config: type[Table], role: Role, location: tuple[str, ...]) -> Iterator[str]:
    for name, field in config.model_fields.items():
        if _table_of(field) is None:
            yield from textwrap.wrap(
                field.description or "",
                98,
                initial_indent="# ",
                subsequent_indent="# ",
                break_on_hyphens=False,
            )
            absent = not field.is_required() and field.default is None
            value = _example_value(name, field, role, location)
            yield f"{'# ' if absent else ''}{name} = {json.dumps(value)}"
    for name, field in config.model_fields.items():
        table = _table_of(field)
        if table is not None:
            inner = (*location, name)
            title = ".".join(inner)
            yield ""
            yield f"# {table[0].__doc__}"
            yield f"[{title}]" if table[1] == "table" else f"[[{title}]]"
            yield from _example_table(table[0], role, inner)


def _example_value(
    name: str, field: FieldInfo, role: Role, location: tuple[str, ...]
) -> str | int | float:
    """The default, or else an example that suits the certificates of `radiopaque certs init`."""
    if location[-1:] == ("tls",):
        paths = {
            "certificate": f"certificates/{role}.crt",
            "key": f"certificates/{role}.key",
            "ca": "certificates/ca.crt",
        }
        if name in paths:
            return paths[name]
    if name == "address":
        return f"localhost:{_PORTS[location[-1]]}"
    value: str | int | float = field.examples[0] if field.examples else field.default
    return value
