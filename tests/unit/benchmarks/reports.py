"""Made-up reports."""

from __future__ import annotations

from typing import Any

from benchmarks.record import RESULT_KEYS, Part, Record, Report


def result(**given: Any) -> Record:
    """A result of the compiled engine with plausible figures."""
    usual: Record = {
        "model": "resnet18",
        "image_size": 224,
        "engine": "compiled-32",
        "device": "cpu",
        "network": "loopback",
        "rtt_ms": 0.0,
        "mbit_per_second": None,
        "threads": 1,
        "batch": 1,
        "concurrency": 1,
        "inferences": 5,
        "online_seconds_min": 0.12,
        "online_seconds_median": 0.125,
        "online_seconds_max": 0.2,
        "offline_seconds_median": 0.375,
        "load_seconds_median": 0.125,
        "online_bytes": 26_400_000,
        "offline_bytes": 215_000_000,
        "round_trips": 44,
        "one_way_delays": 88,
        "cpu_seconds": 0.7,
        "peak_rss_bytes": 800_000_000,
        "images_per_second": 2.0,
        "max_abs_logit_error": 0.004,
        "argmax_agreement": 1.0,
        "comparisons": 2_900_000,
    }
    return {**dict.fromkeys(RESULT_KEYS), **usual, **given}


def stock(**given: Any) -> Record:
    """A result of CrypTen."""
    return result(
        engine="crypten-stock",
        online_seconds_median=22.5,
        offline_seconds_median=0.0,
        load_seconds_median=None,
        dealing_seconds_median=2.5,
        online_bytes=3_960_000_000,
        offline_bytes=0,
        round_trips=232,
        one_way_delays=232,
        cpu_seconds=42.0,
        images_per_second=0.04,
        **given,
    )


def report(*results: Record) -> Report:
    made = Report(
        "2026-11-21T12:00:00+00:00",
        {
            "processor": "Example 1",
            "cores": 2,
            "memory_bytes": 16 << 30,
            "system": "Linux 6.1",
            "architecture": "x86_64",
            "accelerator": "none used",
            "load_average": 0.1,
        },
        {"python": "3.11"},
    )
    for one in results:
        made.add(Part(one))
    return made


def gate(party: str, name: str, compute: float, serialise: float = 0.0) -> Record:
    return {
        "party": party,
        "phase": "online",
        "gate": name,
        "compute_seconds": compute,
        "wait_seconds": 0.0,
        "serialise_seconds": serialise,
    }


def traffic(phase: str, link: str, size: int) -> Record:
    return {"phase": phase, "link": link, "bytes": size}
