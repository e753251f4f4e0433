"""Which refused calls have a line in the audit log: all, or one with their number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from radiopaque.audit import AuditLog, verify
from radiopaque.audit.observer import Auditor
from radiopaque.certificates import PeerIdentity, Role
from radiopaque.transport.admission import Call

A, B = "data-owner 'a'", "data-owner 'b'"


class Audited:
    """An auditor whose minutes pass as a test says, and what it has written."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.log = AuditLog(folder, "model-owner 'vendor'")
        self.auditor = Auditor(self.log, lambda: self.now)
        self._folder = folder

    def refused(self, count: int, peer: str = A, method: str = "Infer") -> None:
        for _ in range(count):
            self.auditor.refused(method, "RoleError", peer)

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        assert verify(self._folder).holds
        (path,) = self._folder.glob("audit-*.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [one for one in found if all(one.get(k) == v for k, v in wanted.items())]


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[Audited]:
    one = Audited(tmp_path / "audit")
    yield one
    one.log.close()


def test_ten_refusals_a_minute_have_lines_of_their_own(audited: Audited) -> None:
    audited.refused(10)
    assert len(audited.lines(event="Infer refused", outcome="RoleError", peer=A)) == 10
    audited.refused(1000)
    audited.refused(7, method="Prepare")
    assert len(audited.lines()) == 10
    # another caller's are its own
    audited.refused(3, peer=B)
    assert len(audited.lines(peer=B)) == 3
    audited.now += 60
    audited.refused(1, peer=B)
    counted = [one for one in audited.lines(peer=A) if "count" in one]
    assert [(one["event"], one["count"]) for one in counted] == [
        ("Infer refused", 1000),
        ("Prepare refused", 7),
    ]
    audited.refused(1)
    assert len(audited.lines(peer=A)) == 13
    assert len(audited.lines(peer=B)) == 4


def test_what_was_counted_is_written_when_somebody_is_served(audited: Audited) -> None:
    audited.refused(15)
    audited.now += 59
    call = Call(PeerIdentity(Role.DATA_OWNER, "b"), 60.0)
    audited.auditor.begun("Infer", call)
    assert not audited.lines(count=5)
    audited.now += 1
    audited.auditor.begun("Infer", call)
    assert [one.get("count") for one in audited.lines()][-3:] == [None, 5, None]


def test_what_was_counted_is_written_when_the_server_stops(audited: Audited) -> None:
    audited.refused(15)
    audited.auditor.close()
    audited.auditor.close()
    assert len(audited.lines()) == 11
    assert len(audited.lines(count=5)) == 1


def test_every_admitted_call_has_its_lines(audited: Audited) -> None:
    call = Call(PeerIdentity(Role.DATA_OWNER, "a"), 60.0)
    audited.refused(50)
    for _ in range(30):
        audited.auditor.begun("Infer", call)
        audited.auditor.ended("Infer", call, "ok")
    assert len(audited.lines(event="Infer begun")) == 30
    assert len(audited.lines(event="Infer ended")) == 30
