"""The noise is normal, from a cryptographic stream, and lies on the grid."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from training.noise import SecureSource

KEY = bytes(range(32))
COUNT = 200_000


def test_the_stream_is_that_of_chacha20() -> None:
    expected = Cipher(algorithms.ChaCha20(KEY, bytes(16)), mode=None).encryptor().update(bytes(100))
    source = SecureSource(KEY)
    assert source.bytes(60) + source.bytes(40) == expected


def test_uniform_values_are_the_top_bits_of_the_stream() -> None:
    words = np.frombuffer(SecureSource(KEY).bytes(8 * 1000), dtype="<u8")
    values = SecureSource(KEY).uniform(1000)
    assert values.tolist() == [(int(word >> np.uint64(11)) + 1) / 2**53 for word in words]
    assert values.min() > 0.0


def test_normal_values_are_normal() -> None:
    values = SecureSource(KEY).normal(COUNT)
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert abs(values.mean()) < 4.0 / np.sqrt(COUNT)
    assert abs(values.var() - 1.0) < 4.0 * np.sqrt(2.0 / COUNT)
    assert abs(stats.kurtosis(values)) < 4.0 * np.sqrt(24.0 / COUNT)
    tail = np.mean(np.abs(values) > 3.0)
    assert abs(tail - 0.0026998) < 4.0 * np.sqrt(0.0027 / COUNT)


def test_neighbouring_values_and_squares_do_not_correlate() -> None:
    values = SecureSource(KEY).normal(COUNT)
    limit = 4.0 / np.sqrt(COUNT)
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < limit
        assert abs(np.corrcoef(values[:-lag] ** 2, values[lag:] ** 2)[0, 1]) < limit


def test_values_beyond_one_chunk_continue_the_distribution() -> None:
    values = SecureSource(KEY).normal((1 << 20) + 50_000)
    assert stats.kstest(values[-50_000:], "norm").pvalue > 0.01


def test_rounded_values_are_whole_numbers_of_the_deviation() -> None:
    deviation = 1.7 * 2**24
    values = SecureSource(KEY).rounded_normal(COUNT, deviation)
    assert values.dtype == np.int64
    assert stats.kstest(values / deviation, "norm").pvalue > 0.01
    # All low bits occur equally often: the grid is fine, and nothing lies between its points.
    assert stats.chisquare(np.bincount(values % 256, minlength=256)).pvalue > 0.01


def test_without_deviation_there_is_no_noise() -> None:
    assert not SecureSource().rounded_normal(5, 0.0).any()


@pytest.mark.parametrize("deviation", [-1.0, 2.0**58, float("nan")])
def test_impossible_deviations_are_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="deviation"):
        SecureSource().rounded_normal(5, deviation)


def test_each_index_is_drawn_with_its_own_coin() -> None:
    source = SecureSource(KEY)
    sizes = np.array([len(source.chosen(1000, 0.1)) for _ in range(500)])
    assert abs(sizes.mean() - 100.0) < 4.0 * np.sqrt(90.0 / 500)
    # A batch of fixed size would not vary; a binomial one has variance 90.
    assert 60.0 < sizes.var() < 130.0
    assert source.chosen(50, 1.0).tolist() == list(range(50))


def test_two_sources_differ_and_show_no_key() -> None:
    first, second = SecureSource(), SecureSource()
    assert first.bytes(32) != second.bytes(32)
    assert repr(SecureSource(KEY)) == "SecureSource()"
    with pytest.raises(ValueError, match="31 bytes"):
        SecureSource(bytes(31))


def test_a_used_up_key_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.noise._BYTES_PER_KEY", 64)
    whole = SecureSource(KEY)
    first, second = whole.bytes(64), whole.bytes(64)
    monkeypatch.undo()
    unbroken = SecureSource(KEY).bytes(128)
    assert first == unbroken[:64]
    assert second != unbroken[64:]
