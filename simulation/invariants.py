"""What must hold at every moment, whatever happens. Checked with each commit and each write to the hub.

The numbers are those of docs/simulation.md.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shared.domain.artifact import Artifact, ArtifactState, Stage
from shared.domain.backoff import retry_delay
from shared.domain.lease import WORKER_DIED
from shared.domain.work import MODULE_LABEL
from shared.kube.client import LEASES, MANIFEST_WORKS, MODULES, Resource
from shared.store.port import Facts, Row
from simulation.images import is_signed
from simulation.store import Change
from simulation.store_rows import ARTIFACTS, OUTBOX
from simulation.user import User
from simulation.world import World

WORKING = {ArtifactState.BUILDING, ArtifactState.SIGNING}
PERMISSIONS = "kmm-hub-permissions"

TAKEN_OVER_AT_ONCE = 2
"""How often in a row an artifact may go from a worker that vanished to the next one without a pause."""

PASS_SECONDS = 100.0
"""For how long a dispatcher may act on what it read, frozen and slowed down by the nemesis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """An invariant did not hold."""

    invariant: str
    what: str
    second: float


@dataclass(slots=True)
class Oracle:
    """Watches everything that is written. `breaches` should stay empty."""

    world: World
    user: User
    breaches: list[Breach] = field(default_factory=list)
    writes: int = 0
    tags_set: int = 0
    _holders: dict[tuple[str, int], str] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)
    _failures: dict[str, int] = field(default_factory=dict)
    _taken_over: dict[str, int] = field(default_factory=dict)
    _published: set[str] = field(default_factory=set)
    _heard: dict[str, dict[str, float]] = field(default_factory=dict)

    def watch(self) -> None:
        """From now on."""
        self.world.store.observe = self.committed
        self.world.hub.observe = self.written
        self.world.broker.observe = self._published.add
        self.world.registry.observe = self.tagged

    def committed(self, who: str, began: dt.datetime, changes: list[Change]) -> None:
        """A transaction was committed."""
        for (table, key), before, after in changes:
            if table == Facts.CLUSTERS:
                self._hear(str(key), after)
            if table == ARTIFACTS and before is not None and after is not None:
                self._step(who, began, before, after)
            elif table == OUTBOX and after is None and before is not None:
                self._check(
                    before.message_id in self._published,
                    "S6 an announcement is published before it is forgotten",
                    f"{before.subject} {before.message_id}",
                )

    def _hear(self, cluster: str, row: Row | None) -> None:
        """Since when the hub knows of each kernel that a cluster runs."""
        heard, now = self._heard.get(cluster, {}), self.world.loop.time()
        self._heard[cluster] = {kernel: heard.get(kernel, now) for kernel in (row["kernels"] if row else ())}

    def _step(self, who: str, began: dt.datetime, before: Artifact, after: Artifact) -> None:
        name = (
            f"{after.request.target} ({before.state} to {after.state}, fence {before.fence} to {after.fence})"
        )
        now = self.world.store.now()
        if after.fence != before.fence:
            self._check(after.fence == before.fence + 1, "S2 a fencing number only grows", name)
            if after.state is ArtifactState.UNWANTED:
                self.world.note(f"{after.request.target} is given up")
                return
            self._holders[after.key, after.fence] = who
            self._check(
                before.not_before <= now,
                "S1 an artifact has one holder at a time, and pauses between tries",
                f"{name}: {who} took it {(before.not_before - now).total_seconds():.1f} s early",
            )
            self._count_vanished(name, before)
            self.world.note(f"{who} takes {after.request.target}: {after.state}, attempt {after.attempts}")
        elif before.state in WORKING:
            holder = self._holders.get((before.key, before.fence))
            is_told_again = after.announced > before.announced and after.state is before.state
            # By whoever sees it first, once its lease ran out.
            is_put_back = after.reason == WORKER_DIED and after.state not in WORKING
            is_put_back = is_put_back and after.attempts == before.attempts and before.not_before <= began
            self._check(
                who == holder or is_told_again or is_put_back,
                "S2 who lost its lease changes nothing",
                f"{name}: {who}, not {holder}",
            )
        if after.state is ArtifactState.READY:
            assert after.digest is not None
            self._ready.add(after.digest)
        if before.state != after.state:
            self.world.note(
                f"{after.request.target} is {after.state}{f': {after.reason}' if after.reason else ''}"
            )
        self._count_failure(name, began, before, after)

    def _count_vanished(self, name: str, before: Artifact) -> None:
        """S7, by our own count: what workers vanish over does not go on to the next one for ever."""
        count = self._taken_over.get(before.key, 0) + 1 if before.state in WORKING else 0
        self._taken_over[before.key] = count
        self._check(
            count <= TAKEN_OVER_AT_ONCE,
            "S7 the pauses between failed tries grow",
            f"{name}: {count} workers in a row vanished, and there is no pause",
        )

    def _count_failure(self, name: str, began: dt.datetime, before: Artifact, after: Artifact) -> None:
        """S7, by our own count: the pauses between failures grow."""
        has_failed = before.state in WORKING and after.reason is not None and after.fence == before.fence
        if has_failed and after.state in {ArtifactState.WANTED, ArtifactState.BUILT}:
            is_same_stage = (after.state is Stage.BUILD.waiting) == (before.state is Stage.BUILD.working)
            if not is_same_stage or after.attempts < before.attempts:
                return
            count = self._failures[after.key] = self._failures.get(after.key, 0) + 1
            pause = (after.not_before - began).total_seconds()
            self._check(
                pause >= retry_delay(count, jitter=1.0),
                "S7 the pauses between failed tries grow",
                f"{name}: {pause:.1f} s after {count} failures",
            )
        elif after.state is not before.state and after.state not in WORKING:
            self._failures.pop(after.key, None)

    def written(
        self, resource: Resource, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        """An object of the hub was created, changed or removed."""
        self.writes += resource != LEASES  # the leaders' heartbeat
        if resource == MANIFEST_WORKS and after is not None:
            spec_before = before["spec"] if before else None
            if after["spec"] != spec_before and after["metadata"]["name"] != PERMISSIONS:
                self._work(before, after)
        if resource == MODULES and after is None and before is not None:
            name = before["metadata"]["name"]
            left = [
                work["metadata"]["namespace"]
                for work in self.world.hub.objects(MANIFEST_WORKS)
                if work["metadata"].get("labels", {}).get(MODULE_LABEL) == name
            ]
            self._check(
                not left, "S10 a module goes after its works", f"{name} is gone, works in {left} are not"
            )

    def tagged(self, repository: str, tag: str, digest: str) -> None:
        """A tag was set."""
        self.tags_set += 1
        # Staging tags are no artifact's target. A target that was ever wanted unsigned may get that image late.
        made_for = [one.request for one in self._artifacts() if one.request.target == f"{repository}:{tag}"]
        if made_for and all(request.sign is not None for request in made_for):
            image = f"{repository}@{digest}"
            self._check(
                is_signed(self.world.registry, image),
                "S3 a final tag never stands for an unsigned image",
                image,
            )

    def _artifacts(self) -> Iterator[Artifact]:
        return (row for (table, _), row in self.world.store.rows.items() if table == ARTIFACTS)

    def _work(self, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        name, cluster = after["metadata"]["name"], after["metadata"]["namespace"]
        place = f"work {name} of {cluster}"
        images = images_of(after)
        if not after["spec"].get("workload", {}).get("manifests"):
            return  # somebody's hand
        self._check(
            after["metadata"].get("labels", {}).get(MODULE_LABEL) == name,
            "S9 a work bears its module's label",
            place,
        )
        self._check(self.user.was_selected(name, cluster), "S5 only selected clusters get works", place)
        for kernel, image in images.items():
            digest = image.partition("@")[2]
            self._check(digest.startswith("sha256:"), "S4 works name digests", f"{place}: {image}")
            self._check(
                self.world.registry.has_image(image),
                "S3 images are pushed before works name them",
                f"{place}: {image}",
            )
            self._check(
                digest in self._ready, "S4 a shipped digest is a finished artifact's", f"{place}: {image}"
            )
            module = self.user.modules.get(name)
            if module is not None and module.is_signed and kernel in module.kernels:
                self._check(
                    is_signed(self.world.registry, image),
                    "S3 what is to be signed is",
                    f"{place}: {kernel} {image}",
                )
        self._check_kept(place, before, images)

    def _check_kept(self, place: str, before: dict[str, Any] | None, images: dict[str, str]) -> None:
        """S11: a kernel that a work serves, that the cluster runs, and that is taken, stays served."""
        _, name, _, cluster = place.split()
        module = self.user.modules.get(name)
        if before is None or module is None:
            return
        long_ago = self.world.loop.time() - PASS_SECONDS
        running = {kernel for kernel, since in self._heard.get(cluster, {}).items() if since <= long_ago}
        needed = set(module.kernels) & running
        lost = needed & images_of(before).keys() - images.keys()
        self._check(not lost, "S11 a kernel that works is not taken away", f"{place}: {sorted(lost)}")

    def check(self, holds: bool, invariant: str, what: str) -> None:
        """Note a breach of an invariant that somebody else looked at."""
        self._check(holds, invariant, what)

    def _check(self, holds: bool, invariant: str, what: str) -> None:
        if not holds:
            breach = Breach(invariant=invariant, what=what, second=self.world.loop.time())
            self.breaches.append(breach)
            self.world.note(f"BREACH of {invariant}: {what}")


def images_of(work: dict[str, Any]) -> dict[str, str]:
    """Kernels with their images, of the Module in a work."""
    manifests: Iterable[dict[str, Any]] = work["spec"].get("workload", {}).get("manifests", [])
    return {
        mapping["literal"]: mapping["containerImage"]
        for manifest in manifests
        if manifest.get("kind") == "Module"
        for mapping in manifest["spec"]["moduleLoader"]["container"]["kernelMappings"]
    }
