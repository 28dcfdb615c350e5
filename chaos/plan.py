"""Which faults happen when, and what the user does meanwhile: a pure function of a seed and a count."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from chaos.inputs import (
    LABELS,
    Action,
    AddCluster,
    AddModule,
    ChangeModule,
    DeleteCluster,
    DeleteModule,
    Inputs,
    ModuleKind,
    Relabel,
    SetKernels,
    apply,
)

KERNELS = tuple(f"6.1.0-{number}-amd64" for number in range(20, 26))
CLUSTERS = (3, 7)
"""The fleet keeps between so many clusters …"""
MODULES = (4, 8)
"""… and so many modules."""

PROCESSES = ("streams", "watcher", "dispatcher", "builder-1", "builder-2", "signer-1", "signer-2")
STREAMS = ("KMM_CHANGES", "KMM_BUILDS", "KMM_SIGNATURES")

FIRST_ACTIONS = 9
ACTION_CHANCE = 0.75
GAP_SECONDS = (1.2, 2.8)


class FaultKind(StrEnum):
    """What goes wrong."""

    KILL = "service killed"
    PAUSE = "service stopped past its lease"
    RESTART = "service restarted"
    NATS_KILLED = "NATS killed"
    NATS_WIPED = "NATS wiped"
    STREAM_DELETED = "stream deleted"
    CONSUMER_DELETED = "consumer deleted"
    POSTGRES_RESTARTED = "Postgres restarted"
    POSTGRES_KILLED = "Postgres killed"
    REGISTRY_KILLED = "registry killed"
    API_KILLED = "API server killed"
    ETCD_KILLED = "etcd killed"
    API_409 = "API server answers 409"
    API_410 = "API server answers 410"
    API_429 = "API server answers 429"
    API_500 = "API server answers 500"
    WATCH_CUT = "watches cut every 100 ms"
    WATCH_SILENT = "watches silent"
    REGISTRY_401 = "registry answers 401"
    REGISTRY_404 = "registry answers 404"
    REGISTRY_429 = "registry answers 429"
    REGISTRY_500 = "registry answers 500"
    UPLOAD_SLOW = "uploads slow"
    UPLOAD_CUT = "uploads cut"
    DISK_FULL = "builder's disk full"


SECONDS: dict[FaultKind, tuple[float, float]] = {
    FaultKind.KILL: (0.1, 1.5),
    FaultKind.PAUSE: (4.0, 6.0),
    FaultKind.RESTART: (0.0, 0.0),
    FaultKind.NATS_KILLED: (0.2, 3.0),
    FaultKind.NATS_WIPED: (0.2, 2.0),
    FaultKind.STREAM_DELETED: (0.0, 0.0),
    FaultKind.CONSUMER_DELETED: (0.0, 0.0),
    FaultKind.POSTGRES_RESTARTED: (0.0, 1.0),
    FaultKind.POSTGRES_KILLED: (0.2, 2.0),
    FaultKind.REGISTRY_KILLED: (0.3, 2.5),
    FaultKind.API_KILLED: (0.2, 1.5),
    FaultKind.ETCD_KILLED: (0.2, 1.0),
    FaultKind.WATCH_SILENT: (3.0, 8.0),
    FaultKind.DISK_FULL: (2.0, 5.0),
}
"""How long each kind lasts, in seconds; the others take ANSWER_SECONDS."""

ANSWER_SECONDS = (1.5, 4.0)

WEIGHTS: dict[FaultKind, int] = {FaultKind.KILL: 6, FaultKind.PAUSE: 3, FaultKind.RESTART: 2}
"""How often a kind stands in the deck from which faults are dealt; once by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        number: from 1.
        target: of the process, stream or the like; empty where the kind says it all.
        seconds: from its beginning to its healing.
        gap: seconds from its beginning to that of the next fault; shorter than `seconds` often, so that faults
            overlap.
        actions: what the user does when it begins.
    """

    number: int
    kind: FaultKind
    target: str
    seconds: float
    gap: float
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run.

    Attributes:
        first: what the user does before the first fault.
        inputs: what the user wants in the end.
    """

    seed: int
    first: tuple[Action, ...]
    faults: tuple[Fault, ...]
    inputs: Inputs


def make_plan(seed: int, faults: int) -> Plan:
    """The plan of a seed: the same each time. Every kind occurs once the deck has been dealt through."""
    dice = random.Random(seed)
    user = _User(dice)
    first = user.begin()
    dealt: list[Fault] = []
    deck: list[FaultKind] = []
    for number in range(1, faults + 1):
        if not deck:
            deck = [kind for kind in FaultKind for _ in range(WEIGHTS.get(kind, 1))]
            dice.shuffle(deck)
        kind = deck.pop()
        dealt.append(
            Fault(
                number=number,
                kind=kind,
                target=_target(kind, dice),
                seconds=round(dice.uniform(*SECONDS.get(kind, ANSWER_SECONDS)), 2),
                gap=round(dice.uniform(*GAP_SECONDS), 2),
                actions=user.act(),
            )
        )
    return Plan(seed=seed, first=first, faults=tuple(dealt), inputs=user.inputs)


def _target(kind: FaultKind, dice: random.Random) -> str:
    if kind in {FaultKind.KILL, FaultKind.PAUSE, FaultKind.RESTART}:
        return dice.choice(PROCESSES)
    if kind in {FaultKind.STREAM_DELETED, FaultKind.CONSUMER_DELETED}:
        return dice.choice(STREAMS)
    return ""


class _User:
    """Somebody who keeps changing what they want, within limits."""

    def __init__(self, dice: random.Random) -> None:
        self.inputs = Inputs()
        self._dice = dice
        self._names = 0

    def begin(self) -> tuple[Action, ...]:
        """A first fleet, with one module of each kind."""
        clusters = [self._add_cluster() for _ in range(FIRST_ACTIONS - len(ModuleKind))]
        return (*clusters, *(self._add_module(kind) for kind in ModuleKind))

    def act(self) -> tuple[Action, ...]:
        """Something, or nothing."""
        if self._dice.random() > ACTION_CHANCE:
            return ()
        inputs, dice = self.inputs, self._dice
        choices = ["kernels", "kernels", "kernels", "relabel", "change", "change", "change"]
        choices += ["make again"]
        choices += ["add module"] * 2 if len(inputs.modules) < MODULES[1] else []
        choices += ["delete module"] if len(inputs.modules) > MODULES[0] else []
        choices += ["add cluster"] * 2 if len(inputs.clusters) < CLUSTERS[1] else []
        choices += ["delete cluster"] if len(inputs.clusters) > CLUSTERS[0] else []
        cluster, module = dice.choice(sorted(inputs.clusters)), dice.choice(sorted(inputs.modules))
        match dice.choice(choices):
            case "kernels":
                return (self._do(SetKernels(cluster=cluster, kernels=self._some_kernels())),)
            case "relabel":
                return (self._do(Relabel(cluster=cluster, label=dice.choice(LABELS))),)
            case "change":
                version = inputs.modules[module].version + 1
                return (self._do(ChangeModule(name=module, version=version)),)
            case "make again":
                gone, again = DeleteModule(name=module), inputs.modules[module]
                made = AddModule(name=module, kind=again.kind, select=again.select, version=again.version)
                return (self._do(gone), self._do(made))
            case "add module":
                return (self._add_module(dice.choice(list(ModuleKind))),)
            case "delete module":
                return (self._do(DeleteModule(name=module)),)
            case "add cluster":
                return (self._add_cluster(),)
            case _:
                return (self._do(DeleteCluster(name=cluster)),)

    def _do(self, action: Action) -> Action:
        self.inputs = apply(self.inputs, action)
        return action

    def _add_cluster(self) -> Action:
        self._names += 1
        name, label = f"cluster-{self._names}", self._dice.choice(LABELS)
        return self._do(AddCluster(name=name, label=label, kernels=self._some_kernels()))

    def _add_module(self, kind: ModuleKind) -> Action:
        self._names += 1
        return self._do(
            AddModule(name=f"module-{self._names}", kind=kind, select=self._dice.choice(LABELS), version=1)
        )

    def _some_kernels(self) -> tuple[str, ...]:
        return tuple(sorted(self._dice.sample(KERNELS, self._dice.randint(1, 2))))
