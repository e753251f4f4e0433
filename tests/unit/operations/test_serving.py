"""What a serving command asks of its machine before it serves."""

from __future__ import annotations

import resource
import signal
from typing import Any

import pytest

from radiopaque import telemetry
from radiopaque.cli import serving
from radiopaque.operations.doctor import machine
from radiopaque.operations.doctor.findings import Level


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 20), (1 << 16, 1 << 20)),
        ((1024, resource.RLIM_INFINITY), (1 << 16, resource.RLIM_INFINITY)),
        ((4096, 4096), None),
        ((1 << 17, 1 << 20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_server_may_open_as_many_files_as_the_system_lets_it(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], raised: tuple[int, int] | None
) -> None:
    """Before anything else; here its start ends with the kernels."""
    asked: list[tuple[int, int]] = []

    def stop(**_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(serving, "warm_up", stop)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(telemetry, "configure", lambda **_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    nothing: Any = None
    with pytest.raises(InterruptedError):
        serving.serve(nothing, nothing, nothing, nothing, as_json=False)
    assert asked == ([] if raised is None else [raised])


@pytest.mark.parametrize(
    ("most", "level"),
    [(1024, Level.WARN), (4096, Level.PASS), (resource.RLIM_INFINITY, Level.PASS)],
)
def test_the_doctor_on_open_files(monkeypatch: pytest.MonkeyPatch, most: int, level: Level) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, most))
    (found,) = machine.open_files()
    assert found.level is level
