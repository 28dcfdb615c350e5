"""The oracle on artifacts whose workers vanish: who may put them back, when, and how often one may go round."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

from shared.domain import lease as rules
from shared.domain.artifact import Artifact, ArtifactRequest, Stage
from shared.domain.kernel import KernelVersion
from simulation.invariants import Oracle
from simulation.loop import SimulationLoop
from simulation.run import simulate
from simulation.store_rows import ARTIFACTS
from simulation.user import User
from simulation.world import World

LEASE = dt.timedelta(seconds=30)


class Play:
    """Steps of one artifact, told to an oracle as commits of somebody, at the moments at which they are due."""

    def __init__(self, loop: SimulationLoop) -> None:
        self.world = World(loop)
        self.oracle = Oracle(self.world, User(self.world, self.world.chance("user")))
        request = ArtifactRequest(
            target="r.example/m:1", kernel=KernelVersion("6.1.0-1-amd64"), architecture="amd64"
        )
        self.artifact = rules.new(request, now=self.world.store.now() - LEASE)

    def commit(self, who: str, after: Artifact | None, *, began: dt.datetime | None = None) -> None:
        assert after is not None
        change = ((ARTIFACTS, after.key), self.artifact, after)
        self.oracle.committed(who, began or self.world.store.now(), [change])
        self.artifact = after

    def vanish(self, who: str) -> None:
        """Somebody takes it with a lease that ran out long ago."""
        before = self.world.store.now() - 2 * LEASE
        artifact = replace(self.artifact, not_before=before)
        if artifact.state is Stage.BUILD.working:  # as a rule without an end would have it
            artifact = replace(artifact, attempts=1)
        step = rules.take(artifact, Stage.BUILD, owner=who, seconds=LEASE.total_seconds(), now=before)
        assert step is not None
        self.commit(who, step[0])

    def breaches(self) -> list[str]:
        return [one.invariant[:2] for one in self.oracle.breaches]


def played(play: Callable[[Play], None]) -> list[str]:
    async def main(loop: SimulationLoop) -> list[str]:
        told = Play(loop)
        play(told)
        return told.breaches()

    return simulate(main, seed=1)


def put_back(play: Play, *, by: str, at: dt.datetime) -> None:
    worn = replace(play.artifact, attempts=3)
    play.artifact = worn
    play.commit(by, rules.put_back(worn, jitter=0, now=max(at, worn.not_before)), began=at)


def test_whoever_sees_it_may_put_it_back_once_the_lease_ran_out() -> None:
    def play(told: Play) -> None:
        told.vanish("builder-a")
        put_back(told, by="dispatcher-a", at=told.world.store.now())

    assert played(play) == []


def test_it_is_a_breach_while_the_lease_holds() -> None:
    def play(told: Play) -> None:
        told.vanish("builder-a")
        put_back(told, by="dispatcher-a", at=told.artifact.not_before - dt.timedelta(seconds=1))

    assert "S2" in played(play)


def test_a_third_worker_that_vanishes_must_not_be_followed_at_once() -> None:
    def play(told: Play, *, times: int) -> None:
        for number in range(times):
            told.vanish(f"builder-{number}")

    assert played(lambda told: play(told, times=3)) == []
    assert played(lambda told: play(told, times=4)) == ["S7"]
