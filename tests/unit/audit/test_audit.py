"""The chain of an audit log: what is written, and what the check finds."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from radiopaque.audit import AuditLog, verify
from radiopaque.audit.chain import EMPTY, HEAD_NAME, Head
from radiopaque.errors import StoreError
from tests.conftest import Command

PARTY = "model-owner 'vendor'"


def filled(folder: Path, lines: int = 6, segment_bytes: int = 1 << 20) -> Path:
    """A log with so many lines."""
    log = AuditLog(folder / "audit", PARTY, segment_bytes)
    for number in range(lines):
        log.write("Infer ended", peer="data-owner 'ward'", session=f"{number:032x}", sent_bytes=7)
    log.close()
    return folder / "audit"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-*.jsonl"))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_says_what_was_given_and_the_hash_of_the_one_before(tmp_path: Path) -> None:
    folder = filled(tmp_path, 3)
    (path,) = files(folder)
    previous = "0" * 64
    for number, line in enumerate(lines(path), 1):
        entry = json.loads(line)
        assert entry.pop("time").endswith("Z")
        assert entry == {
            "number": number,
            "party": PARTY,
            "event": "Infer ended",
            "peer": "data-owner 'ward'",
            "session": f"{number - 1:032x}",
            "sent_bytes": 7,
            "previous": previous,
        }
        previous = hashlib.sha256(line).hexdigest()
    assert (folder / HEAD_NAME).read_text() == f"{3:012d} {previous}\n"
    assert verify(folder).head == Head(3, previous)


def test_files_are_private(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_log_goes_on_over_restarts_and_segments(tmp_path: Path) -> None:
    for _ in range(3):
        folder = filled(tmp_path, 5, segment_bytes=700)
    assert len(files(folder)) > 3
    assert all(path.stat().st_size <= 700 for path in files(folder))
    report = verify(folder)
    assert (report.holds, report.lines, report.first, report.head.number) == (True, 15, 1, 15)


def test_old_segments_may_be_moved_away(tmp_path: Path) -> None:
    folder = filled(tmp_path, 9, segment_bytes=700)
    first = files(folder)[0]
    count = len(lines(first))
    first.unlink()
    report = verify(folder)
    assert (report.holds, report.first, report.lines) == (True, count + 1, 9 - count)
    AuditLog(folder, PARTY).close()


def change(line: bytes) -> bytes:
    return line.replace(b"'ward'", b"'wird'")


Damage = Callable[[list[bytes]], list[bytes]]
DAMAGES: dict[str, tuple[Damage, int]] = {
    "changed": (lambda ls: [*ls[:2], change(ls[2]), *ls[3:]], 4),
    "removed": (lambda ls: [*ls[:2], *ls[3:]], 3),
    "doubled": (lambda ls: [*ls[:3], ls[2], *ls[3:]], 4),
    "swapped": (lambda ls: [*ls[:2], ls[3], ls[2], *ls[4:]], 3),
    "no JSON": (lambda ls: [*ls[:2], b"nonsense\n", *ls[3:]], 3),
    "first removed": (lambda ls: ls[1:], 1),
    "first changed": (lambda ls: [change(ls[0]), *ls[1:]], 2),
    "last changed": (lambda ls: [*ls[:5], change(ls[5])], 6),
    "end cut by one": (lambda ls: ls[:5], 6),
    "end cut by three": (lambda ls: ls[:3], 4),
    "last line cut": (lambda ls: [*ls[:5], ls[5][:50]], 6),
    "all cut": (lambda ls: [], 1),
    "number as text": (lambda ls: [*ls[:2], ls[2].replace(b'": 3', b'": "3"'), *ls[3:]], 3),
    "list": (lambda ls: [*ls[:2], b"[3]\n", *ls[3:]], 3),
    "too long": (lambda ls: [*ls[:2], b" " * (1 << 15) + ls[2], *ls[3:]], 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_check_names_the_line_where_the_chain_breaks(tmp_path: Path, damage: str) -> None:
    folder = filled(tmp_path)
    (path,) = files(folder)
    function, line = DAMAGES[damage]
    path.write_bytes(b"".join(function(lines(path))))
    report = verify(folder)
    assert not report.holds
    assert report.broken is not None
    assert (report.broken.path, report.broken.line) == (path, line)
    with pytest.raises(StoreError, match=r"was changed.*begin another log"):
        AuditLog(folder, PARTY)


def test_the_reason_names_the_lines_to_look_at(tmp_path: Path) -> None:
    """A line that was changed shows in the one after it."""
    folder = filled(tmp_path)
    (path,) = files(folder)
    path.write_bytes(b"".join(DAMAGES["changed"][0](lines(path))))
    broken = verify(folder).broken
    assert broken is not None
    assert str(broken).endswith("does not hold the hash of line 3: line 3 or line 4 was changed")


def test_the_last_line_of_the_file_before_was_changed(tmp_path: Path) -> None:
    folder = filled(tmp_path, 12, segment_bytes=700)
    before, path = files(folder)[:2]
    *most, last = lines(before)
    before.write_bytes(b"".join([*most, change(last)]))
    broken = verify(folder).broken
    assert broken is not None
    assert (broken.path, broken.line) == (path, 1)
    assert "the last line of the file before or line 1 was changed" in broken.reason


@pytest.mark.parametrize("name", ["", "audit-000000000001.jsonl", "elsewhere"])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"does not exist; a log is the folder audit in a party"):
        verify(tmp_path / "audit" / name)


def test_a_log_that_lost_its_head_is_said_in_words(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / HEAD_NAME).unlink()
    with pytest.raises(StoreError) as raised:
        verify(folder)
    assert f"{folder / HEAD_NAME}: No such file" in str(raised.value)
    assert "Errno" not in str(raised.value)


def test_lines_that_were_chained_anew_do_not_have_the_heads_hash(tmp_path: Path) -> None:
    """Somebody who can compute hashes, and forgot the head."""
    folder = filled(tmp_path)
    (path,) = files(folder)
    previous, forged = "0" * 64, []
    for line in lines(path):
        entry = {**json.loads(change(line)), "previous": previous}
        forged.append(json.dumps(entry).encode() + b"\n")
        previous = hashlib.sha256(forged[-1]).hexdigest()
    path.write_bytes(b"".join(forged))
    report = verify(folder)
    assert report.broken is not None
    assert report.broken.line == 6
    assert "not the one that the head names" in report.broken.reason


def test_a_hash_that_was_written_down_elsewhere_is_looked_for(tmp_path: Path) -> None:
    """What finds somebody who rewrote the head, too."""
    folder = filled(tmp_path)
    anchor = verify(folder).head.digest
    filled(tmp_path, 2)
    assert verify(folder, anchor).holds
    other = filled(tmp_path / "other", 8)
    assert verify(other).holds
    assert not verify(other, anchor).holds


@pytest.mark.parametrize("which", [1, 2])
def test_a_missing_segment(tmp_path: Path, which: int) -> None:
    folder = filled(tmp_path, 12, segment_bytes=700)
    paths = files(folder)
    assert len(paths) > 3
    paths[which].unlink()
    report = verify(folder)
    assert report.broken is not None
    assert report.broken.path == paths[which + 1]
    assert "are missing before this file" in report.broken.reason
    with pytest.raises(StoreError, match=r"was changed: .*are missing before this file"):
        AuditLog(folder, PARTY)


def test_the_newest_segment_is_missing(tmp_path: Path) -> None:
    folder = filled(tmp_path, 12, segment_bytes=700)
    files(folder)[-1].unlink()
    report = verify(folder)
    assert report.broken is not None
    assert "the end was cut: the head counts 12" in report.broken.reason
    with pytest.raises(StoreError, match="was changed"):
        AuditLog(folder, PARTY)


def test_a_party_does_not_begin_anew_where_its_log_is_gone(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    for path in files(folder):
        path.unlink()
    with pytest.raises(StoreError, match="its files are gone, the head counts 6"):
        AuditLog(folder, PARTY)


def test_a_segment_of_another_log(tmp_path: Path) -> None:
    folder = filled(tmp_path, 12, segment_bytes=700)
    other = filled(tmp_path / "other", 12, segment_bytes=700)
    path = files(folder)[1]
    path.write_bytes((other / path.name).read_bytes())
    report = verify(folder)
    assert report.broken is not None
    assert (report.broken.path, report.broken.line) == (path, 1)
    with pytest.raises(StoreError, match=f"was changed: {path.name}, line 1: it does not hold"):
        AuditLog(folder, PARTY)


@pytest.mark.parametrize("which", [0, 1])
def test_the_end_of_an_older_segment(tmp_path: Path, which: int) -> None:
    """What a party sees when it starts; the middle of an older file it leaves to the check."""
    folder = filled(tmp_path, 12, segment_bytes=700)
    path, following = files(folder)[which : which + 2]
    good = lines(path)
    for damaged, match in (
        ([*good[:-1], change(good[-1])], f"{following.name}, line 1: it does not hold the hash"),
        (good[:-1], f"{following.name}, line 1: lines .* are missing"),
        ([*good[:-1], good[-1][:-1]], f"{path.name}, line {len(good)}: the line is cut"),
        ([], f"{path.name}, line {len(good)}: the line is cut or missing"),
        ([*good[:-1], b" " * (1 << 15), b"\n"], f"{path.name}, line {len(good)}: the line is cut"),
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(StoreError, match=f"was changed: {match}"):
            AuditLog(folder, PARTY)
        assert not verify(folder).holds
    path.write_bytes(b"".join(good))
    AuditLog(folder, PARTY).close()


def test_one_file_is_checked_with_what_follows(tmp_path: Path) -> None:
    folder = filled(tmp_path, 12, segment_bytes=700)
    paths = files(folder)
    report = verify(paths[1])
    assert (report.holds, report.first) == (True, int(paths[1].stem[6:]))
    damaged = paths[2].read_bytes()
    paths[2].write_bytes(change(damaged))
    assert verify(paths[1]).broken is not None
    assert verify(paths[3]).holds
    # the first file of a check has nothing before it to compare with
    report = verify(paths[2])
    assert report.broken is not None


def test_the_head_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / HEAD_NAME).write_text("something else")
    for check in (lambda: verify(folder), lambda: AuditLog(folder, PARTY)):
        with pytest.raises(StoreError, match="head of the audit log"):
            check()
    (folder / HEAD_NAME).write_text("")
    report = verify(folder)
    assert report.broken is not None
    with pytest.raises(StoreError, match="was changed"):
        AuditLog(folder, PARTY)
    (folder / HEAD_NAME).unlink()
    with pytest.raises(StoreError, match="cannot read"):
        verify(folder)


def test_what_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no audit log"):
        verify(tmp_path)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(StoreError, match="is no file of an audit log"):
        verify(tmp_path / "x.jsonl")
    with pytest.raises(StoreError, match="does not exist"):
        verify(tmp_path / "nothing" / "at all")


# What a crash leaves.


def test_a_line_that_the_head_does_not_count_yet_is_taken_over(tmp_path: Path) -> None:
    folder = filled(tmp_path, 5)
    before = (folder / HEAD_NAME).read_bytes()
    filled(tmp_path, 1)
    (folder / HEAD_NAME).write_bytes(before)
    assert verify(folder).holds
    log = AuditLog(folder, PARTY)
    assert log.head.number == 6
    log.close()
    # but two are not: the head is written after each
    filled(tmp_path, 1)
    (folder / HEAD_NAME).write_bytes(before)
    assert not verify(folder).holds


def test_an_unfinished_line_is_cut_off(tmp_path: Path) -> None:
    folder = filled(tmp_path, 5)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 6, "ti')
    report = verify(folder)
    assert (report.holds, report.unfinished, report.lines) == (True, True, 5)
    AuditLog(folder, PARTY).close()
    assert path.read_bytes() == whole


def test_an_empty_segment_is_gone_on_with(tmp_path: Path) -> None:
    folder = filled(tmp_path, 5)
    (folder / "audit-000000000006.jsonl").touch(mode=0o600)
    assert verify(folder).holds
    filled(tmp_path, 2)
    assert (verify(folder).holds, verify(folder).lines) == (True, 7)


def test_kill_9_at_any_moment_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    """And no line that was reported as written is lost."""
    program = """
import sys
from pathlib import Path
from radiopaque.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), "party", 2000)
while True:
    log.write("something happened")
    print(log.head.number, flush=True)
"""
    folder = tmp_path / "audit"
    told = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        until = told + 20
        while told < until:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        told = int(rest[-1]) if rest else told
        report = verify(folder)
        assert report.broken is None, report.broken
        assert told <= report.head.number <= told + 1
        told = report.head.number


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", PARTY)
    with pytest.raises(StoreError, match="in use by another process"):
        AuditLog(tmp_path / "audit", PARTY)
    log.close()
    AuditLog(tmp_path / "audit", PARTY).close()


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", PARTY, 4000)

    def work() -> None:
        for _ in range(25):
            log.write("Prepare ended")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert verify(tmp_path / "audit").broken is None
    for thread in threads:
        thread.join()
    log.close()
    assert (verify(tmp_path / "audit").holds, log.head.number) == (True, 100)


@pytest.mark.parametrize("failing", ["write", "fdatasync"])
def test_a_full_disk_closes_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Nothing is written behind a line of which nobody knows whether it is there."""
    folder = filled(tmp_path, 2)
    log = AuditLog(folder, PARTY)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(StoreError, match=r"No space left.*start the party again"):
            log.write("Infer begun")
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be written any more"):
            log.write("Infer begun")
    log.close()
    assert filled(tmp_path, 1)
    assert verify(folder).holds


def test_a_line_is_on_the_disk_before_the_head_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the head is when the caller is told."""
    log = AuditLog(tmp_path / "audit", PARTY)
    done: list[tuple[str, bool]] = []

    def noted(name: str) -> Callable[..., int | None]:
        call: Callable[..., int | None] = getattr(os, name)

        def function(descriptor: int, *rest: object) -> int | None:
            done.append((name, descriptor == log._head_file))
            return call(descriptor, *rest)

        return function

    for name in ("write", "pwrite", "fdatasync"):
        monkeypatch.setattr(os, name, noted(name))
    log.write("Infer begun")
    assert done == [("write", False), ("fdatasync", False), ("pwrite", True), ("fdatasync", True)]
    monkeypatch.undo()
    log.close()


def test_a_short_write_closes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path / "audit", PARTY)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:9]))
        with pytest.raises(StoreError, match="no space"):
            log.write("Infer begun")
    log.close()
    report = verify(tmp_path / "audit")
    assert (report.holds, report.unfinished, report.head) == (True, True, EMPTY)


def test_names_cannot_break_lines(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit", PARTY)
    log.write("Infer ended", peer='x"\n{"number": 9}\u2028' + "y" * 9000)
    log.close()
    (line,) = lines(files(tmp_path / "audit")[0])
    assert line.isascii()
    assert len(json.loads(line)["peer"]) == 300


def test_the_command(tmp_path: Path, command: Command) -> None:
    folder = filled(tmp_path, 3)
    code, answer = command("audit", "verify", folder)
    digest = answer.pop("hash")
    assert (code, answer) == (
        0,
        {
            "holds": True,
            "lines": 3,
            "first": 1,
            "last": 3,
            "unfinished": False,
            "contains": True,
            "broken": None,
        },
    )
    assert command("audit", "verify", folder, "--contains", digest)[1]["holds"]


def test_the_command_says_where_the_chain_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from radiopaque.cli.main import main

    folder = filled(tmp_path, 3)
    (path,) = files(folder)
    path.write_bytes(change(path.read_bytes()))
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["audit", "verify", str(folder), *more])
        assert ended.value.code == 8
        printed = capsys.readouterr().out
        if more:
            assert json.loads(printed)["broken"] == {
                "file": str(path),
                "line": 2,
                "reason": "it does not hold the hash of line 1: line 1 or line 2 was changed",
            }
        else:
            assert printed.startswith(f"the chain breaks at {path}, line 2: it does not hold")
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", str(filled(tmp_path / "other")), "--contains", "0" * 64])
    assert ended.value.code == 8
    assert "no line has the hash" in capsys.readouterr().out
