"""Chi-square tests on many fields at once, with a stated rate of false alarms.

False alarms. A field passes when its p-value exceeds ``THRESHOLD`` = 1e-7 / ``MOST_TESTS``. By the
union bound all tests of a run of the suite together raise a false alarm with probability at most
1e-7, were the p-values exact. They are those of the chi-square distribution; with at least
``EXPECTED`` = 64 expected counts in each of at most 256 equally likely cells, the cumulants of
Pearson's statistic exceed the distribution's by a few per cent (third: 8 + 22/64 a cell instead of
8), which at these p-values is a factor below two. The stated rate of 1e-6 leaves a factor of ten.
Tests need not be independent for this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from tests.protocol.fields import Field, Words

MOST_TESTS = 200_000
THRESHOLD = 1e-7 / MOST_TESTS
EXPECTED = 64
_MOST_BITS = 8


@dataclass(frozen=True)
class Finding:
    """One test's outcome."""

    name: str
    p_value: float

    @property
    def alarm(self) -> bool:
        return self.p_value <= THRESHOLD


_made = 0


def alarms(found: Sequence[Finding]) -> list[Finding]:
    """The findings that raise an alarm; keeps the number of tests within what was promised."""
    global _made
    _made += len(found)
    assert _made <= MOST_TESTS
    return [finding for finding in found if finding.alarm]


def uniform(values: Words, width: int) -> Iterator[float]:
    """P-values: are windows of up to 8 bits equally likely?"""
    for bits, start in _windows(values.size, width):
        counts = _counts(values, start, bits)
        expected = values.size / counts.size
        yield float(chi2.sf(((counts - expected) ** 2).sum() / expected, counts.size - 1))


def same(samples: Sequence[Words], width: int) -> Iterator[float]:
    """P-values: do windows of all samples have one distribution?"""
    total = sum(sample.size for sample in samples)
    for bits, start in _windows(min(sample.size for sample in samples), width):
        counts = np.stack([_counts(sample, start, bits) for sample in samples])
        rows = np.array([sample.size for sample in samples])[:, None]
        expected = rows * counts.sum(axis=0)[None, :] / total
        used = expected.min(axis=0) > 0
        terms = (counts[:, used] - expected[:, used]) ** 2 / expected[:, used]
        degrees = (len(samples) - 1) * max(1, int(used.sum()) - 1)
        yield float(chi2.sf(terms.sum(), degrees))


def _windows(size: int, width: int) -> Iterator[tuple[int, int]]:
    bits = min(_MOST_BITS, width, (size // EXPECTED).bit_length() - 1)
    if bits < 1:
        raise ValueError(f"{size} numbers are too few for a test")
    starts = {*range(0, width - bits + 1, _MOST_BITS), width - bits}
    for start in sorted(starts):
        yield bits, start


def _counts(values: Words, start: int, bits: int) -> NDArray[np.float64]:
    window = values >> np.uint64(start) & np.uint64((1 << bits) - 1)
    return np.bincount(window.astype(np.int64), minlength=1 << bits).astype(np.float64)


Views = Mapping[str, Sequence[Sequence[Field]]]
"""For each image, one list of fields a session, in the same order."""


def examine(views: Views) -> list[Finding]:
    """All tests: values, differences between runs, between gates, and between images."""
    found = []
    for image, sessions in views.items():
        fields = _by_name(sessions)
        for (name, width, xor), gates in fields.items():
            title = f"{image}: {name}, {width} bits"
            everything = np.concatenate([np.concatenate(runs) for runs in gates.values()])
            found += [Finding(f"{title}, values", value) for value in uniform(everything, width)]
            pairs = [
                _difference(runs[i], runs[i + 1], width, xor)
                for runs in gates.values()
                for i in range(0, len(runs) - 1, 2)
            ]
            if pairs:
                found += [
                    Finding(f"{title}, between runs", value)
                    for value in uniform(np.concatenate(pairs), width)
                ]
            for a, b in combinations(gates, 2):
                between = [
                    _difference(x, y, width, xor) for x, y in zip(gates[a], gates[b], strict=True)
                ]
                joined = np.concatenate(between)
                if joined.size >= 2 * EXPECTED:  # a gate of a few weights says nothing
                    found += [
                        Finding(f"{title}, between gates {a} and {b}", value)
                        for value in uniform(joined, width)
                    ]
    found += compare(views)
    return found


def compare(views: Views) -> list[Finding]:
    """Is each field the same, statistically, for every image (or for real and simulated)?"""
    pooled = {
        image: {
            key: np.concatenate([np.concatenate(runs) for runs in gates.values()])
            for key, gates in _by_name(sessions).items()
        }
        for image, sessions in views.items()
    }
    first = next(iter(pooled.values()))
    return [
        Finding(f"{key[0]}, {key[1]} bits, between images", value)
        for key in first
        for value in same([fields[key] for fields in pooled.values()], key[1])
    ]


def _by_name(
    sessions: Iterable[Sequence[Field]],
) -> dict[tuple[str, int, bool], dict[int, list[Words]]]:
    fields: dict[tuple[str, int, bool], dict[int, list[Words]]] = {}
    for session in sessions:
        for item in session:
            key = (item.name, item.width, item.xor)
            values = item.values
            if item.width < 64:
                values = values & np.uint64((1 << item.width) - 1)
            fields.setdefault(key, {}).setdefault(item.gate, []).append(values)
    return fields


def _difference(a: Words, b: Words, width: int, xor: bool) -> Words:
    size = min(a.size, b.size)
    difference = a[:size] ^ b[:size] if xor else a[:size] - b[:size]
    return difference if width == 64 else difference & np.uint64((1 << width) - 1)
