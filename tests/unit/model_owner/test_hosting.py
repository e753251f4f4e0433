"""Which of several versions is the newest."""

from __future__ import annotations

from itertools import permutations

from model_owner.rollback import version_key


def test_versions_are_ordered_by_number_and_releases_after_candidates() -> None:
    ordered = ["0.9", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1", "1.9", "1.10", "2", "10"]
    for shuffled in permutations(ordered[1:7]):
        assert sorted(shuffled, key=version_key) == ordered[1:7]
    backwards = list(reversed(ordered))
    assert sorted(backwards, key=version_key) == ordered


def test_any_text_is_a_version() -> None:
    for version in ("", "1\u00b2", "v1", "1..2", "latest"):
        assert version_key(version)
