"""What a hospital runs: its images, its keys, its privacy, and the run that it has agreed to."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from torch import nn

from training.config import TrainingSettings
from training.data import CLASSES, DataError, index_folder
from training.errors import (
    BudgetSpentError,
    DisagreementError,
    DivergedError,
    RefusedMessageError,
    RepeatedRoundError,
    SettingsError,
    TooFewSitesError,
    TrainingError,
)
from training.federated import build_network, build_site, open_budget
from training.flower.figures import shared_figures
from training.flower.keys import load_identity, load_node
from training.flower.members import Members, load_members
from training.flower.replies import END, Status
from training.flower.settings import (
    SiteFile,
    agreement,
    differences,
    load_run,
    load_site,
    settings_of,
    threshold_of,
)
from training.flower.supernode import SuperNode
from training.intake import Cohort, find_root, read_images
from training.journal import Journal
from training.member import Member, Terms
from training.opening import Opening, opening_bytes
from training.progress import Watch, unwatched
from training.secagg.context import Kind
from training.secagg.dialogue import kind_of
from training.site import Site, SiteUpdate, Weights, flatten, shared_names, weights_of

Report = Callable[[str], None]

_SHOWN_SKIPPED = 5
_STATUS = (
    (BudgetSpentError, Status.SPENT),
    (DivergedError, Status.DIVERGED),
    (DisagreementError, Status.DISAGREES),
    (RepeatedRoundError, Status.REPEATED),
    (RefusedMessageError, Status.REFUSED),
    (TooFewSitesError, Status.REFUSED),
    (TrainingError, Status.FAILED),
)


def join(config: Path, report: Report, only_check: bool = False, watch: Watch = unwatched) -> None:
    """Take part in a run until it is over. With `only_check`, look whether that would work.

    Raises:
        SettingsError: something of the site's own is wrong, or the coordinator is not the pinned
            one.
        BudgetSpentError: the site's privacy budget does not allow a single round.
    """
    site = load_site(config)
    members = load_members(site.members)
    identity, node = _own_keys(site, members)
    run = load_run(site.run, members)
    settings = settings_of(site, run)
    torch.set_num_threads(settings.threads)
    agreed = agreement(members, run)
    for line in _describe(site, members, settings, agreed):
        report(line)
    cohort = _images(site, settings, report, watch)
    if settings.privacy is not None:
        for line in _describe_budget(site.name, settings):
            report(line)
    with _locked(site.state):
        model = build_network(settings)
        host = Host(
            _Reporting(build_site(site.name, cohort, settings, watch), settings, report),
            model,
            identity,
            Terms(members.pins(), threshold_of(run), settings.training.rounds, agreed),
            Journal(site.state / f"{hashlib.sha256(agreed).hexdigest()[:16]}.json"),
            settings,
            report,
        )
        longest = 1 + opening_bytes(len(flatten(weights_of(model), shared_names(model))))
        entry = members.coordinator
        supernode = SuperNode(entry.address, entry.certificate, node, longest, report, site.proxy)
        if only_check:
            supernode.check()
            report("everything is in place; start without --check to take part")
        else:
            unreadable = bytes([Status.REFUSED])
            supernode.serve(host.reply, lambda: host.finished, unreadable)


class Host:
    """Answers the coordinator's questions, and says on the screen what it does."""

    def __init__(
        self,
        site: Site,
        model: nn.Module,
        key: Ed25519PrivateKey,
        terms: Terms,
        journal: Journal,
        settings: TrainingSettings,
        report: Report,
    ) -> None:
        self._name = site.name
        self._agreed = terms.agreement
        self._rounds = terms.rounds
        self._settings = settings
        self._report = report
        self._member = Member(
            site, model, key, terms, journal, shared=self._shared, check=self._check
        )
        self._told: list[str] = []
        self.finished = False

    def reply(self, question: bytes) -> bytes:
        """Answer, or say by a number why not; the reason in words is for this site's screen."""
        if question == END:
            self.finished = True
            self._report("the coordinator has ended the run")
            return bytes([Status.ANSWER])
        try:
            answer = self._member.answer(question)
        except TrainingError as error:
            self._explain(error, question)
            return bytes([next(s for kind, s in _STATUS if isinstance(error, kind))])
        self._told = []
        self._say(kind_of(question))
        return bytes([Status.ANSWER]) + answer

    def _shared(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return shared_figures(metrics, self._settings.privacy)

    def _check(self) -> None:
        if self._settings.privacy is not None:
            open_budget(self._name, self._settings)

    def _explain(self, error: TrainingError, question: bytes) -> None:
        """Say why not, once: the coordinator asks again and again."""
        lines = [f"{type(error).__name__}: {error}"]
        if isinstance(error, DisagreementError):
            theirs = Opening.agreement_in(question[1:])
            lines += [f"  {line}" for line in differences(self._agreed, theirs)]
        if lines != self._told:
            for line in lines:
                self._report(line)
        self._told = lines

    def _say(self, kind: Kind) -> None:
        number = self._member.number
        if kind == Kind.MASKED and number is not None:
            self._report(f"round {number + 1}/{self._rounds}: the masked update is on its way")


class _Reporting:
    """A site that says what its training came to, here and nowhere else."""

    def __init__(self, site: Site, settings: TrainingSettings, report: Report) -> None:
        self.name, self.samples = site.name, site.samples
        self._site = site
        self._rounds = settings.training.rounds
        self._report = report
        self._number = 0

    def begin(self, number: int, rounds: int) -> None:
        self._number = number
        self._report(f"round {number + 1}/{rounds}: training")
        self._site.begin(number, rounds)

    def step(self, model: nn.Module, weights: Weights) -> SiteUpdate:
        started = time.monotonic()
        made = self._site.step(model, weights)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in made.metrics.items())
        self._report(
            f"round {self._number + 1}/{self._rounds}: trained in "
            f"{time.monotonic() - started:.1f} s  {figures}"
        )
        return made


def _own_keys(
    site: SiteFile, members: Members
) -> tuple[Ed25519PrivateKey, EllipticCurvePrivateKey]:
    if site.name not in members.sites:
        raise SettingsError(
            f"{site.members} has no site {site.name!r}; it has {', '.join(sorted(members.sites))}"
        )
    identity, node = load_identity(site.keys), load_node(site.keys)
    entry = members.sites[site.name]
    der = node.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = (identity.public_key().public_bytes_raw().hex(), base64.b64encode(der).decode())
    if own != (entry.identity, entry.node):
        raise SettingsError(
            f"the keys in {site.keys} are not those that {site.members} has for {site.name!r}; "
            "restore the folder, or have a new list of members made"
        )
    return identity, node


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from answering for the same site."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(
            f"the folder {folder} cannot be used ({error.strerror}); it keeps what must not be "
            "forgotten between rounds"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise SettingsError(
            f"another radiopaque federation join is at work in {folder}; stop it first"
        ) from error
    try:
        yield
    finally:
        os.close(handle)


def _images(site: SiteFile, settings: TrainingSettings, report: Report, watch: Watch) -> Cohort:
    """All images of the site's training folder: no site gives up any for validation."""
    folder = find_root(site.data) / "train"
    try:
        samples = index_folder(folder)
    except DataError as error:
        raise SettingsError(str(error)) from error
    cohort, skipped = read_images(samples, settings.data, watch)
    for message in skipped[:_SHOWN_SKIPPED]:
        report(f"skipped: {message}")
    if skipped:
        report(f"{len(skipped)} unreadable images skipped")
    counts = Counter(sample.label for sample in cohort.samples)
    by_class = ", ".join(f"{counts[label]} {title}" for label, title in enumerate(CLASSES))
    report(f"{len(cohort.samples)} images to train on ({by_class})")
    return cohort


def _describe(
    site: SiteFile, members: Members, settings: TrainingSettings, agreed: bytes
) -> list[str]:
    steps = settings.training.local_steps or "all"
    return [
        f"{site.name} in {members.name}: {len(members.sites)} sites, at least "
        f"{threshold_of(settings)} in a round",
        f"fingerprint of the members: {members.fingerprint()}",
        f"run {hashlib.sha256(agreed).hexdigest()[:16]}: {settings.model.name}, "
        f"{settings.training.rounds} rounds of {steps} steps",
    ]


def _describe_budget(name: str, settings: TrainingSettings) -> list[str]:
    budget = open_budget(name, settings)
    privacy = settings.privacy
    if privacy is None:
        return []
    each = settings.training.local_steps
    wanted = settings.training.rounds * each
    steps = budget.remaining(privacy.noise_multiplier, privacy.sample_rate, wanted)
    spent = budget.spent()
    lines = [
        f"privacy: epsilon at most {privacy.epsilon:g} at delta {privacy.delta:g} "
        f"({privacy.accountant}), {spent.epsilon_prv:.3f} spent (PRV); noise "
        f"{privacy.noise_multiplier:g}, clip {privacy.clip_norm:g}, rate {privacy.sample_rate:g}"
    ]
    if steps < wanted:
        lines.append(
            f"the budget allows {steps // each} of the {settings.training.rounds} rounds; after "
            "them this site takes no more part"
        )
    return lines
