"""Sites in secure rounds, in one process and across machines: the dialogue and its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from training.errors import (
    BudgetSpentError,
    DisagreementError,
    RefusedMessageError,
    RepeatedRoundError,
    SettingsError,
    SiteLostError,
    TooFewSitesError,
    TrainingError,
)
from training.journal import Journal
from training.member import METRICS_BYTES, Member, Terms, split_metrics, with_metrics
from training.opening import MAX_AGREEMENT, Opening, opening_bytes
from training.rounds import Attendance, Questions, secure_round
from training.secagg import Aggregate, Context
from training.secagg.context import Kind
from training.site import SiteUpdate, flatten, shared_names, weights_of

NAMES = ("a", "b", "c", "d")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 32) for name in NAMES}
PINS = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
SESSION = b"s" * 16
TERMS = Terms(PINS, 3, 5, b'{"run":1}')


class Counting:
    """A site whose update is a known vector; counts how often it is trained."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.samples = name, 10 + NAMES.index(name)
        self.steps = 0
        self._error = error

    def begin(self, number: int, rounds: int) -> None:
        self.number = number

    def step(self, model: Any, weights: Any) -> SiteUpdate:
        self.steps += 1
        if self._error is not None:
            raise self._error
        delta = np.full(6, 0.25 * (1 + NAMES.index(self.name)), np.float32)
        return SiteUpdate(delta, self.samples, {"loss": 0.5, "epsilon_prv": 1.25})


def network() -> Any:
    torch.manual_seed(3)
    return torch.nn.Linear(2, 2)


def flat_weights() -> np.ndarray:
    model = network()
    return flatten(weights_of(model), shared_names(model))


def opening(attempt: int = 0, number: int = 0, **changes: Any) -> Opening:
    values: dict[str, Any] = {
        "session": SESSION,
        "attempt": attempt,
        "number": number,
        "agreement": TERMS.agreement,
        "weights": flat_weights(),
    }
    return Opening(**{**values, **changes})


def asked(first: Opening) -> bytes:
    return bytes([Kind.KEYS]) + first.encode()


class Round:
    """Members in one process, and a way to lead them through rounds."""

    def __init__(self, **errors: Exception) -> None:
        self.sites = {name: Counting(name, errors.get(name)) for name in NAMES}
        self.journals = {name: Journal() for name in NAMES}
        self.members = {name: self.member(name) for name in NAMES}
        self.attendance = Attendance()
        self.tampered: dict[tuple[str, Kind], bytes] = {}
        self.silent: set[tuple[str, Kind]] = set()

    def member(self, name: str, **options: Any) -> Member:
        return Member(
            self.sites[name], network(), KEYS[name], TERMS, self.journals[name], **options
        )

    def exchange(self, questions: Questions, attendance: Attendance) -> Iterator[tuple[str, bytes]]:
        for name, question in questions.by_site.items():
            if (name, questions.kind) in self.silent:
                attendance.lost[name] = "was lost"
                continue
            answer = self.members[name].answer(question)
            assert len(answer) <= questions.answer_bytes
            yield name, self.tampered.get((name, questions.kind), answer)

    def play(self, first: Opening) -> Aggregate:
        context = Context(first.session, first.attempt, PINS, 3, 6, binding=first.binding())
        return secure_round(context, first.encode(), self.exchange, self.attendance)


def mean_of(*names: str) -> float:
    samples = {name: 10 + NAMES.index(name) for name in names}
    values = [0.25 * (1 + NAMES.index(name)) * samples[name] for name in names]
    return sum(values) / sum(samples.values())


def test_the_dialogue_ends_in_the_weighted_mean() -> None:
    play = Round()
    result = play.play(opening())
    assert result.sites == NAMES
    assert result.mean == pytest.approx(np.full(6, mean_of(*NAMES)), abs=2.0**-25)
    assert play.attendance.metrics["a"] == {"loss": 0.5, "epsilon_prv": 1.25}
    assert not play.attendance.lost


@pytest.mark.parametrize("kind", list(Kind))
def test_a_site_that_falls_silent_is_left_out(kind: Kind) -> None:
    play = Round()
    play.silent.add(("b", kind))
    result = play.play(opening())
    counted = NAMES if kind > Kind.MASKED else ("a", "c", "d")
    assert result.sites == counted
    assert result.mean == pytest.approx(np.full(6, mean_of(*counted)), abs=2.0**-25)
    assert play.attendance.lost == {"b": "was lost"}


@pytest.mark.parametrize("kind", list(Kind))
def test_a_site_whose_message_is_refused_has_dropped_out_and_is_named(kind: Kind) -> None:
    play = Round()
    play.tampered["c", kind] = b"rubbish"
    result = play.play(opening())
    assert result.sites == (NAMES if kind > Kind.MASKED else ("a", "b", "d"))
    assert play.attendance.lost["c"].startswith("was refused")


def test_too_few_sites_open_nothing_and_all_who_miss_are_named() -> None:
    play = Round()
    play.silent = {("b", Kind.MASKED)}
    play.tampered["c", Kind.MASKED] = b""
    with pytest.raises(TooFewSitesError, match=r"only 2 sites.*b was lost; c was refused"):
        play.play(opening())
    assert all(journal.opened == -1 for journal in play.journals.values())


def test_sites_that_were_told_different_weights_do_not_accept_each_other() -> None:
    """The attack of Pasquini et al. needs one site's update alone in the sum."""
    play = Round()
    others = opening(weights=flat_weights() * 2)
    assert others.binding() != opening().binding()
    keys = [
        play.members[name].answer(asked(others if name == "a" else opening())) for name in NAMES
    ]
    for name in NAMES:
        with pytest.raises(RefusedMessageError, match="pinned key"):
            play.members[name].answer(bytes([Kind.SHARES]) + b"".join(keys))
        with pytest.raises(RefusedMessageError, match="no round is open"):
            play.members[name].answer(bytes([Kind.MASKED]))


@pytest.mark.parametrize(
    "change",
    [{"number": 1}, {"agreement": b"{}"}, {"weights": np.zeros(6, np.float32)}],
)
def test_all_that_matters_is_bound(change: dict[str, Any]) -> None:
    assert replace(opening(), **change).binding() != opening().binding()


# -- no round twice ---------------------------------------------------------------------------


def test_no_attempt_is_made_twice_and_no_round_is_opened_twice() -> None:
    play = Round()
    play.play(opening(attempt=4, number=1))
    for again, reason in (
        (opening(attempt=4, number=2), "each is made once"),
        (opening(attempt=3, number=2), "older state"),
        (opening(attempt=5, number=1), "opened already"),
        (opening(attempt=5, number=0), "opened already"),
        (opening(attempt=5, number=2, session=b"t" * 16), "another session"),
    ):
        with pytest.raises(RepeatedRoundError, match=reason):
            play.members["a"].answer(asked(again))
    assert play.play(opening(attempt=5, number=2)).sites == NAMES


def test_a_round_that_fell_through_is_repeated_with_the_same_update() -> None:
    play = Round()
    play.silent = {("b", Kind.MASKED), ("c", Kind.MASKED)}
    with pytest.raises(TooFewSitesError):
        play.play(opening(attempt=0))
    play.silent.clear()
    play.play(opening(attempt=1))
    assert [play.sites[name].steps for name in NAMES] == [1, 1, 1, 1]
    play.play(opening(attempt=2, number=1))
    assert [play.sites[name].steps for name in NAMES] == [2, 2, 2, 2]


def test_other_weights_are_trained_on_anew() -> None:
    play = Round()
    play.silent = {("b", Kind.SURVIVORS), ("c", Kind.SURVIVORS)}
    with pytest.raises(TooFewSitesError):
        play.play(opening(attempt=0))
    play.silent.clear()
    play.play(opening(attempt=1, weights=flat_weights() + 1))
    assert play.sites["a"].steps == 2


def test_two_masked_messages_of_one_update_share_nothing() -> None:
    play = Round()
    seen: list[bytes] = []
    exchange = play.exchange

    def listening(questions: Questions, attendance: Attendance) -> Iterator[tuple[str, bytes]]:
        for name, answer in exchange(questions, attendance):
            if questions.kind == Kind.MASKED and name == "a":
                seen.append(answer[-7 * 8 :])
            yield name, answer

    play.exchange = listening  # type: ignore[method-assign]
    play.silent = {("b", Kind.UNMASK), ("c", Kind.UNMASK)}
    with pytest.raises(TooFewSitesError):
        play.play(opening(attempt=0))
    play.silent.clear()
    for name in NAMES:
        play.journals[name].opened = -1
    play.play(opening(attempt=2))
    assert play.sites["a"].steps == 1
    first, second = (np.frombuffer(message, np.uint64) for message in seen)
    assert not (first == second).any()


def test_a_journal_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "run.json"
    first = Journal(path)
    first.begin(SESSION, 7, 2)
    first.open(2)
    again = Journal(path)
    assert (again.session, again.attempt, again.opened) == (SESSION, 7, 2)
    with pytest.raises(RepeatedRoundError):
        again.begin(SESSION, 7, 3)
    with pytest.raises(RepeatedRoundError):
        again.begin(SESSION, 8, 2)
    again.begin(SESSION, 8, 3)


def test_the_journal_is_written_before_anything_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Round()
    play.journals["a"] = Journal(tmp_path / "a.json")
    play.members["a"] = play.member("a")
    on_disk: list[dict[str, Any]] = []
    exchange = play.exchange

    def looking(questions: Questions, attendance: Attendance) -> Iterator[tuple[str, bytes]]:
        for name, answer in exchange(questions, attendance):
            if name == "a":
                on_disk.append(json.loads((tmp_path / "a.json").read_text()))
            yield name, answer

    play.exchange = looking  # type: ignore[method-assign]
    play.play(opening(attempt=3, number=1))
    assert [entry["attempt"] for entry in on_disk] == [3] * 5
    assert [entry["opened"] for entry in on_disk] == [-1, -1, -1, -1, 1]

    def fail(*ignored: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.journal.write_atomically", fail)
    with pytest.raises(SettingsError, match="No space left"):
        play.members["a"].answer(asked(opening(attempt=4, number=2)))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 1, "session": "zz"}'])
def test_a_damaged_journal_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match="not a journal"):
        Journal(path)
    path.write_text('{"version": 2, "session": "", "attempt": 0, "opened": 0}')
    with pytest.raises(SettingsError, match="another version"):
        Journal(path)


# -- what a site refuses ----------------------------------------------------------------------


def test_a_site_keeps_to_what_it_agreed_to() -> None:
    play = Round()
    with pytest.raises(DisagreementError):
        play.members["a"].answer(asked(opening(agreement=b'{"run":2}')))
    larger = opening(agreement=b'{"run":2}', weights=np.zeros(7, np.float32))
    with pytest.raises(DisagreementError):
        play.members["a"].answer(asked(larger))
    with pytest.raises(RefusedMessageError, match="5 are agreed"):
        play.members["a"].answer(asked(opening(number=5)))
    assert play.journals["a"].attempt == -1


def test_a_site_that_cannot_afford_a_round_says_so_before_it_begins() -> None:
    play = Round()

    def check() -> None:
        raise BudgetSpentError("spent")

    with pytest.raises(BudgetSpentError):
        play.member("a", check=check).answer(asked(opening()))
    assert play.journals["a"].attempt == -1
    assert play.sites["a"].steps == 0


def test_only_chosen_figures_are_shared() -> None:
    play = Round()
    play.members["a"] = play.member("a", shared=lambda figures: {"e": figures["epsilon_prv"]})
    play.play(opening())
    assert play.attendance.metrics["a"] == {"e": 1.25}


def test_a_site_that_cannot_train_is_out_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Round(b=SiteLostError("gone"))
    with pytest.raises(SiteLostError):
        play.play(opening())
    with pytest.raises(RefusedMessageError, match="no round is open"):
        play.members["b"].answer(bytes([Kind.SURVIVORS]) + b"\x00\x00")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "only 0 bytes"),
        (opening().encode()[:-1], "bytes"),
        (opening().encode() + b"\x00", "bytes"),
        (opening(weights=np.array([0, 0, 0, 0, 0, np.nan], np.float32)).encode(), "not finite"),
        (opening(weights=np.array([np.inf] * 6, np.float32)).encode(), "not finite"),
        (opening(weights=np.zeros(7, np.float32)).encode(), "network is"),
    ],
)
def test_malformed_openings_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(RefusedMessageError, match=reason):
        Opening.decode(body, 6)


def test_openings_are_read_as_they_were_written() -> None:
    first = opening(attempt=7, number=3)
    again = Opening.decode(first.encode(), 6)
    assert again.binding() == first.binding()
    assert (again.session, again.attempt, again.number) == (SESSION, 7, 3)
    assert np.array_equal(again.weights, first.weights)
    assert len(first.encode()) <= opening_bytes(6)
    assert Opening.agreement_in(first.encode()) == TERMS.agreement
    assert Opening.agreement_in(b"short") == b""
    long = opening(agreement=b"x" * (MAX_AGREEMENT + 1)).encode()
    assert len(Opening.agreement_in(long)) == MAX_AGREEMENT
    with pytest.raises(RefusedMessageError):
        Opening.decode(long, 6)


def led_to(kind: Kind) -> tuple[Member, dict[Kind, bytes]]:
    """A member, a, to which `kind` is the next question, and the right questions by kind."""
    play = Round()
    questions: dict[Kind, bytes] = {}

    def note(asking: Questions, attendance: Attendance) -> Iterator[tuple[str, bytes]]:
        questions[asking.kind] = asking.by_site["a"]
        for name, question in asking.by_site.items():
            if asking.kind >= kind:
                return
            yield name, play.members[name].answer(question)

    context = Context(SESSION, 0, PINS, 3, 6, binding=opening().binding())
    with pytest.raises(TooFewSitesError):
        secure_round(context, opening().encode(), note, Attendance())
    return play.members["a"], questions


def swapped(body: bytes, size: int) -> bytes:
    return body[:1] + body[1 + size : 1 + 2 * size] + body[1 : 1 + size] + body[1 + 2 * size :]


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        (Kind.SHARES, lambda body: body[:1], "0 bytes"),
        (Kind.SHARES, lambda body: body[:-1], "bytes"),
        (Kind.SHARES, lambda body: body + body[1:], "bytes"),
        (Kind.MASKED, lambda body: body[:-3], "bytes"),
        (Kind.MASKED, lambda body: swapped(body, 150), "ascending"),
        (Kind.MASKED, lambda body: body[:1] + b"\x09\x00" + body[3:], "ascending"),
        (Kind.SURVIVORS, lambda body: body[:1], "0 bytes"),
        (Kind.SURVIVORS, lambda body: body + b"\x00", "bytes"),
        (Kind.SURVIVORS, lambda body: swapped(body, 2), "ascending"),
        (Kind.SURVIVORS, lambda body: body[:1] + b"\x00\x00\x00\x00\x01\x00", "ascending"),
        (Kind.UNMASK, lambda body: body[:-1], "bytes"),
        (Kind.UNMASK, lambda body: bytes([7]) + body[1:], "no known kind"),
        (Kind.UNMASK, lambda body: b"", "no known kind"),
    ],
)
def test_malformed_questions_are_refused_and_end_the_round(
    kind: Kind, change: Any, reason: str
) -> None:
    member, questions = led_to(kind)
    with pytest.raises(RefusedMessageError, match=reason):
        member.answer(change(questions[kind]))
    if reason != "no known kind":
        with pytest.raises(RefusedMessageError, match="no round is open"):
            member.answer(questions[kind])


def test_no_question_is_answered_twice_or_early() -> None:
    member, questions = led_to(Kind.SURVIVORS)
    with pytest.raises(TrainingError, match="made once"):
        member.answer(questions[Kind.MASKED])
    member, questions = led_to(Kind.MASKED)
    with pytest.raises(TrainingError, match="in order"):
        member.answer(bytes([Kind.SURVIVORS]) + b"\x00\x00\x01\x00\x02\x00")


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metrics", [{}, {"a": 0.0}, {f"name_{n}": float(n) for n in range(16)}, {"z" * 32: -1e300}]
)
def test_figures_travel_before_the_update(metrics: dict[str, float]) -> None:
    message = with_metrics(metrics, b"message")
    assert len(message) <= METRICS_BYTES + 7
    assert split_metrics("a", message, 7) == (metrics, b"message")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x01",
        b"\x00\x00",
        b"\x01\x01a" + bytes(7),
        b"\x01\x01A" + bytes(8),
        b"\x01\x00" + bytes(8),
        b"\x02" + 2 * (b"\x01a" + bytes(8)),
        b"\x02\x01a" + bytes(8),
        b"\x01\x01a" + bytes(8) + b"\x00",
        b"\x01\x01a" + bytes(6) + b"\xf0\x7f",
        b"\x01\x01\xff" + bytes(8),
        bytes([33]) + bytes(METRICS_BYTES),
    ],
)
def test_malformed_figures_are_refused(block: bytes) -> None:
    with pytest.raises(RefusedMessageError):
        split_metrics("a", block + b"message", 7)
