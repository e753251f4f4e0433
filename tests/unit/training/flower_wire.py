"""A coordinator and hospitals on a wire of function calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tests.unit.training.hospitals import NAMES, Hospitals
from training.federated import build_network, build_site
from training.flower import join
from training.flower.coordinate import Request, Rounds, Session
from training.flower.join import Host
from training.flower.settings import agreement, load_run, load_site, settings_of, threshold_of
from training.flower.superlink import Reply
from training.journal import Journal
from training.member import Terms
from training.rounds import RoundResult
from training.secagg.context import Kind
from training.site import Site, flatten, shared_names, weights_of

torch.set_num_threads(1)


def site_of(hospitals: Hospitals, name: str) -> Site:
    site = load_site(hospitals.site(name))
    settings = settings_of(site, load_run(site.run, hospitals.members))
    return build_site(name, join._images(site, settings, lambda line: None, watch), settings)


def watch(what: str, done: int, total: int) -> None:
    pass


class Wire:
    """Stands for the SuperLink: asks hosts by calling them. `drop` loses messages, once each."""

    def __init__(self, hospitals: Hospitals) -> None:
        self.hospitals = hospitals
        self.lines: dict[str, list[str]] = {name: [] for name in NAMES}
        self.hosts = {name: self.host(name) for name in NAMES}
        self.drop: set[tuple[str, Kind]] = set()
        self.say: dict[str, bytes] = {}
        self.present = set(NAMES)
        self.asked: list[tuple[str, int]] = []

    def host(self, name: str, change: Callable[[Site], Site] = lambda site: site) -> Host:
        members = self.hospitals.members
        site = load_site(self.hospitals.site(name))
        settings = settings_of(site, load_run(site.run, members))
        agreed = agreement(members, settings)
        return Host(
            join._Reporting(
                change(site_of(self.hospitals, name)), settings, self.lines[name].append
            ),
            build_network(settings),
            join._own_keys(site, members)[0],
            Terms(members.pins(), threshold_of(settings), settings.training.rounds, agreed),
            Journal(site.state / "journal.json"),
            settings,
            self.lines[name].append,
        )

    def online(self) -> set[str]:
        return self.present

    def ask(self, questions: Mapping[str, bytes], longest: int, seconds: float) -> Iterator[Reply]:
        for name, question in questions.items():
            self.asked.append((name, question[0]))
            key = (name, Kind(question[0]))
            if key in self.drop:
                self.drop.remove(key)
                yield Reply(name, None, "lost its connection")
                continue
            reply = self.say.pop(name, None) or self.hosts[name].reply(question)
            assert len(reply) <= longest
            yield Reply(name, reply)


class Run:
    """A coordinator on a wire."""

    def __init__(self, hospitals: Hospitals, wire: Wire, **options: Any) -> None:
        members = hospitals.members
        self.settings = load_run(hospitals.run, members)
        self.agreed = agreement(members, self.settings)
        self.model = build_network(self.settings)
        self.output = hospitals.root / "output"
        self.session = Session(self.output / "session.json", self.agreed, False)
        self.lines: list[str] = []
        request = Request(
            hospitals.run,
            hospitals.members_file,
            hospitals.coordinator_keys,
            self.output,
            **options,
        )
        self.rounds = Rounds(
            wire,  # type: ignore[arg-type]
            members,
            self.settings,
            self.agreed,
            self.session,
            self.model,
            request,
            self.lines.append,
        )
        self.weights = weights_of(self.model)

    def play(self, number: int, names: tuple[str, ...] = NAMES) -> RoundResult:
        result = self.rounds.play(number, names, self.weights)
        self.weights = dict(result.weights)
        return result

    def flat(self) -> np.ndarray:
        return flatten(self.weights, shared_names(self.model))
