"""What a vendor grants: who may use its models, how often, and how much each result reveals.

Against the extraction of a model by its clinics (docs/protocol.md, section 1, the row of a
deviating data owner): every result is a value of the function, and errors that a clinic injects
steer it. The model owner never sees a result, only which bits of a masked value it sends; so what
a result reveals is fixed by the plan's output, and a policy refuses to host plans that reveal more.

Images are counted with the start of their inference, in one change of the ledger, before its first
message leaves and whatever becomes of it: an interrupted one may have revealed its result, and what
was counted must not depend on that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from model_owner.hosting import HostedModel
from radiopaque.certificates import PeerIdentity
from radiopaque.engine.plans import check_revealed
from radiopaque.errors import AccessError, ResourceError
from radiopaque.ledger.quotas import Charge, duration
from radiopaque.transport.grpc_server import Handler


@dataclass(frozen=True)
class Rules:
    """One vendor's policy; None: no bound.

    ``clinics`` are the names in the certificates of those that may call; ``images`` may be
    classified for each of them in any ``period_seconds``; ``output_bits`` of each output may be
    revealed at most, and with ``labels_only`` no score at all.
    """

    clinics: Collection[str] | None = None
    images: int | None = None
    period_seconds: float = 86_400.0
    output_bits: int | None = None
    labels_only: bool = False

    def check_outputs(self, models: Iterable[HostedModel]) -> None:
        """Raises ConfigError for the first model that reveals more than these rules allow."""
        for model in models:
            named = f"{model.name} {model.version}"
            check_revealed(model.host.plan, named, self.output_bits, self.labels_only)


class Policy:
    """The rules of one model owner; its ledger counts what each clinic has used."""

    def __init__(self, rules: Rules, clock: Callable[[], float] = time.time) -> None:
        self._rules = rules
        self._clock = clock

    def guarded(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """A service's table, for the admitted clinics alone."""
        return {name: replace(handler, admit=self.admit) for name, handler in handlers.items()}

    def admit(self, clinic: PeerIdentity) -> None:
        """Raises AccessError for a clinic that is not on the list."""
        if self._rules.clinics is not None and clinic.name not in self._rules.clinics:
            raise AccessError(
                f"the clinic {clinic.name!r} is not on this model owner's list; ask the vendor to "
                "admit it by the name in its certificate"
            )

    def charge(self, images: int) -> Charge | None:
        """What an inference on so many images costs its clinic; None where nothing is counted.

        Raises ResourceError where no clinic may have so many.
        """
        if self._rules.images is None:
            return None
        quota, period = self._rules.images, self._rules.period_seconds
        if images > quota:
            raise ResourceError(
                f"an inference on {images} images is over the quota of {quota} in "
                f"{duration(period)}; use a plan with a smaller batch, or ask the vendor"
            )
        return Charge(images, quota, period, self._clock())
