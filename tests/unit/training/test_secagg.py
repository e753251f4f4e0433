"""Secure aggregation: the sum and nothing else, with sites lost, and with messages refused."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from training.errors import (
    RefusedMessageError,
    SettingsError,
    TooFewSitesError,
    TrainingError,
)
from training.secagg import Aggregate, Aggregator, Context, Participant, default_threshold
from training.secagg.context import HEADER_BYTES, Kind, seal
from training.secagg.masks import add_mask, decode, encode, self_key

LENGTH = 300
PHASES = ("keys", "shares", "masked", "survivors", "unmask")


def keys_of(count: int) -> dict[str, Ed25519PrivateKey]:
    return {
        f"site-{number}": Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
        for number in range(count)
    }


def context_of(
    keys: dict[str, Ed25519PrivateKey], threshold: int, length: int = LENGTH, number: int = 0
) -> Context:
    pins = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    return Context(b"s" * 16, number, pins, threshold, length)


class Round:
    """Drives one aggregation; sites in `lost[phase]` do not send that phase's message."""

    def __init__(self, count: int, threshold: int, number: int = 0) -> None:
        self.keys = keys_of(count)
        self.context = context_of(self.keys, threshold, number=number)
        self.updates = {
            name: np.random.default_rng([7, index]).normal(0, 0.1, LENGTH).astype(np.float32)
            for index, name in enumerate(self.keys)
        }
        self.samples = {name: 10 * index + 3 for index, name in enumerate(self.keys)}
        self.sites = {name: Participant(self.context, name, key) for name, key in self.keys.items()}
        self.server = Aggregator(self.context)
        self.messages: dict[tuple[str, str], bytes] = {}

    def expected(self, names: Collection[str]) -> np.ndarray:
        weighted = [self.updates[name].astype(float) * self.samples[name] for name in names]
        return np.sum(weighted, axis=0) / sum(self.samples[name] for name in names)

    def send(self, phase: str, alive: set[str], make: Callable[[str], bytes]) -> None:
        for name in sorted(alive):
            self.messages[phase, name] = make(name)
            self.server.receive(name, self.messages[phase, name])

    def run(self, lost: dict[str, Collection[str]] | None = None) -> Aggregate:
        alive = set(self.sites)
        gone = {phase: set((lost or {}).get(phase, ())) for phase in PHASES}
        alive -= gone["keys"]
        self.send("keys", alive, lambda name: self.sites[name].advertise())
        keys = self.server.close_keys()
        alive -= gone["shares"]
        self.send("shares", alive, lambda name: self.sites[name].share(keys))
        shares = self.server.close_shares()
        alive -= gone["masked"]
        self.send(
            "masked",
            alive,
            lambda name: self.sites[name].mask(
                shares[name], self.updates[name], self.samples[name]
            ),
        )
        survivors = self.server.close_masked()
        alive -= gone["survivors"]
        self.send("survivors", alive, lambda name: self.sites[name].confirm(survivors))
        confirmed = self.server.close_survivors()
        alive -= gone["unmask"]
        self.send("unmask", alive, lambda name: self.sites[name].unmask(confirmed))
        return self.server.close_unmask()


def check(result: Aggregate, run: Round, names: Collection[str]) -> None:
    assert result.sites == tuple(sorted(names))
    assert result.samples == sum(run.samples[name] for name in names)
    # Half a step of 2^-24 per site, weighted: at most half a step of the mean.
    assert np.abs(result.mean - run.expected(names)).max() <= 2.0**-25


def test_the_weighted_mean_comes_out() -> None:
    run = Round(3, 3)
    check(run.run(), run, run.sites)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("count", [1, 2])
def test_any_drop_outs_down_to_the_threshold(phase: str, count: int) -> None:
    for lost in combinations(sorted(keys_of(5)), count):
        run = Round(5, 3)
        result = run.run({phase: lost})
        # Who has sent a masked update is in the sum, whether or not it stays to the end.
        counted = phase in ("survivors", "unmask")
        check(result, run, set(run.sites) - (set() if counted else set(lost)))


def test_drop_outs_spread_over_the_phases() -> None:
    run = Round(7, 4)
    result = run.run({"shares": ["site-0"], "masked": ["site-6"], "unmask": ["site-3"]})
    check(result, run, set(run.sites) - {"site-0", "site-6"})


@pytest.mark.parametrize("phase", PHASES)
def test_one_below_the_threshold_opens_nothing(phase: str) -> None:
    run = Round(5, 3)
    with pytest.raises(TooFewSitesError, match=r"site-1, site-2, site-3"):
        run.run({phase: ["site-1", "site-2", "site-3"]})
    with pytest.raises(RefusedMessageError, match="round is over"):
        run.server.receive("site-0", b"")


def uniformity(vector: np.ndarray) -> float:
    """The largest chi-square of the eight byte positions, as deviations from its mean 255."""
    columns = vector.view(np.uint8).reshape(-1, 8)
    expected = len(columns) / 256
    values = [
        ((np.bincount(columns[:, place], minlength=256) - expected) ** 2 / expected).sum()
        for place in range(8)
    ]
    return max(abs(value - 255) / np.sqrt(2 * 255) for value in values)


def fix_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(10**6))

    def draw(size: int) -> bytes:
        return hashlib.sha256(next(counter).to_bytes(4, "big")).digest()[:size]

    monkeypatch.setattr(secrets, "token_bytes", draw)


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_a_single_masked_update_is_uniform(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fix_randomness(monkeypatch)
    length = 1 << 16
    keys = keys_of(3)
    context = context_of(keys, 2, length)
    sites = {name: Participant(context, name, key) for name, key in keys.items()}
    server = Aggregator(context)
    for name, site in sites.items():
        server.receive(name, site.advertise())
    everyone = server.close_keys()
    for name, site in sites.items():
        server.receive(name, site.share(everyone))
    shares = server.close_shares()
    update = np.full(length, value, np.float32)
    masked = {name: site.mask(shares[name], update, 100) for name, site in sites.items()}
    vectors = {
        name: np.frombuffer(message[HEADER_BYTES:], np.uint64) for name, message in masked.items()
    }
    assert uniformity(encode(context, update, 100)) > 1000
    for vector in vectors.values():
        assert uniformity(vector) < 5
    # The aggregator opens the own masks at the end: the pairwise ones must hide as much alone.
    for index, (name, vector) in enumerate(vectors.items()):
        opened = vector.copy()
        add_mask(opened, self_key(context, sites[name]._seed, index), subtract=True)
        assert uniformity(opened) < 5
    # Pairwise masks alone would cancel here; the own masks keep even the sum uniform.
    assert uniformity(np.add.reduce(list(vectors.values()), dtype=np.uint64)) < 5
    seeds = [sites[name]._seed for name in sites]
    assert len(set(seeds)) == 3


def test_two_masked_messages_of_one_update_share_nothing() -> None:
    first, second = Round(3, 3), Round(3, 3)
    first.run()
    second.run()
    vectors = [
        np.frombuffer(run.messages["masked", "site-0"][HEADER_BYTES:], np.uint64)
        for run in (first, second)
    ]
    assert not (vectors[0] == vectors[1]).any()


def test_integers_known_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(keys_of(3), 2, length=4)
    update = np.array([1.0, -0.5, 2.0**-24, 0.0], np.float32)
    ring = encode(context, update, 3)
    assert ring.tolist() == [3 << 24, 2**64 - (3 << 23), 3, 0, 3]
    other = encode(context, np.array([-1.0, -0.5, 0.0, 2.0], np.float32), 1)
    mean, samples = decode(context, ring + other)
    assert samples == 4
    assert mean.tolist() == [0.5, -0.5, 3 * 2.0**-26, 0.5]


def test_the_mask_is_the_chacha20_key_stream() -> None:
    # RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1.
    stream = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    total = np.zeros(16, np.uint64)
    add_mask(total, bytes(32))
    assert total.tobytes() == stream
    add_mask(total, bytes(32), subtract=True)
    assert not total.any()


def test_long_masks_do_not_repeat_between_chunks() -> None:
    total = np.zeros(3 << 17, np.uint64)
    add_mask(total, bytes(32))
    assert len(np.unique(total)) == len(total)


def refusals(run: Round, phase: str, name: str, message: bytes) -> str:
    """Play up to `phase`, send `message` as `name`, then finish: the refusal changed nothing."""
    caught: list[str] = []
    receive = run.server.receive

    def intercept(sender: str, sent: bytes) -> None:
        if sender == name and (phase, name) in run.messages and not caught:
            with pytest.raises(RefusedMessageError) as refused:
                receive(name, message)
            assert refused.value.site == name
            assert name in str(refused.value)
            caught.append(refused.value.reason)
        receive(sender, sent)

    run.server.receive = intercept  # type: ignore[method-assign, assignment]
    check(run.run(), run, run.sites)
    assert len(caught) == 1
    return caught[0]


@pytest.mark.parametrize("change", [-8, 8, -HEADER_BYTES])
def test_an_update_of_the_wrong_length_is_refused_and_named(change: int) -> None:
    body = bytes(8 * (LENGTH + 1) + change)
    run = Round(3, 2)
    message = seal(run.context, Kind.MASKED, "site-1", run.keys["site-1"], body)
    assert "bytes" in refusals(run, "masked", "site-1", message)


@pytest.mark.parametrize("phase", PHASES)
def test_a_replayed_message_is_refused_and_named(phase: str) -> None:
    old = Round(3, 2, number=4)
    old.run()
    run = Round(3, 2, number=5)
    reason = refusals(run, phase, "site-1", old.messages[phase, "site-1"])
    assert "replayed" in reason


def test_a_second_copy_in_the_same_round_is_refused() -> None:
    run = Round(3, 2)
    message = run.sites["site-0"].advertise()
    run.server.receive("site-0", message)
    with pytest.raises(RefusedMessageError, match="already sent KEYS"):
        run.server.receive("site-0", message)


def test_messages_of_another_kind_site_or_key_are_refused() -> None:
    run = Round(3, 2)
    message = run.sites["site-0"].advertise()
    stranger = Ed25519PrivateKey.generate()
    forged = seal(run.context, Kind.KEYS, "site-0", stranger, message[HEADER_BYTES:])
    other_kind = seal(run.context, Kind.SHARES, "site-0", run.keys["site-0"], bytes(96))
    flipped = bytearray(message)
    flipped[-1] ^= 1
    for sender, sent, reason in (
        ("site-1", message, "claims to come from"),
        ("site-0", forged, "pinned key"),
        ("site-0", bytes(flipped), "pinned key"),
        ("site-0", other_kind, "KEYS is due"),
        ("elsewhere", message, "no key is pinned"),
    ):
        with pytest.raises(RefusedMessageError, match=reason) as refused:
            run.server.receive(sender, sent)
        assert refused.value.site == sender


def test_a_site_with_another_key_than_the_pinned_one_does_not_start() -> None:
    run = Round(3, 2)
    with pytest.raises(TrainingError, match="not the one pinned"):
        Participant(run.context, "site-0", run.keys["site-1"])


def keys_round() -> tuple[Round, list[bytes]]:
    run = Round(3, 2)
    for name, site in run.sites.items():
        run.server.receive(name, site.advertise())
    return run, run.server.close_keys()


def test_a_site_checks_the_keys_that_the_aggregator_passes_on() -> None:
    run, keys = keys_round()
    swapped = seal(run.context, Kind.KEYS, "site-1", Ed25519PrivateKey.generate(), bytes(96))
    with pytest.raises(RefusedMessageError, match="pinned key"):
        run.sites["site-0"].share([keys[0], swapped, keys[2]])
    with pytest.raises(RefusedMessageError, match="passed its keys on twice"):
        run.sites["site-1"].share([*keys, keys[0]])
    with pytest.raises(RefusedMessageError, match="did not pass on"):
        run.sites["site-2"].share(keys[:2])


def test_a_site_refuses_too_few_keys_and_doubled_keys() -> None:
    run, keys = keys_round()
    with pytest.raises(TooFewSitesError):
        run.sites["site-0"].share(keys[:1])
    copied = seal(run.context, Kind.KEYS, "site-2", run.keys["site-2"], keys[0][HEADER_BYTES:])
    with pytest.raises(RefusedMessageError, match="occurs twice"):
        run.sites["site-1"].share([keys[0], keys[1], copied])


def shares_round() -> tuple[Round, dict[str, dict[int, bytes]]]:
    run, keys = keys_round()
    for name, site in run.sites.items():
        run.server.receive(name, site.share(keys))
    return run, {name: dict(shares) for name, shares in run.server.close_shares().items()}


def test_changed_or_swapped_shares_are_noticed() -> None:
    run, shares = shares_round()
    update = run.updates["site-0"]
    swapped = {1: shares["site-0"][2], 2: shares["site-0"][1]}
    with pytest.raises(RefusedMessageError, match="changed on the way") as refused:
        run.sites["site-0"].mask(swapped, update, 1)
    assert refused.value.site == "site-1"
    with pytest.raises(RefusedMessageError, match="no keys"):
        run.sites["site-1"].mask({9: bytes(148)}, update, 1)
    with pytest.raises(RefusedMessageError, match="bytes"):
        run.sites["site-2"].mask({0: bytes(3)}, update, 1)


def test_a_site_confirms_no_wrong_survivors_and_opens_for_no_other_set() -> None:
    """Told of different survivors, sites would give away both masks of one of them."""
    run, shares = shares_round()
    for name, site in run.sites.items():
        site.mask(shares[name], run.updates[name], 1)
    first = run.sites["site-0"].confirm([0, 1, 2])
    second = run.sites["site-1"].confirm([0, 1])
    with pytest.raises(RefusedMessageError):
        run.sites["site-0"].unmask([first, second])
    with pytest.raises(TrainingError, match="made once"):
        run.sites["site-0"].unmask([first, first])
    with pytest.raises(TooFewSitesError):
        run.sites["site-1"].unmask([second, second])
    with pytest.raises(RefusedMessageError, match="left this one out"):
        run.sites["site-2"].confirm([0, 1])


def test_wrong_shares_at_the_end_open_nothing() -> None:
    run = Round(3, 3)
    unmask = run.sites["site-1"].unmask

    def lie(confirmed: list[bytes]) -> bytes:
        body = bytearray(unmask(confirmed)[HEADER_BYTES:])
        body[67] ^= 1
        return seal(run.context, Kind.UNMASK, "site-1", run.keys["site-1"], bytes(body))

    run.sites["site-1"].unmask = lie  # type: ignore[method-assign,assignment]
    with pytest.raises(RefusedMessageError, match="do not open") as refused:
        run.run()
    assert refused.value.site == "site-0"


def test_updates_that_do_not_fit_are_refused_before_they_are_masked() -> None:
    context = context_of(keys_of(3), 2, length=2)
    for update, samples, reason in (
        (np.zeros(3, np.float32), 1, "shape"),
        (np.array([0.0, np.nan]), 1, "not finite"),
        (np.array([0.0, np.inf]), 1, "not finite"),
        (np.array([0.0, 2.0**20]), 1, "larger than"),
        (np.zeros(2), 0, "counts 0 samples"),
        (np.zeros(2), 2**20 + 1, "samples"),
    ):
        with pytest.raises(SettingsError, match=reason):
            encode(context, update, samples)


def test_the_largest_values_do_not_wrap() -> None:
    context = context_of(keys_of(3), 2, length=2)
    largest = context.largest_element / 2.0**24
    extreme = np.array([largest, -largest]) * (1 - 2.0**-40)
    total = encode(context, extreme, 2**20)
    mean, samples = decode(context, total + total + total)
    assert samples == 3 * 2**20
    assert mean == pytest.approx(extreme, rel=1e-11)


def test_an_impossible_count_is_noticed() -> None:
    context = context_of(keys_of(3), 2, length=2)
    with pytest.raises(SettingsError, match="impossible"):
        decode(context, np.array([0, 0, 2**40], np.uint64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"session": b"short"}, "session bytes"),
        ({"binding": b"short"}, "binding"),
        ({"number": 2**32}, "round"),
        ({"threshold": 1}, "more than half"),
        ({"threshold": 4}, "more than half"),
        ({"length": 0}, "elements"),
        ({"length": 2**31}, "elements"),
        ({"largest_samples": 2**50}, "do not fit the ring"),
        ({"fraction_bits": 50}, "fraction bits"),
        ({"pins": {"a": b"1" * 32, "b": b"2" * 32}}, "fewer than three"),
        ({"pins": {"a": b"1" * 32, "b": b"2" * 32, "c": b"2" * 32}}, "same pinned key"),
        ({"pins": {"a": b"1" * 32, "b": b"2" * 32, "c": b"3"}}, "32 bytes"),
    ],
)
def test_agreements_that_cannot_be_kept(change: dict[str, object], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        replace(context_of(keys_of(3), 2), **change)  # type: ignore[arg-type]


def test_every_field_of_the_agreement_changes_its_digest() -> None:
    base = context_of(keys_of(3), 3)
    others = [
        replace(base, session=b"t" * 16),
        replace(base, number=1),
        replace(base, threshold=2),
        replace(base, length=LENGTH + 1),
        replace(base, fraction_bits=23),
        replace(base, largest_samples=5),
        replace(base, binding=b"b" * 32),
        replace(base, pins={**base.pins, "site-3": b"x" * 32}),
    ]
    assert len({context.digest for context in [base, *others]}) == len(others) + 1


def test_secrets_do_not_show() -> None:
    run = Round(3, 2)
    shown = repr(run.sites["site-0"]) + repr(run.context)
    assert run.sites["site-0"]._seed.hex() not in shown
    assert "_seed" not in shown


def test_the_usual_threshold() -> None:
    assert [default_threshold(count) for count in (3, 4, 6, 9)] == [3, 3, 5, 7]
