"""The artefacts that model owners registered: plan, key_B and who may have sessions dealt.

One private file an artefact, written whole or not at all: magic, key_B (32 bytes), plan digest
(32), length of the owner's name (2, big-endian), name, plan bytes, SHA-256 of the artefact's id
and all that (32): a wrong key_B would make every later result wrong, and nobody would notice.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from radiopaque.engine.artefact import ArtefactId, ArtefactKey, weight_mask_maps
from radiopaque.engine.footprint import check_footprint, weights_bytes
from radiopaque.engine.plans import AnyPlan, load_any
from radiopaque.errors import AccessError, ResourceError, StoreError, UnknownModelError
from radiopaque.files import make_private_directory, write_atomically
from radiopaque.graph.plan import Plan
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device, LinearMap
from radiopaque.prg import SecretKey

_MAGIC = b"RPQART01"
_DIGEST_BYTES = 32
_SUFFIX = ".artefact"
_FIXED_BYTES = len(_MAGIC) + 32 + 32 + 2


@dataclass(frozen=True)
class Registered:
    """One artefact as the crypto provider knows it."""

    owner: str
    plan: AnyPlan = field(repr=False)
    key: ArtefactKey


class Artefacts:
    """The registered artefacts on disk, and the linear maps of the few used last in memory."""

    def __init__(
        self, directory: Path, *, most: int, model_bytes: int, device: Device = CPU
    ) -> None:
        """``model_bytes``: memory that one artefact may take, and the maps that are kept."""
        make_private_directory(directory)
        self.device = device
        """Where the maps are."""
        self._directory = directory
        self._most = most
        self._lock = threading.Lock()
        self._known: dict[bytes, Registered] = {}
        self._maps: OrderedDict[bytes, Mapping[int, LinearMap]] = OrderedDict()
        self._model_bytes = model_bytes

    def register(self, owner: str, plan_bytes: bytes, key: ArtefactKey) -> None:
        """Remember an artefact; the same again changes nothing.

        Raises PlanError, AccessError (the id belongs to another artefact) or ResourceError.
        """
        plan = load_any(plan_bytes, key.id.plan_digest)
        self._check(plan)
        with self._lock:
            present = self._find(key.id.artefact)
            if present is not None:
                same = (
                    present.owner == owner
                    and present.key.id == key.id
                    and present.key.key_b.reveal() == key.key_b.reveal()
                )
                if not same:
                    raise AccessError(
                        f"artefact {key.id.artefact.hex()[:8]} is registered with other contents; "
                        "compile the model again to get a fresh one"
                    )
                return
            if sum(1 for _ in self._directory.glob(f"*{_SUFFIX}")) >= self._most:
                raise ResourceError(
                    f"this crypto provider holds its limit of {self._most} models; remove old ones"
                )
            name = owner.encode()
            body = b"".join(
                (
                    _MAGIC,
                    key.key_b.reveal(),
                    key.id.plan_digest,
                    len(name).to_bytes(2, "big"),
                    name,
                    plan_bytes,
                )
            )
            artefact = key.id.artefact
            write_atomically(self._path(artefact), body + _checksum(artefact, body))
            self._known[key.id.artefact] = Registered(owner, plan, key)

    def get(self, artefact: bytes) -> Registered:
        """A registered artefact. Raises UnknownModelError."""
        with self._lock:
            found = self._find(artefact)
        if found is None:
            raise UnknownModelError(
                f"artefact {artefact.hex()[:8]} is not registered with this crypto provider; "
                "its model owner registers it when it prepares a session"
            )
        return found

    def maps(self, artefact: bytes) -> Mapping[int, LinearMap]:
        """The linear maps of B, packed for the kernels; none under CrypTen."""
        with self._lock:
            maps = self._maps.get(artefact)
            if maps is not None:
                self._maps.move_to_end(artefact)
                return maps
        registered = self.get(artefact)
        if not isinstance(registered.plan, Plan):
            return {}
        maps = weight_mask_maps(registered.plan, registered.key, self.device)
        with self._lock:
            self._maps[artefact] = maps
            while sum(map(self._map_bytes, self._maps)) > self._model_bytes:
                self._maps.popitem(last=False)
        return maps

    def _map_bytes(self, artefact: bytes) -> int:
        plan = self._known[artefact].plan
        return weights_bytes(plan) if isinstance(plan, Plan) else 0

    def _check(self, plan: AnyPlan) -> None:
        """Before memory is taken for it: a registration is short, whatever it asks for."""
        check_footprint(plan, self._model_bytes, "crypto provider")

    def _path(self, artefact: bytes) -> Path:
        return self._directory / f"{artefact.hex()}{_SUFFIX}"

    def _find(self, artefact: bytes) -> Registered | None:
        if artefact not in self._known:
            path = self._path(artefact)
            if not path.exists():
                return None
            registered = _parse(path, artefact)
            self._check(registered.plan)
            self._known[artefact] = registered
        return self._known[artefact]


def _checksum(artefact: bytes, body: bytes) -> bytes:
    return hashlib.sha256(artefact + body).digest()


def _parse(path: Path, artefact: bytes) -> Registered:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    body, stated = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    whole = len(body) >= _FIXED_BYTES and _checksum(artefact, body) == stated
    if not whole or not body.startswith(_MAGIC):
        raise StoreError(f"{path} is damaged; delete it, the model owner registers it again")
    position = len(_MAGIC)
    key_b, digest = body[position : position + 32], body[position + 32 : position + 64]
    length = int.from_bytes(body[position + 64 : _FIXED_BYTES], "big")
    owner = body[_FIXED_BYTES : _FIXED_BYTES + length].decode(errors="replace")
    plan = load_any(body[_FIXED_BYTES + length :], digest)
    return Registered(owner, plan, ArtefactKey(ArtefactId(digest, artefact), SecretKey(key_b)))
