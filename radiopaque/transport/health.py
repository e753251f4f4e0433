"""grpc.health.v1: whether a party serves, asked over the same port with the same certificates.

``Check`` alone: a ``Watch`` would hold one of the server's calls for as long as its caller likes.
Any role may ask, and any version, so that an operator can tell a party that is down from one that
has to be upgraded. A name other than the party's own service is not known here, as the
specification has it.

Source: the gRPC health checking protocol, messages from ``grpcio-health-checking``.
"""

from __future__ import annotations

from typing import Any, Final

from grpc_health.v1 import health_pb2

from radiopaque.errors import UnknownServiceError

SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
Request: Final = health_pb2.HealthCheckRequest
Reply: Final = health_pb2.HealthCheckResponse


class Health:
    """The state of one server; ``serving`` is set to False when it begins to stop."""

    def __init__(self, service: str) -> None:
        self.serving = True
        self._names = ("", service)

    def check(self, request: Any, _: object) -> Any:
        """SERVING or NOT_SERVING. Raises UnknownServiceError for another service's name."""
        if request.service not in self._names:
            raise UnknownServiceError(
                f"there is no service of that name here; ask for {self._names[1]}, or for none"
            )
        return Reply(status=Reply.SERVING if self.serving else Reply.NOT_SERVING)
