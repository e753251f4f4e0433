"""Events print their listed fields and nothing else."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from radiopaque import telemetry
from radiopaque.errors import StoreError
from radiopaque.telemetry import get_logger


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[False, True], ids=["text", "json"])
def output(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    stream = Terminal()
    root = logging.getLogger()
    level = root.level
    handler = telemetry.configure("INFO", as_json=request.param, stream=stream)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


log = get_logger("radiopaque.test")


def test_listed_fields_are_printed_and_identifiers_cut(output: io.StringIO) -> None:
    log.info("session ready", session=bytes(range(16)), seconds=1.23456789, count=3, state="READY")
    text = output.getvalue()
    assert text.count("\n") == 1
    for part in ("session ready", "00010203", "1.234568", "READY", "INFO", "radiopaque.test"):
        assert part in text
    assert "04" not in text.split("00010203", 1)[1]


def test_json_is_one_object_a_line() -> None:
    stream = io.StringIO()
    handler = telemetry.configure("INFO", as_json=True, stream=stream)
    try:
        log.info("listening", address="x:1")
        logging.getLogger("other").warning("plain %s", "message")
    finally:
        logging.getLogger().removeHandler(handler)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["event"] == "listening"
    assert (first["address"], first["level"], first["logger"]) == ("x:1", "INFO", "radiopaque.test")
    assert first["time"].endswith("Z")
    assert second["event"] == "plain message"


@pytest.mark.parametrize(
    ("stream", "asked", "as_json"),
    [(Terminal, False, False), (Terminal, True, True), (io.StringIO, False, True)],
    ids=["terminal", "terminal, asked for", "elsewhere"],
)
def test_json_off_a_terminal(stream: type[io.StringIO], asked: bool, as_json: bool) -> None:
    written = stream()
    handler = telemetry.configure("INFO", as_json=asked, stream=written)
    try:
        log.info("listening", address="x:1")
    finally:
        logging.getLogger().removeHandler(handler)
    line = written.getvalue()
    assert line.startswith("{") is as_json
    if as_json:
        assert json.loads(line)["address"] == "x:1"


def test_fields_that_are_not_listed_or_of_another_type_are_not_printed(
    output: io.StringIO,
) -> None:
    log.info("odd", key=b"secret-key", patient="Doe", session="secret-text")  # type: ignore[call-arg, typeddict-item, arg-type]
    log.info("odd", seconds="secret-number", count=b"secret-bytes")  # type: ignore[typeddict-item, arg-type]
    text = output.getvalue()
    assert text.count("<redacted>") == 5
    assert "secret" not in text
    assert "Doe" not in text
    assert b"secret-key".hex()[:8] not in text


def test_texts_are_cut(output: io.StringIO) -> None:
    """What a peer sent may be quoted in an error, 4 MiB of it."""
    log.warning(
        "call refused", method="FetchPlan", error="MessageValueError: " + "\U000e0001" * 10**6
    )
    log.failure("it broke", StoreError("x" * 10**6))
    assert "MessageValueError" in output.getvalue()
    assert "StoreError: xxx" in output.getvalue()
    assert len(output.getvalue()) < 40_000


def test_of_an_exception_type_and_places_are_printed(output: io.StringIO) -> None:
    def inner() -> None:
        raise KeyError("secret-value")

    try:
        inner()
    except KeyError as error:
        log.failure("it broke", error, reference="abcd")
    text = output.getvalue()
    assert "KeyError" in text
    assert "inner" in text
    assert "test_telemetry.py" in text
    assert "abcd" in text
    assert "secret" not in text


def test_levels(output: io.StringIO) -> None:
    log.debug("not shown")
    log.warning("shown")
    logging.getLogger("some.library").info("not shown either")
    assert "not shown" not in output.getvalue()
    assert "shown" in output.getvalue()
