"""From clusters and modules to works: which image a kernel gets, and what is said where none can be had."""

import asyncio
from collections.abc import Sequence

import pytest
from fleet import Fleet, served
from running_services import eventually
from services_fixtures import fleet

from shared.kube.client import CONFIG_MAPS
from shared.kube.errors import Refused

__all__ = ["fleet"]  # a fixture

pytestmark = pytest.mark.integration

KERNEL = "6.1.0-13-amd64"


async def one_cluster(fleet: Fleet, name: str, kernels: Sequence[str] = (KERNEL,)) -> str:
    cluster = f"{name}-c"
    await fleet.add_cluster(cluster, label=name, kernels=kernels)
    return cluster


async def test_literals_and_patterns_become_literals_with_digests(fleet: Fleet) -> None:
    name, other = fleet.new_name(), "5.14.0-427.13.1.el9_4.x86_64"
    literal, pattern = await fleet.push(name, "by-literal"), await fleet.push(name, other)
    cluster = await one_cluster(fleet, name, [KERNEL, other])
    mappings = [
        {"regexp": r"^5\.\d+\..*el9", "containerImage": fleet.image(name)},
        {"literal": KERNEL, "containerImage": fleet.image(name, "by-literal")},
        {"regexp": ".*", "containerImage": fleet.image(name, "never")},
    ]
    await fleet.add_module(name, mappings=mappings)

    repository = fleet.image(name).partition(":$")[0]
    work = await fleet.serves(
        cluster, name, {KERNEL: f"{repository}@{literal}", other: f"{repository}@{pattern}"}
    )
    await fleet.ready(name)
    manifest = work["spec"]["workload"]["manifests"][0]
    assert (manifest["kind"], manifest["metadata"]) == ("Module", {"name": name, "namespace": "kmm"})
    assert not {"build", "sign"} & set(manifest["spec"]["moduleLoader"]["container"])


async def test_a_plus_inside_stays_and_one_at_the_end_is_cut(fleet: Fleet) -> None:
    name = fleet.new_name()
    inside = await fleet.push(name, "6.1.0_rt-amd64")
    trailing = await fleet.push(name, "6.6.1")
    cluster = await one_cluster(fleet, name, ["6.1.0+rt-amd64", "6.6.1+"])
    await fleet.add_module(name)

    repository = fleet.image(name).partition(":$")[0]
    await fleet.serves(
        cluster, name, {"6.1.0+rt-amd64": f"{repository}@{inside}", "6.6.1": f"{repository}@{trailing}"}
    )


async def test_two_modules_and_three_clusters_share_one_artifact(fleet: Fleet) -> None:
    name, twin = fleet.new_name(), fleet.new_name()
    await fleet.push(name, KERNEL)
    for number in range(3):
        await fleet.add_cluster(f"{name}-{number}", label=name, kernels=[KERNEL])
    mappings = [{"regexp": ".+", "containerImage": fleet.image(name)}]
    await fleet.add_module(name, mappings=mappings)
    await fleet.add_module(twin, select=name, mappings=mappings)

    works = [await fleet.posted(f"{name}-{number}", module) for number in range(3) for module in (name, twin)]

    assert len({served(work)[KERNEL] for work in works}) == 1
    rows = await fleet.database.fetch(
        "SELECT state, fence FROM artifacts WHERE target = $1", fleet.image(name, KERNEL)
    )
    assert [(row["state"], row["fence"]) for row in rows] == [("ready", 1)]


async def test_an_image_that_is_missing_is_waited_for_while_another_module_goes_on(fleet: Fleet) -> None:
    name, fine = fleet.new_name(), fleet.new_name()
    cluster = await one_cluster(fleet, name)
    await fleet.add_module(name)
    message = await fleet.shows(name, "Degraded", "True", "ImageMissing")
    assert fleet.image(name, KERNEL) in message
    await fleet.shows(name, "Ready", "False", "ImageMissing")
    await fleet.push(fine, KERNEL)
    await fleet.add_module(fine, select=name)
    await fleet.posted(cluster, fine)
    assert await fleet.work(cluster, name) is None

    await fleet.push(name, KERNEL)

    await fleet.posted(cluster, name)
    await fleet.ready(name)


async def test_a_kernel_without_a_mapping_is_named(fleet: Fleet) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    cluster = await one_cluster(fleet, name, [KERNEL, "4.18.0-1.el8.x86_64"])
    stranger = f"{name}-stranger"
    await fleet.add_cluster(stranger, label=name, kernels=["4.18.0-1.el8.x86_64"])
    await fleet.add_module(name, mappings=[{"regexp": r"^6\.", "containerImage": fleet.image(name)}])

    work = await fleet.posted(cluster, name)

    assert set(served(work)) == {KERNEL}
    message = await fleet.shows(name, "Degraded", "True", "NoMatchingKernel")
    assert "4.18.0-1.el8.x86_64" in message
    assert stranger in await fleet.shows(name, "Dispatched", "False", "NoMatchingKernel")
    assert await fleet.work(stranger, name) is None


async def test_a_pattern_that_re2_does_not_know_is_refused_and_a_good_one_goes_on(fleet: Fleet) -> None:
    name = fleet.new_name()
    await fleet.push(name, KERNEL)
    cluster = await one_cluster(fleet, name)
    with pytest.raises(Refused, match="RE2"):
        await fleet.add_module(name, mappings=[{"regexp": "^(?!5)", "containerImage": fleet.image(name)}])
    await fleet.add_module(name, mappings=[{"regexp": "^6", "containerImage": fleet.image(name)}])
    await fleet.ready(name)
    before = await fleet.posted(cluster, name)

    with pytest.raises(Refused, match="RE2"):
        await fleet.change_module(
            name, kernelMappings=[{"regexp": "(6)\\1", "containerImage": fleet.image(name)}]
        )

    assert await fleet.work(cluster, name) == before


async def test_a_config_map_that_is_missing_or_has_no_dockerfile_is_named_and_a_good_one_is_built(
    fleet: Fleet,
) -> None:
    name = fleet.new_name()
    cluster = await one_cluster(fleet, name)
    await fleet.add_module(name, build={"dockerfileConfigMap": {"name": f"{name}-recipe"}})
    assert f"{name}-recipe" in await fleet.shows(name, "Degraded", "True", "ConfigMapMissing")

    await fleet.add_config_map(f"{name}-recipe", {"Dockerfile": "FROM scratch"})
    assert f"{name}-recipe" in await fleet.shows(name, "Degraded", "True", "DockerfileMissing")

    await set_dockerfile(
        fleet, f"{name}-recipe", "FROM scratch\nARG KERNEL_VERSION\nLABEL kernel=$KERNEL_VERSION\n"
    )
    first = served(await fleet.posted(cluster, name, seconds=60))
    await fleet.ready(name)

    await set_dockerfile(fleet, f"{name}-recipe", "FROM scratch\nLABEL kernel=other\n")

    async def is_replaced() -> bool:
        work = await fleet.work(cluster, name)
        return work is not None and served(work) != first

    await eventually(is_replaced, what="the changed Dockerfile's image is dispatched", seconds=60)
    await fleet.ready(name)


async def set_dockerfile(fleet: Fleet, name: str, text: str) -> None:
    body = {"data": {"dockerfile": text}}
    await fleet.kube.merge_patch(CONFIG_MAPS, name, body, namespace=fleet.namespace)


async def test_a_secret_that_is_missing_or_incomplete_is_named(fleet: Fleet) -> None:
    name = fleet.new_name()
    await one_cluster(fleet, name)
    sign = {"keySecret": {"name": f"{name}-key"}, "certSecret": {"name": f"{name}-cert"}}
    files = {"filesToSign": ["/opt/lib/modules/*.ko"], "unsignedImage": fleet.image(name, "unsigned")}
    await fleet.add_module(name, sign=sign | files)
    assert f"{name}-key" in await fleet.shows(name, "Degraded", "True", "SecretMissing")

    await fleet.add_secret(f"{name}-key", {"private": "x"})
    assert "'key'" in await fleet.shows(name, "Degraded", "True", "SecretIncomplete")


async def test_a_change_of_one_cluster_writes_nothing_for_the_others(fleet: Fleet) -> None:
    name = fleet.new_name()
    for tag in (KERNEL, "6.1.0-14-amd64"):
        await fleet.push(name, tag)
    clusters = [f"{name}-{number}" for number in range(4)]
    for cluster in clusters:
        await fleet.add_cluster(cluster, label=name, kernels=[KERNEL])
    await fleet.add_module(name)
    for cluster in clusters:
        await fleet.posted(cluster, name)
    await fleet.ready(name)
    await asyncio.sleep(1)
    before = await fleet.versions()
    patches = fleet.write_requests()

    await fleet.claim(clusters[0], [KERNEL, "6.1.0-14-amd64"])

    async def is_patched() -> bool:
        work = await fleet.work(clusters[0], name)
        return work is not None and len(served(work)) == 2

    await eventually(is_patched, what="the new kernel joins")
    await asyncio.sleep(1)
    after = await fleet.versions()
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed - {("", name)} == {(clusters[0], name)}
    key = "PATCH manifestworks 200"
    assert fleet.write_requests()[key] - patches.get(key, 0) == 1
