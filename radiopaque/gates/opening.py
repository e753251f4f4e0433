"""Opening a masked value to the model owner: shared by the truncation, comparison gates.

y^ = y + r mod 2**opened_bits with r = r_D + r_O. The data owner sends delta = m + r_D once,
offline, in opened_bits bits an element; online the model owner computes y^ = h + delta + r_O by
itself. The data owner never sees the low bits that the gate truncates: together with the result
they would tell rounding carries.

Source: docs/protocol.md, section 5. Leaks: nothing; r is uniform in the ring of the opening.
"""

from __future__ import annotations

from radiopaque.gates.base import DeviceStreams, Raw, Site
from radiopaque.kernels.bits import packed_size
from radiopaque.kernels.device import Array


def opening_mask(streams: DeviceStreams, site: Site) -> Array:
    """One party's part of r, as ring words [size]; the low opened_bits bits count."""
    return streams.words(site.number, "opening", (site.step.size,), site.dtype)


def delta_bytes(site: Site, opened_bits: int) -> int:
    """Size of the offline message of one opening."""
    return packed_size(site.step.size, opened_bits)


def delta_message(streams: DeviceStreams, site: Site, mask: Array, opened_bits: int) -> Raw:
    """Data owner: delta = m + r_D mod 2**opened_bits, packed."""
    masked = site.in_bands(streams.device, mask) + opening_mask(streams, site)
    return streams.device.pack(masked, opened_bits)


def opening_offset(streams: DeviceStreams, site: Site, message: Raw, opened_bits: int) -> Array:
    """Model owner: delta + r_O, which turns h into y^; ring words [size]."""
    delta = streams.device.unpack(message, site.step.size, opened_bits, site.dtype)
    return delta + opening_mask(streams, site)
