"""Which sessions are opened, with which chance that finds a wrong one, and what follows then."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_owner.dealer_audit import Audited, audit, chosen, detection, drawn
from data_owner.starting import RefusedError
from radiopaque.errors import (
    ConfigError,
    ConnectionLostError,
    DealerError,
    SessionStateError,
    UnknownSessionError,
)

STOCK = [bytes([number]) * 16 for number in range(20)]
CORRUPTED = frozenset(STOCK[:4])


def test_the_probability_is_that_of_counting_all_choices() -> None:
    for stock in range(7):
        for corrupted in range(stock + 1):
            for opened in range(stock + 1):
                ways = list(combinations(range(stock), opened))
                hits = sum(any(one < corrupted for one in way) for way in ways)
                assert detection(stock, corrupted, opened) == pytest.approx(hits / len(ways))


def test_the_probability_of_a_large_stock() -> None:
    """One opened session finds the corrupted fraction; the rest follows."""
    assert detection(1000, 70, 1) == pytest.approx(0.07)
    assert Audited(1002, 1, 2).detection(70) == pytest.approx(0.07)
    assert 0.99 < detection(10**4, 5 * 10**3, 10) < 1 - 2**-11
    for numbers in ((5, 6, 1), (5, 1, 6), (5, -1, 1), (5, 1, -1)):
        with pytest.raises(ValueError, match="of 5 sessions"):
            detection(*numbers)


def test_a_dealer_that_corrupts_a_fraction_is_caught_with_the_stated_probability() -> None:
    """4 of 20 corrupted, a quarter opened: 71.8 %; within five standard deviations."""
    stated = detection(len(STOCK), len(CORRUPTED), 5)
    assert stated == pytest.approx(1 - 4368 / 15504)
    trials = 4000
    caught = sum(not CORRUPTED.isdisjoint(chosen(STOCK, 0.25)) for _ in range(trials))
    print(f"caught {caught / trials:.1%} of {trials} times, stated {stated:.1%}")
    assert abs(caught / trials - stated) < 5 * math.sqrt(stated * (1 - stated) / trials)


def test_every_session_is_as_likely_as_any_other() -> None:
    trials = 4000
    counts = Counter(one for _ in range(trials) for one in chosen(STOCK, 0.25))
    assert sum(counts.values()) == 5 * trials
    for session in STOCK:
        assert abs(counts[session] - trials / 4) < 6 * math.sqrt(trials * 0.25 * 0.75)


def test_nobody_can_foretell_the_choice_by_seeding_a_generator() -> None:
    many = [number.to_bytes(16, "big") for number in range(200)]
    picks = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        picks.append(frozenset(chosen(many, 0.5)))
    assert picks[0] != picks[1]


def test_the_share_is_rounded_up() -> None:
    assert len(chosen(STOCK, 0.01)) == 1
    assert len(chosen(STOCK, 0.26)) == 6
    assert sorted(chosen(STOCK, 1)) == STOCK
    assert chosen([], 0.5) == []


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan, math.inf])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        chosen(STOCK, share)


def test_all_picked_sessions_are_opened_and_wrong_ones_cost_the_whole_stock() -> None:
    burnt: list[bytes] = []
    opened: list[bytes] = []

    def open_one(session: bytes) -> None:
        opened.append(session)
        if session in CORRUPTED:
            raise DealerError("wrong")
        if session == STOCK[5]:
            raise RefusedError(UnknownSessionError("lost"))

    with pytest.raises(DealerError, match="4 of 9 opened sessions are wrong, and the 10 left"):
        audit(STOCK, STOCK[:10], open_one, burnt.append)
    assert opened == STOCK[:10]
    assert sorted(burnt) == sorted([STOCK[5], *STOCK[10:]])
    burnt.clear()
    assert audit(STOCK, STOCK[5:7], open_one, burnt.append) == Audited(20, 1, 1)
    assert burnt == [STOCK[5]]


def test_without_stock_or_vendor() -> None:
    with pytest.raises(SessionStateError, match="prepare some first"):
        audit([], [], lambda _: None, lambda _: None)

    def lost(_: bytes) -> None:
        raise ConnectionLostError("gone")

    burnt: list[bytes] = []
    with pytest.raises(ConnectionLostError):
        audit(STOCK, STOCK[:3], lost, burnt.append)
    assert burnt == []


def test_the_table_of_the_document() -> None:
    text = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
    table = text[text.index("| opened | 1 wrong") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    wrong = [int(cell.split()[0]) for cell in rows[0][1:]]
    assert wrong == [1, 5, 10, 20, 50]
    for opened, *stated in rows[2:]:
        found = [f"{100 * detection(100, one, int(opened)):.1f} %" for one in wrong]
        assert stated == found


def test_a_vendor_that_goes_away_does_not_hide_what_was_found() -> None:
    burnt: list[bytes] = []

    def open_one(session: bytes) -> None:
        if session == STOCK[0]:
            raise DealerError("wrong")
        if session == STOCK[2]:
            raise ConnectionLostError("gone")

    with pytest.raises(DealerError, match="1 of 2 opened sessions are wrong, and the 18 left"):
        audit(STOCK, STOCK[:4], open_one, burnt.append)
    assert sorted(burnt) == STOCK[2:]


def test_each_session_is_drawn_with_the_stated_probability() -> None:
    count = 4000
    for share in (0.1, 0.5):
        hits = sum(drawn(share) for _ in range(count))
        assert abs(hits - share * count) < 5 * math.sqrt(share * (1 - share) * count)
    assert not any(drawn(0.0) for _ in range(200))
    assert all(drawn(1.0) for _ in range(200))


def test_nobody_can_foretell_a_draw_by_seeding_a_generator() -> None:
    runs = []
    for _ in range(2):
        random.seed(1)
        runs.append([drawn(0.5) for _ in range(100)])
    assert runs[0] != runs[1]
