"""What must be true once nothing goes wrong any more, told from what the user wants and not by the services' code."""

from __future__ import annotations

from typing import Any

from shared.domain.artifact import Artifact
from shared.domain.work import MODULE_LABEL
from shared.kube.client import MANIFEST_WORKS, MODULES
from simulation.images import is_signed
from simulation.invariants import PERMISSIONS, images_of
from simulation.store_rows import ARTIFACTS, DEAD_LETTERS, OUTBOX
from simulation.user import Making, User, WantedCluster, WantedModule
from simulation.world import World


def unmet(world: World, user: User) -> list[str]:
    """What is not yet as it should be; empty once everything converged."""
    works = {
        (work["metadata"]["name"], work["metadata"]["namespace"]): work
        for work in world.hub.objects(MANIFEST_WORKS)
        if work["metadata"]["name"] != PERMISSIONS
    }
    wanted = {
        (module.name, cluster.name)
        for module in user.modules.values()
        for cluster in user.clusters.values()
        if module.label == cluster.label
    }
    missing = [
        problem
        for name, cluster in sorted(wanted)
        for problem in _work(
            world, user, user.modules[name], user.clusters[cluster], works.get((name, cluster))
        )
    ]
    stray = [f"work {name} of {cluster} should be gone" for name, cluster in sorted(works.keys() - wanted)]
    buried = [
        letter for letter in world.store.table(DEAD_LETTERS).values() if letter.payload not in world.poison
    ]
    stray += [f"a good message died: {letter.subject}: {letter.cause}" for letter in buried]
    waiting = world.store.table(OUTBOX)
    return (
        missing + stray + _modules(world, user) + [f"{len(waiting)} announcements wait" for _ in waiting][:1]
    )


def _work(
    world: World, user: User, module: WantedModule, cluster: WantedCluster, work: dict[str, Any] | None
) -> list[str]:
    needed = set(module.kernels) & set(cluster.kernels or ())
    place = f"work {module.name} of {cluster.name}"
    if not needed:
        return []  # a work that is posted stays, because no mapping takes any kernel
    if work is None:
        return [f"{place} is missing"]
    images = images_of(work)
    if images.keys() != needed:
        return [f"{place} serves {sorted(images)}, not {sorted(needed)}"]
    problems = []
    if work["metadata"]["labels"].get(MODULE_LABEL) != module.name:
        problems.append(f"{place} lacks its label")
    for kernel, image in sorted(images.items()):
        newest = _newest(world, user, module, kernel)
        if image.partition("@")[2] not in newest:
            problems.append(f"{place} ships {image} for {kernel}, not one of {sorted(newest)}")
        if module.is_signed and not is_signed(world.registry, image):
            problems.append(f"{place} ships {image}, which is not signed")
    return problems


def _newest(world: World, user: User, module: WantedModule, kernel: str) -> set[str]:
    """Digests that a kernel may be served with: of images made from what the module says now.

    Not what the tag stands for: a build that nobody needs any more may have moved it after the newest one.
    """
    if module.making is Making.PUSHED:
        return {user.pushed[module.image(kernel)]}
    made: list[Artifact] = [
        artifact
        for artifact in world.store.table(ARTIFACTS).values()
        if artifact.request.target == module.image(kernel)
    ]
    return {
        artifact.digest
        for artifact in made
        if artifact.digest
        and (artifact.request.sign is not None) == module.is_signed
        and (artifact.request.build is None or ("N", str(module.argument)) in artifact.request.build.args)
        and (artifact.request.build is None or "RUN false" not in artifact.request.build.dockerfile)
    }


def _modules(world: World, user: User) -> list[str]:
    problems = []
    there = {module["metadata"]["name"]: module for module in world.hub.objects(MODULES)}
    problems += [f"module {name} should be gone" for name in sorted(there.keys() - user.modules.keys())]
    for name in sorted(user.modules.keys() & there.keys()):
        status = there[name].get("status") or {}
        if status.get("observedGeneration") != there[name]["metadata"]["generation"]:
            problems.append(f"module {name}: its status is of another generation")
        conditions = {one["type"]: one for one in status.get("conditions", [])}
        ready = conditions.get("Ready")
        is_whole = any(
            set(user.modules[name].kernels) & set(cluster.kernels or ())
            for cluster in user.clusters.values()
            if cluster.label == user.modules[name].label
        )
        if ready is None or not ready.get("reason"):
            problems.append(f"module {name} has no condition Ready with a reason")
        elif ready["status"] != "True" and is_whole and ready["reason"] != "NoMatchingKernel":
            problems.append(f"module {name} is not Ready: {ready['reason']}: {ready['message']}")
    return problems
