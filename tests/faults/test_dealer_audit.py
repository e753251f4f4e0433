"""The dealer audit: who deals wrongly is caught, and nothing else is revealed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_owner import Client
from radiopaque.errors import DealerError
from radiopaque.wire.frames import Frame
from tests.e2e.networks import lungs
from tests.faults.inside import Inside, redealing


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path, lungs()) as inside:
        yield inside


def test_an_honest_dealer_passes_and_the_opened_sessions_are_gone(inside: Inside) -> None:
    with Client.from_config(inside.clinic()) as client:
        client.prepare(5)
        audited = client.audit(0.3)
        assert (audited.stock, audited.opened, audited.refused) == (5, 2, 0)
        assert client.stock() == 3
    assert len(inside.material()) == 6


def test_bit(inside: Inside) -> None:
    def flip(frames: list[Frame]) -> list[Frame]:
        one = frames[1]
        data = bytearray(one.payload)
        data[3] ^= 1
        frames[1] = Frame(one.session, one.gate, one.kind, one.block, bytes(data))
        return frames

    inside.lies["Deal"] = redealing(flip)
    with Client.from_config(inside.clinic()) as client:
        client.prepare(3)
        with pytest.raises(DealerError) as caught:
            client.audit(0.4)
        print(caught.value)
        assert client.stock() == 0
