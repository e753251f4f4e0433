"""The closed set of failures that radiopaque reports on purpose.

::

    RadiopaqueError
    ├── ConfigError                  a configuration file or option is wrong
    ├── ModelError                   a model cannot be compiled
    │   ├── ModelFileError           not an ONNX file, external data missing, broken
    │   ├── UnsupportedOpsetError    newer or older than the tested range
    │   ├── UnsupportedModelError    operators or attributes; lists every problem
    │   ├── InvalidWeightsError      NaN or infinite weights
    │   ├── ManifestError            manifest.json is missing, wrong or does not match
    │   └── ModelRangeError          a value does not fit the ring with its margin
    ├── PlanError                    a plan is malformed or breaks a rule
    │   └── PlanDigestError          the plan is not the one that was agreed on
    ├── WeightsFileError             a compiled weights file is malformed
    ├── InputError                   the caller's data are wrong
    │   ├── UnknownServiceError
    │   ├── TensorError              wrong shape, not finite, out of range
    │   └── ImageError               an image cannot be used
    │       ├── NotAnImageError
    │       └── DicomError
    │           ├── NotDicomError
    │           ├── NoPixelDataError
    │           ├── TruncatedPixelDataError
    │           ├── MultiFrameError
    │           └── UnsupportedTransferSyntaxError
    ├── ProtocolError                the peer's message is not the one that is due
    │   ├── MessageSizeError         too short or too long
    │   ├── MessageOrderError        out of order, repeated, from another session
    │   └── MessageValueError        a field is outside its range
    ├── VersionError                 two parties run versions that do not work together
    ├── DealerError                  the crypto provider dealt wrong corrections
    ├── SessionError                 a session cannot be used
    │   ├── UnknownSessionError
    │   ├── SessionStateError        consumed, burnt or not ready
    │   ├── RestoredLedgerError      a ledger is a copy that was put back
    │   └── UnknownModelError
    ├── AccessError                  the peer may not do this
    │   ├── AuthenticationError      no or unusable certificate
    │   └── RoleError                a certificate with another role
    ├── TransportError               the connection failed
    │   ├── PeerUnavailableError
    │   ├── DeadlineError
    │   └── ConnectionLostError
    ├── ResourceError                a limit is reached; try again later
    ├── EngineError                  the worker process of the CrypTen engine failed
    └── StoreError                   a ledger or store cannot be read or written

Every message says what was wrong, with which value, and what to do. None carries a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, TypeVar

_Error = TypeVar("_Error", bound=BaseException)


class RadiopaqueError(Exception):
    """Base of all expected failures.

    ``status`` is the gRPC status code name under which the error crosses the network;
    ``exit_code`` is what the command line exits with.
    """

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1


class ConfigError(RadiopaqueError):
    status = "FAILED_PRECONDITION"
    exit_code = 2


class ModelError(RadiopaqueError):
    status = "INVALID_ARGUMENT"
    exit_code = 3


class ModelFileError(ModelError):
    pass


class UnsupportedOpsetError(ModelError):
    pass


class UnsupportedModelError(ModelError):
    """All the reasons at once why a model cannot be compiled; ``problems`` has one line each.

    ``hint`` is a last line, on what might be done with the model as it is.
    """

    def __init__(self, problems: Iterable[str], hint: str = "") -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        text = f"this model cannot be compiled, {count} problem(s):\n{lines}"
        super().__init__(f"{text}\n{hint}" if hint else text)


class InvalidWeightsError(ModelError):
    pass


class ManifestError(ModelError):
    pass


class ModelRangeError(ModelError):
    pass


class PlanError(RadiopaqueError):
    status = "INVALID_ARGUMENT"
    exit_code = 3


class PlanDigestError(PlanError):
    status = "FAILED_PRECONDITION"


class WeightsFileError(RadiopaqueError):
    status = "INVALID_ARGUMENT"
    exit_code = 3


class InputError(RadiopaqueError):
    status = "INVALID_ARGUMENT"
    exit_code = 4


class UnknownServiceError(InputError):
    status = "NOT_FOUND"


class TensorError(InputError):
    pass


class ImageError(InputError):
    pass


class NotAnImageError(ImageError):
    pass


class DicomError(ImageError):
    pass


class NotDicomError(DicomError):
    pass


class NoPixelDataError(DicomError):
    pass


class TruncatedPixelDataError(DicomError):
    pass


class MultiFrameError(DicomError):
    pass


class UnsupportedTransferSyntaxError(DicomError):
    pass


class ProtocolError(RadiopaqueError):
    status = "ABORTED"
    exit_code = 5


class MessageSizeError(ProtocolError):
    pass


class MessageOrderError(ProtocolError):
    pass


class MessageValueError(ProtocolError):
    pass


class VersionError(RadiopaqueError):
    status = "FAILED_PRECONDITION"
    exit_code = 5


class DealerError(RadiopaqueError):
    """Results of this crypto provider cannot be relied on: docs/operations.md, dealer audit."""

    status = "ABORTED"
    exit_code = 10


class SessionError(RadiopaqueError):
    status = "FAILED_PRECONDITION"
    exit_code = 5


class UnknownSessionError(SessionError):
    status = "NOT_FOUND"


class SessionStateError(SessionError):
    pass


class RestoredLedgerError(SessionError):
    pass


class UnknownModelError(SessionError):
    status = "NOT_FOUND"


class AccessError(RadiopaqueError):
    status = "PERMISSION_DENIED"
    exit_code = 6


class AuthenticationError(AccessError):
    status = "UNAUTHENTICATED"


class RoleError(AccessError):
    pass


class TransportError(RadiopaqueError):
    status = "UNAVAILABLE"
    exit_code = 7


class PeerUnavailableError(TransportError):
    pass


class DeadlineError(TransportError):
    status = "DEADLINE_EXCEEDED"


class ConnectionLostError(TransportError):
    pass


class ResourceError(RadiopaqueError):
    """A limit is reached. ``retry_seconds``: before that, another try is in vain; None: unknown."""

    status = "RESOURCE_EXHAUSTED"
    exit_code = 7

    def __init__(self, text: str, retry_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


class EngineError(RadiopaqueError):
    status = "INTERNAL"
    exit_code = 5


class StoreError(RadiopaqueError):
    status = "INTERNAL"
    exit_code = 8


class ModelCardWarning(UserWarning):
    """The image lies outside what the model card says the model was made for."""


def without_traceback(error: _Error) -> _Error:
    """A copy, for whoever keeps an error or raises one that is kept.

    A traceback refers to every caller's variables. Where one of these has the error again, all of
    them, with the arrays of a whole session, would stay in memory until Python looks for cycles.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.__dict__.update(error.__dict__)
    return copied
