"""The configuration files: one TOML file a party, every key checked, unknown ones refused.

Descriptions, defaults and examples stand with the fields, and :func:`example` prints them, so that
the printed file and the accepted one cannot drift apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, ValidationInfo

from radiopaque.certificates import Identity, Role, load_identity
from radiopaque.config_files import Table, print_example, read_file
from radiopaque.engine.names import DeviceName, EngineName
from radiopaque.engine.window import WINDOW_BYTES

MODEL_BYTES: Final = 3_000_000_000
"""Enough for VGG-16 in the ring of 64 bits."""
_COLLECTOR: Final = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?(/[\w./-]*)?"
)
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")


def _resolved(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the configuration file."""
    folder: Path = (info.context or {})["folder"]
    return folder / path.expanduser()


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError("must be host:port with a port from 1 to 65535, for example vendor:7302")
    return value


def _listen(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match[2]) > 65535:
        raise ValueError("must be address:port, for example 0.0.0.0:7302; port 0 takes a free one")
    return value


def _traces(value: str) -> str:
    match = _COLLECTOR.fullmatch(value)
    if match is None:
        raise ValueError("must be a URL, for example http://127.0.0.1:4318/v1/traces")
    if match[1] == "http" and match[2] not in ("localhost", "127.0.0.1", "[::1]"):
        raise ValueError("must be https, except for a collector on this machine")
    return value


ConfigPath = Annotated[Path, AfterValidator(_resolved)]
Address = Annotated[str, AfterValidator(_address)]
Listen = Annotated[str, AfterValidator(_listen)]
Collector = Annotated[str, AfterValidator(_traces)]
Seconds = Annotated[float, Field(gt=0, le=3600, strict=True)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Bytes = Annotated[int, Field(ge=1, strict=True)]
ClinicName = Annotated[str, Field(min_length=1, max_length=64)]
Threads = Annotated[int, Field(ge=1, le=256, strict=True)]


def _device() -> Any:
    return Field(
        DeviceName.CPU,
        description="Where gates are computed: cpu, or cuda for a GPU, which needs the extra gpu. "
        "Results and messages are the same; each party chooses for itself.",
    )


def _metrics(example: str) -> Any:
    return Field(
        None,
        description="Address and port where Prometheus and `radiopaque top` read metrics. HTTP on "
        "loopback; elsewhere mutual TLS, for certificates with this party's role and name.",
        examples=[example],
    )


def _collector() -> Any:
    return Field(
        None,
        description="OpenTelemetry collector (OTLP over HTTP) that traces go to; needs the extra "
        "otel. https, except on this machine.",
        examples=["http://127.0.0.1:4318/v1/traces"],
    )


class TlsConfig(Table):
    """This party's certificate, and whom it trusts."""

    certificate: ConfigPath = Field(description="Certificate of this party, PEM.")
    key: ConfigPath = Field(description="Its private key, PEM, mode 600.")
    ca: ConfigPath = Field(
        description="Authorities whose certificates are accepted, PEM, intermediate ones too. Not "
        "one that the crypto provider runs: it could pose as the other party.",
    )
    crl: ConfigPath | None = Field(
        None,
        description="Their revocation lists, PEM, one of each. With it, every call is refused to "
        "and from certificates that are on a list, or whose list is missing or has ended.",
        examples=["certificates/ca.crl"],
    )
    accept_stale_crl: bool = Field(
        False, description="Go on with a list that has ended, until a new one is there."
    )

    def load(self, role: Role) -> Identity:
        """The party's identity. Raises ConfigError, AuthenticationError and RoleError."""
        return load_identity(
            self.certificate,
            self.key,
            self.ca,
            role,
            self.crl,
            accept_stale_crl=self.accept_stale_crl,
        )


class PeerConfig(Table):
    """A party that this one calls."""

    address: Address = Field(description="Where it listens, host:port.")
    server_name: str | None = Field(
        None,
        min_length=1,
        description="DNS name that its certificate must carry. Without it, the name of its role, "
        "<role>.radiopaque, must be there.",
        examples=["vendor.example"],
    )


class LedgerConfig(Table):
    """Where the ledger of sessions is kept. Every key may be left out: a file in the store."""

    postgresql: str | None = Field(
        None,
        min_length=1,
        description="For several replicas of this server: the PostgreSQL database that they share, "
        "as libpq takes it; on another machine with sslmode=verify-full. Passwords belong into "
        "~/.pgpass. Needs the extra postgresql. Replicas of a model owner also share the folder "
        "`store`/material.",
        examples=["host=db.example dbname=radiopaque user=radiopaque sslmode=verify-full"],
    )
    replica: str = Field(
        "main",
        min_length=1,
        max_length=100,
        description="Name of this replica, another one for each.",
    )


class CallLimits(Table):
    """What a serving party bears at once."""

    concurrent_calls: Count = Field(32, description="Calls under way at once.")
    calls_per_peer: Count = Field(8, description="Of one caller's.")
    longest_call_seconds: Seconds = Field(
        300.0, description="Longest deadline that a caller may ask for."
    )


class CryptoProviderLimits(CallLimits):
    """Beyond these, calls are turned away with a ResourceError."""

    # A model owner calls on behalf of all its clinics, and leaves room for others.
    concurrent_calls: Count = Field(64, description="Calls under way at once.")
    calls_per_peer: Count = Field(32, description="Of one caller's.")
    models: Count = Field(100, description="Registered models.")
    model_bytes: Bytes = Field(
        MODEL_BYTES,
        description="Memory, of the device, for dealing one session, by the model's plan: masks of "
        "weights and values, and the work on the largest gate. Models that take more are refused. "
        "As much holds the masks of weights that were used last.",
    )
    reserved_sessions: Count = Field(10_000, description="Sessions that wait to be dealt.")
    reserved_per_clinic: Count = Field(100, description="Of one data owner's.")
    reservation_seconds: Seconds = Field(
        600.0, description="How long a session may wait to be dealt; it takes seconds."
    )
    concurrent_deals: Count = Field(
        3,
        description="Sessions dealt at once; where it is more than 1, at most all but one of them "
        "for one model owner.",
    )


class CryptoProviderConfig(Table):
    """The crypto provider (trusted dealer): deals correlated randomness."""

    listen: Listen = Field("127.0.0.1:7301", description="Address and port to listen on.")
    metrics: Listen | None = _metrics("127.0.0.1:7311")
    traces: Collector | None = _collector()
    store: ConfigPath = Field(
        description="Folder for the ledger and the registered models; made with mode 700.",
        examples=["crypto-provider"],
    )
    device: DeviceName = _device()
    grace_seconds: Seconds = Field(
        10.0, description="How long calls under way may go on when the service is stopped."
    )
    threads: Threads = Field(
        1,
        description="Threads that share a convolution; no more than there are cores.",
    )
    ledger: LedgerConfig = LedgerConfig()
    tls: TlsConfig
    limits: CryptoProviderLimits = CryptoProviderLimits()


class HostedModelConfig(Table):
    """A compiled model that is offered."""

    path: ConfigPath = Field(
        description="Folder that `radiopaque compile` wrote.", examples=["compiled"]
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Name to offer it under, instead of its own.",
        examples=["pneumonia-resnet18"],
    )
    version: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Version to offer it as, instead of its own.",
        examples=["1"],
    )


class ModelOwnerLimits(CallLimits):
    """Beyond these, calls are turned away with a ResourceError."""

    sessions_per_clinic: Count = Field(
        50,
        description="Prepared sessions that one data owner may leave here, "
        "about 170 MB each for a ResNet-18 at 224 pixels.",
    )
    sessions: Count = Field(10_000, description="Prepared sessions of all data owners.")
    concurrent_inferences: Count = Field(
        4,
        description="Inferences under way at once; where it is more than 1, at most all but one of "
        "them of one data owner.",
    )
    session_days: Count = Field(
        90,
        description="Days that a prepared session waits for its image. Then it is deleted, before "
        "the next one is prepared or at the next start.",
    )
    material_bytes: Bytes = Field(
        20_000_000_000,
        description="Disk space for the material of prepared sessions.",
    )
    window_bytes: Bytes = Field(
        WINDOW_BYTES,
        description="Memory, of the device, for the material of each inference under way. What is "
        "beyond it (or beyond the largest layer, if that takes more) is read while the inference "
        "runs.",
    )


class PolicyConfig(Table):
    """What clinics are granted, against the extraction of models. Every key may be left out."""

    clinics: tuple[ClinicName, ...] | None = Field(
        None,
        min_length=1,
        description="Names in the certificates of the clinics that may call. Without it, all whose "
        "certificates are accepted.",
        examples=[["clinic-a", "clinic-b"]],
    )
    images: Count | None = Field(
        None,
        description="Images that each clinic may have classified in any period.",
        examples=[1000],
    )
    period_hours: float = Field(
        24.0, gt=0, le=8784, strict=True, description="How long that period is."
    )
    output_bits: Count | None = Field(
        None,
        le=63,
        description="Host no model that reveals more bits of each output (compile --output-bits).",
        examples=[8],
    )
    labels_only: bool = Field(
        False, description="Host no model that reveals scores (compile --labels-only)."
    )


class ModelOwnerConfig(Table):
    """The model owner (vendor): hosts compiled models."""

    listen: Listen = Field("127.0.0.1:7302", description="Address and port to listen on.")
    metrics: Listen | None = _metrics("127.0.0.1:7312")
    traces: Collector | None = _collector()
    store: ConfigPath = Field(
        description="Folder for the ledger and prepared material; made with mode 700.",
        examples=["model-owner"],
    )
    device: DeviceName = _device()
    grace_seconds: Seconds = Field(
        10.0, description="How long calls under way may go on when the service is stopped."
    )
    threads: Threads = Field(
        1,
        description="Threads that share a convolution; no more than there are cores.",
    )
    ledger: LedgerConfig = LedgerConfig()
    tls: TlsConfig
    crypto_provider: PeerConfig
    limits: ModelOwnerLimits = ModelOwnerLimits()
    policy: PolicyConfig = PolicyConfig()
    models: tuple[HostedModelConfig, ...] = Field(min_length=1)


class RetryConfig(Table):
    """What is done when a submission is broken off: another attempt on fresh material."""

    attempts: int = Field(
        5, ge=1, le=100, strict=True, description="Attempts for each image; 1 tries no second time."
    )
    first_seconds: Seconds = Field(
        0.5, description="Wait before the second attempt; it doubles with each further one."
    )
    longest_seconds: Seconds = Field(30.0, description="Longest wait before an attempt.")


class DataOwnerConfig(Table):
    """The data owner (clinic): submits images. It opens no port."""

    store: ConfigPath = Field(
        description="Folder for the ledger and fetched models; made with mode 700.",
        examples=["data-owner"],
    )
    model: str = Field(
        min_length=1,
        max_length=200,
        description="Model to use; `radiopaque data-owner models` lists them.",
        examples=["pneumonia-resnet18"],
    )
    version: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Its version. Without it, the newest.",
        examples=["1"],
    )
    engine: EngineName = Field(
        EngineName.COMPILED,
        description="Which engine the model must be offered for. Results of crypten can be wrong; "
        "see docs/crypten-engine.md.",
    )
    device: DeviceName = _device()
    traces: Collector | None = _collector()
    deadline_seconds: Seconds = Field(
        120.0, description="How long one call to another party may take."
    )
    threads: Threads = Field(
        1,
        description="Threads that share a convolution; no more than there are cores.",
    )
    window_bytes: Bytes = Field(
        WINDOW_BYTES,
        description="Memory, of the device, for the material of one inference. What is beyond it "
        "(or beyond the largest layer, if that takes more) is computed while the inference runs.",
    )
    model_bytes: Bytes = Field(
        MODEL_BYTES,
        description="Memory, of the device, for the model, by its plan: weights, values that exist "
        "at one time, and the work on the largest gate. Models that take more are refused.",
    )
    audit_share: float = Field(
        0.0,
        ge=0,
        le=1,
        strict=True,
        description="Probability with which `data-owner prepare` opens a session that it has made "
        "to the vendor, who checks what the crypto provider dealt; the session is gone then.",
        examples=[0.1],
    )
    retry: RetryConfig = RetryConfig()
    tls: TlsConfig
    model_owner: PeerConfig
    crypto_provider: PeerConfig


_CONFIGS: Final[dict[Role, type[Table]]] = {
    Role.CRYPTO_PROVIDER: CryptoProviderConfig,
    Role.MODEL_OWNER: ModelOwnerConfig,
    Role.DATA_OWNER: DataOwnerConfig,
}


def load_crypto_provider(path: Path) -> CryptoProviderConfig:
    """Read a crypto provider's file. Raises ConfigError with every problem in it."""
    return read_file(path, CryptoProviderConfig, Role.CRYPTO_PROVIDER)


def load_model_owner(path: Path) -> ModelOwnerConfig:
    """Read a model owner's file. Raises ConfigError with every problem in it."""
    return read_file(path, ModelOwnerConfig, Role.MODEL_OWNER)


def load_data_owner(path: Path) -> DataOwnerConfig:
    """Read a data owner's file. Raises ConfigError with every problem in it."""
    return read_file(path, DataOwnerConfig, Role.DATA_OWNER)


def example(role: Role) -> str:
    """A commented file for ``role``, with all keys, that loads as it is."""
    return print_example(_CONFIGS[role], role)
