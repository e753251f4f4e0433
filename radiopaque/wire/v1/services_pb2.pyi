from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_START: _ClassVar[Kind]
    KIND_READY: _ClassVar[Kind]
    KIND_CORRECTION: _ClassVar[Kind]
    KIND_OFFLINE: _ClassVar[Kind]
    KIND_IMAGE: _ClassVar[Kind]
    KIND_TOP_BIT: _ClassVar[Kind]
    KIND_OPENING: _ClassVar[Kind]
    KIND_SELECTION: _ClassVar[Kind]
    KIND_DECISION: _ClassVar[Kind]
    KIND_RERANDOMISED: _ClassVar[Kind]
    KIND_RESULT: _ClassVar[Kind]
    KIND_DONE: _ClassVar[Kind]
    KIND_SHARE: _ClassVar[Kind]
    KIND_KEY: _ClassVar[Kind]
    KIND_VERDICT: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_START: Kind
KIND_READY: Kind
KIND_CORRECTION: Kind
KIND_OFFLINE: Kind
KIND_IMAGE: Kind
KIND_TOP_BIT: Kind
KIND_OPENING: Kind
KIND_SELECTION: Kind
KIND_DECISION: Kind
KIND_RERANDOMISED: Kind
KIND_RESULT: Kind
KIND_DONE: Kind
KIND_SHARE: Kind
KIND_KEY: Kind
KIND_VERDICT: Kind

class Frame(_message.Message):
    __slots__ = ("session", "gate", "kind", "block", "payload")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    gate: int
    kind: Kind
    block: int
    payload: bytes
    def __init__(self, session: _Optional[bytes] = ..., gate: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., block: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("plan", "plan_digest", "artefact", "key_b")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    KEY_B_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    plan_digest: bytes
    artefact: bytes
    key_b: bytes
    def __init__(self, plan: _Optional[bytes] = ..., plan_digest: _Optional[bytes] = ..., artefact: _Optional[bytes] = ..., key_b: _Optional[bytes] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("session", "plan_digest", "artefact", "key_d", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    KEY_D_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    plan_digest: bytes
    artefact: bytes
    key_d: bytes
    epoch: bytes
    def __init__(self, session: _Optional[bytes] = ..., plan_digest: _Optional[bytes] = ..., artefact: _Optional[bytes] = ..., key_d: _Optional[bytes] = ..., epoch: _Optional[bytes] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("mark",)
    MARK_FIELD_NUMBER: _ClassVar[int]
    mark: bytes
    def __init__(self, mark: _Optional[bytes] = ...) -> None: ...

class DealRequest(_message.Message):
    __slots__ = ("session", "artefact", "key_o")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    KEY_O_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    artefact: bytes
    key_o: bytes
    def __init__(self, session: _Optional[bytes] = ..., artefact: _Optional[bytes] = ..., key_o: _Optional[bytes] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelEntry]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelEntry, _Mapping]]] = ...) -> None: ...

class ModelEntry(_message.Message):
    __slots__ = ("name", "version", "plan_digest", "artefact")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    plan_digest: bytes
    artefact: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., plan_digest: _Optional[bytes] = ..., artefact: _Optional[bytes] = ...) -> None: ...

class FetchPlanRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class FetchPlanReply(_message.Message):
    __slots__ = ("plan", "plan_digest", "artefact", "weights_digest", "name", "version")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    plan_digest: bytes
    artefact: bytes
    weights_digest: bytes
    name: str
    version: str
    def __init__(self, plan: _Optional[bytes] = ..., plan_digest: _Optional[bytes] = ..., artefact: _Optional[bytes] = ..., weights_digest: _Optional[bytes] = ..., name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class FetchMaskedWeightsRequest(_message.Message):
    __slots__ = ("artefact",)
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    artefact: bytes
    def __init__(self, artefact: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("header", "frame")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    header: PrepareHeader
    frame: Frame
    def __init__(self, header: _Optional[_Union[PrepareHeader, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class PrepareHeader(_message.Message):
    __slots__ = ("session", "plan_digest", "artefact", "binding")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    BINDING_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    plan_digest: bytes
    artefact: bytes
    binding: bytes
    def __init__(self, session: _Optional[bytes] = ..., plan_digest: _Optional[bytes] = ..., artefact: _Optional[bytes] = ..., binding: _Optional[bytes] = ...) -> None: ...

class PrepareReply(_message.Message):
    __slots__ = ("crypto_provider_to_model_owner_bytes", "model_owner_to_crypto_provider_bytes", "dealer_seconds")
    CRYPTO_PROVIDER_TO_MODEL_OWNER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_OWNER_TO_CRYPTO_PROVIDER_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEALER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    crypto_provider_to_model_owner_bytes: int
    model_owner_to_crypto_provider_bytes: int
    dealer_seconds: float
    def __init__(self, crypto_provider_to_model_owner_bytes: _Optional[int] = ..., model_owner_to_crypto_provider_bytes: _Optional[int] = ..., dealer_seconds: _Optional[float] = ...) -> None: ...
