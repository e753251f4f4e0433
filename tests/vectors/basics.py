"""What the vectors of streams, bit strings and frames are made from."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np

from radiopaque.kernels.bits import pack
from radiopaque.prg import Role, SecretKey, Streams
from radiopaque.wire.frames import Frame, Kind, encode

SESSION = bytes(range(16))
_CUT = 1 << 20  # production fills a stream in pieces of a mebibyte

# (role, quantity, bits of a word)
QUANTITIES: tuple[tuple[Role, str, int], ...] = (
    ("data-owner", "mask", 32),
    ("data-owner", "mask", 64),
    ("data-owner", "opening", 32),
    ("data-owner", "opening", 64),
    ("data-owner", "product", 32),
    ("data-owner", "product", 64),
    ("data-owner", "products", 32),
    ("data-owner", "products", 64),
    ("data-owner", "selection", 16),
    ("data-owner", "decision", 8),
    ("data-owner", "level1", 64),
    ("data-owner", "level2", 32),
    ("model-owner", "opening", 32),
    ("model-owner", "opening", 64),
    ("model-owner", "selection", 16),
    ("model-owner", "decision", 8),
    ("artefact", "weights", 32),
    ("artefact", "weights", 64),
)
# (bits of a word, words of the stream, first word shown, words shown)
LENGTHS = (
    (8, 1, 0, 1),
    (8, 63, 0, 63),
    (8, 64, 0, 64),
    (8, 65, 0, 65),
    (16, 33, 0, 33),
    (32, 17, 0, 17),
    (64, 9, 0, 9),
    (8, _CUT - 1, _CUT - 9, 8),
    (8, _CUT, _CUT - 8, 8),
    (8, _CUT + 1, _CUT - 8, 9),
    (32, _CUT // 4 + 20, _CUT // 4 - 4, 24),
    (64, _CUT // 8 + 3, _CUT // 8 - 4, 7),
    (64, _CUT // 4 + 1, _CUT // 4 - 4, 5),
)


def stream_words(entry: dict[str, Any]) -> list[int]:
    """The shown words of one entry of streams.json, by the production code."""
    streams = Streams(
        SecretKey(bytes.fromhex(entry["key"])),
        bytes.fromhex(entry["plan_digest"]),
        bytes.fromhex(entry["context"]),
        entry["role"],
    )
    dtype = np.dtype(f"uint{entry['word_bits']}")
    whole = streams.words(entry["gate"], entry["quantity"], (entry["total"],), dtype)
    return [int(v) for v in whole[entry["start"] :][: entry["count"]]]


def streams() -> list[dict[str, Any]]:
    """Every role and quantity; then lengths around the cipher's and the code's block borders."""
    entries = []
    for number, (role, quantity, bits) in enumerate(QUANTITIES):
        gate = (0, 1, 255, 256, (1 << 32) - 1)[number % 5]
        entries.append(_stream(role, quantity, gate, bits, 5, 0, 5))
    for bits, total, start, count in LENGTHS:
        entries.append(_stream("data-owner", "mask", 3, bits, total, start, count))
    for entry in entries:
        entry["words"] = stream_words(entry)
    return entries


def _stream(
    role: str, quantity: str, gate: int, bits: int, total: int, start: int, count: int
) -> dict[str, Any]:
    def derived(label: str) -> str:
        return hashlib.sha256(f"stream vector {label}".encode()).hexdigest()

    return {
        "name": f"stream_{role}_{quantity}_{bits}_gate_{gate}_words_{total}",
        "key": derived(f"key {role}"),
        "plan_digest": derived("plan"),
        "context": derived("artefact" if role == "artefact" else "session")[:32],
        "role": role,
        "gate": gate,
        "quantity": quantity,
        "word_bits": bits,
        "total": total,
        "start": start,
        "count": count,
    }


def packings() -> dict[str, Any]:
    """Bit strings of many widths and lengths, and strings that must not be read."""
    rng = random.Random("packings")
    good = []
    for width in (1, 2, 5, 6, 8, 10, 16, 18, 19, 24, 31, 32, 33, 40, 63, 64):
        for count in (1, 3, 8, 13):
            values = [(1 << width) - 1, 0, 1, 1 << (width - 1)]
            values = [*values, *(rng.randrange(1 << width) for _ in range(count))][:count]
            good.append(
                {
                    "name": f"pack_{width}_bits_{count}_values",
                    "width": width,
                    "values": values,
                    "bytes": pack(np.array(values, np.uint64), width).tobytes().hex(),
                }
            )
    bad = [
        _unpacking("padding", "ff", 3, 1, "MessageValueError"),
        _unpacking("padding_of_wide_values", "ffffff80", 3, 10, "MessageValueError"),
        _unpacking("padding_lowest_bit", "00000008", 1, 27, "MessageValueError"),
        _unpacking("empty", "", 1, 1, "MessageSizeError"),
        _unpacking("short", "ffff", 3, 6, "MessageSizeError"),
        _unpacking("trailing_byte", "ffff0300", 3, 6, "MessageSizeError"),
        _unpacking("trailing_word", "0000000000000000", 1, 32, "MessageSizeError"),
    ]
    return {"good": good, "bad": bad}


def _unpacking(defect: str, data: str, count: int, width: int, error: str) -> dict[str, Any]:
    return {
        "name": f"unpack_bad_{defect}",
        "bytes": data,
        "count": count,
        "width": width,
        "error": error,
    }


def frames() -> dict[str, Any]:
    """Frames of every kind with fields at the borders of their encodings, and what is no frame."""
    good = []
    numbers = (0, 1, 127, 128, 16383, 16384, (1 << 32) - 1)
    for position, kind in enumerate(Kind):
        gate, block = numbers[position % 7], numbers[(position * 3) % 7]
        payload = bytes(range(256))[: (0, 1, 5, 127, 128, 200)[position % 6]]
        good.append(
            {
                "name": f"frame_{kind.name.lower()}",
                "session": SESSION.hex(),
                "gate": gate,
                "kind": kind.name,
                "block": block,
                "payload": payload.hex(),
                "bytes": encode(Frame(SESSION, gate, kind, block, payload)).hex(),
            }
        )
    head = "0a10" + SESSION.hex()
    whole = head + "100118052002" + "2a03616263"
    size, value = "MessageSizeError", "MessageValueError"
    bad = {
        "empty": ("", size),
        "cut_in_session": (head[:-2], size),
        "session_missing": ("100118052002" + "2a10" + SESSION.hex(), value),
        "session_short": ("0a0f" + SESSION.hex()[:-2] + "18052001", size),
        "session_twice": (head + head, value),
        "trailing_byte": (whole + "00", size),
        "trailing_field": (whole + "3001", size),
        "payload_cut": (whole[:-2], size),
        "payload_empty_but_present": (head + "18052a00", value),
        "kind_missing": (head + "1001", value),
        "kind_unknown": (head + "1810", value),
        "kind_twice": (head + "18051805", value),
        "fields_unordered": (head + "18051001", value),
        "field_unknown": (head + "18053001", value),
        "gate_zero_but_present": (head + "10001805", value),
        "gate_padded": (head + "1081001805", value),
        "gate_33_bits": (head + "108080808010" + "1805", value),
        "gate_endless": (head + "10" + "80" * 9 + "01" + "1805", value),
        "gate_cut": (head + "1080", size),
        "gate_as_bytes": (head + "120101" + "1805", value),
    }
    entries = [
        {"name": f"frame_bad_{defect}", "bytes": data, "error": error}
        for defect, (data, error) in bad.items()
    ]
    return {"good": good, "bad": entries}
