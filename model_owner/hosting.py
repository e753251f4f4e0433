"""The models that a model owner hosts, by name and version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_owner.engines import CryptenHost, GateHost
from model_owner.rollback import version_key
from radiopaque.engine.artefact import ArtefactKey, mask_weights, weights_digest
from radiopaque.engine.crypten import weights_file as crypten_file
from radiopaque.engine.crypten.process import check_installed
from radiopaque.engine.model_owner import Model
from radiopaque.engine.plans import is_crypten
from radiopaque.engine.weights_file import PLAN_FILE, read_compiled, read_limited
from radiopaque.errors import ConfigError, UnknownModelError
from radiopaque.kernels.cpu import CPU
from radiopaque.kernels.device import Device
from radiopaque.wire.plans import MAX_PLAN_BYTES


@dataclass(frozen=True)
class HostedModel:
    """A model ready to serve. ``masked_weights`` is F for the clinics, empty under CrypTen."""

    name: str
    version: str
    plan_bytes: bytes = field(repr=False)
    key: ArtefactKey
    host: GateHost | CryptenHost
    masked_weights: bytes = field(repr=False)
    masked_weights_digest: bytes

    @property
    def about(self) -> dict[str, str]:
        """What an observer of a call is told of the model."""
        return {"model": self.name, "version": self.version}


class Hosted:
    """All hosted models. ``newest`` tells which of them are withdrawn for now, as being newer."""

    def __init__(
        self,
        models: Sequence[HostedModel],
        newest: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._newest = newest
        self._by_artefact = {model.key.id.artefact: model for model in models}
        self._by_name: dict[tuple[str, str], HostedModel] = {}
        for model in models:
            if self._by_name.setdefault((model.name, model.version), model) is not model:
                raise ConfigError(
                    f"two models are named {model.name} {model.version}; give one another version"
                )

    @classmethod
    def load(
        cls,
        directories: Iterable[tuple[Path, str | None, str | None]],
        device: Device = CPU,
        newest: Callable[[], Mapping[str, str]] = dict,
    ) -> Hosted:
        """From compiled folders with the name and version to offer them under, or the plan's.

        The compiled engine's weights are brought to ``device``.
        """
        models = [_load(path, name, version, device) for path, name, version in directories]
        return cls(models, newest)

    def loaded(self) -> list[HostedModel]:
        """Every model, also those that are withdrawn for now."""
        return list(self._by_name.values())

    def all(self) -> list[HostedModel]:
        """Every model that is served now, sorted by name and version."""
        newest = self._newest()
        served = [model for model in self._by_name.values() if _is_served(model, newest)]
        return sorted(served, key=lambda m: (m.name, version_key(m.version)))

    def by_artefact(self, artefact: bytes) -> HostedModel:
        """Raises UnknownModelError."""
        model = self._by_artefact.get(artefact)
        if model is None or not _is_served(model, self._newest()):
            raise UnknownModelError(
                f"artefact {artefact.hex()[:8]} is not hosted here any more; fetch the model again"
            )
        return model

    def by_name(self, name: str, version: str) -> HostedModel:
        """A model by name and version, the newest where ``version`` is empty.

        Raises UnknownModelError listing what there is.
        """
        if version:
            versions = [m for m in self.all() if (m.name, m.version) == (name, version)]
        else:
            versions = [model for model in self.all() if model.name == name]
        found = versions[-1] if versions else None
        if found is None:
            offered = ", ".join(f"{m.name} {m.version}" for m in self.all()) or "nothing"
            raise UnknownModelError(
                f"there is no model {f'{name} {version}'.strip()!r} here; this model owner offers: "
                f"{offered}"
            )
        return found


def _is_served(model: HostedModel, newest: Mapping[str, str]) -> bool:
    limit = newest.get(model.name)
    return limit is None or version_key(model.version) <= version_key(limit)


def _load(path: Path, name: str | None, version: str | None, device: Device) -> HostedModel:
    if is_crypten(read_limited(path / PLAN_FILE, MAX_PLAN_BYTES)):
        return _load_crypten(path, name, version)
    compiled = read_compiled(path)
    masked = mask_weights(compiled.plan, compiled.weights, compiled.key)
    return HostedModel(
        name or compiled.plan.name,
        version or compiled.plan.version,
        compiled.plan_bytes,
        compiled.key,
        GateHost(Model(compiled.plan, compiled.weights, device), compiled.key.id),
        masked,
        weights_digest(masked),
    )


def _load_crypten(path: Path, name: str | None, version: str | None) -> HostedModel:
    check_installed()
    stored = crypten_file.read_compiled(path)
    return HostedModel(
        name or stored.plan.name,
        version or stored.plan.version,
        stored.plan_bytes,
        stored.key,
        CryptenHost(stored),
        b"",
        weights_digest(b""),
    )
