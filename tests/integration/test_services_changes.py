"""What a module names changes: images, ConfigMaps, Secrets, the rebuild trigger. Nothing that works is taken away."""

import asyncio
import io
import tarfile
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet import Fleet, served
from kernel_module import SigningPair, module, signer, stranger
from running_services import eventually
from services_fixtures import fleet

from services.signer.module_signature import fingerprint
from shared.kube.client import CONFIG_MAPS, MODULES, SECRETS

__all__ = ["fleet", "module", "signer", "stranger"]  # fixtures

pytestmark = pytest.mark.integration

Json = dict[str, Any]
KERNEL = "6.1.0-13-amd64"
DOCKERFILE = "FROM scratch\nLABEL recipe="


class Watched:
    """One module on one cluster, and its work."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.name = fleet.new_name()
        self.cluster = f"{self.name}-c"

    async def start(self, *, is_pushed: bool = True, **container: Any) -> Json:
        """Everything is made, and ready. Returns the work."""
        if is_pushed:
            await self.fleet.push(self.name, KERNEL)
        await self.fleet.add_cluster(self.cluster, label=self.name, kernels=[KERNEL])
        await self.fleet.add_module(self.name, **container)
        await self.fleet.ready(self.name, seconds=40)
        return await self.work()

    async def work(self) -> Json:
        return await self.fleet.posted(self.cluster, self.name)

    async def ships(self, digest: str) -> Json:
        """Wait until the work ships this digest. It is never away meanwhile."""
        repository = self.fleet.image(self.name).partition(":$")[0]

        async def look() -> Json:
            work = await self.fleet.work(self.cluster, self.name)
            if work is None:
                pytest.fail("the work was taken away")
            assert served(work) == {KERNEL: f"{repository}@{digest}"}
            return work

        return await eventually(look, what=f"{self.name} ships {digest}", every=0.02)

    async def ships_another(self, before: Json) -> Json:
        """Wait until the work ships another image than before."""

        async def look() -> Json | None:
            work = await self.fleet.work(self.cluster, self.name)
            assert work is not None
            return work if served(work) != served(before) else None

        return await eventually(look, what=f"{self.name} ships another image", seconds=60)

    async def set_trigger(self, value: int | None) -> None:
        spec = {"moduleSpec": {"imageRebuildTriggerGeneration": value}}
        await self.fleet.kube.merge_patch(MODULES, self.name, {"spec": spec})

    async def set_dockerfile(self, text: str | None) -> None:
        body = {"data": {"dockerfile": text}}
        await self.fleet.kube.merge_patch(CONFIG_MAPS, self.name, body, namespace=self.fleet.namespace)


async def set_secret(fleet: Fleet, name: str, data: Json) -> None:
    await fleet.kube.merge_patch(SECRETS, name, {"stringData": data}, namespace=fleet.namespace)


async def test_the_trigger_looks_again_whenever_it_is_set_raised_lowered_or_removed(fleet: Fleet) -> None:
    """Lowered and removed are values that it had before: the answers of that time do not count any more."""
    it = Watched(fleet)
    before = await it.start()

    for value in (1, 2, 1, None, 2, None):
        digest = await fleet.push(it.name, KERNEL)
        await asyncio.sleep(0.3)
        assert served(await it.work()) == served(before), "nobody asked for the new image yet"
        await it.set_trigger(value)
        before = await it.ships(digest)
        await fleet.ready(it.name)


async def test_the_trigger_builds_again_and_taking_it_back_brings_the_first_build_back(fleet: Fleet) -> None:
    it = Watched(fleet)
    await fleet.add_config_map(it.name, {"dockerfile": f"{DOCKERFILE}one\n"})
    first = await it.start(is_pushed=False, build={"dockerfileConfigMap": {"name": it.name}})

    await it.set_trigger(7)
    second = await it.ships_another(first)
    await fleet.ready(it.name)
    await it.set_trigger(None)
    third = await it.ships_another(second)

    await fleet.ready(it.name)
    query = "SELECT fence, source_is_adopted FROM artifacts WHERE target = $1"
    rows = await fleet.database.fetch(query, fleet.image(it.name, KERNEL))
    assert {(row["fence"], row["source_is_adopted"]) for row in rows} == {(1, False), (2, True)}
    assert served(third) == served(first)
    assert third["metadata"]["uid"] == first["metadata"]["uid"]


async def test_a_config_map_that_is_changed_emptied_deleted_and_put_back_takes_nothing_away(
    fleet: Fleet,
) -> None:
    """The image at the tag is somebody else's: it is adopted, and nothing is built."""
    it = Watched(fleet)
    await fleet.add_config_map(it.name, {"dockerfile": f"{DOCKERFILE}one\n"})
    before = await it.start(build={"dockerfileConfigMap": {"name": it.name}})

    await it.set_dockerfile(None)
    assert it.name in await fleet.shows(it.name, "Degraded", "True", "DockerfileMissing")
    assert await it.work() == before
    await fleet.kube.delete(CONFIG_MAPS, it.name, namespace=fleet.namespace)
    message = await fleet.shows(it.name, "Dispatched", "False", "ConfigMapMissing")
    assert "the posted work stays" in message
    assert await it.work() == before
    await fleet.add_config_map(it.name, {"dockerfile": f"{DOCKERFILE}two\n"})
    await fleet.ready(it.name)
    assert await it.work() == before, "the same image needs no write"

    digest = await fleet.push(it.name, KERNEL)
    await it.set_dockerfile(f"{DOCKERFILE}one\n")
    await it.ships(digest)
    await fleet.ready(it.name)


async def test_a_rotated_key_signs_again_and_a_lost_one_takes_nothing_away(
    fleet: Fleet, module: bytes, signer: SigningPair, stranger: SigningPair
) -> None:
    it = Watched(fleet)
    await push_unsigned(fleet, it.name, module)
    for kind, data in secrets_of(signer).items():
        await fleet.add_secret(f"{it.name}-{kind}", data)
    sign = {
        "keySecret": {"name": f"{it.name}-key"},
        "certSecret": {"name": f"{it.name}-cert"},
        "unsignedImage": fleet.image(it.name, "unsigned"),
        "unsignedImageRegistryTLS": {"insecure": True},
        "filesToSign": ["/opt/hello.ko"],
    }
    first = await it.start(is_pushed=False, sign=sign)

    await fleet.kube.delete(SECRETS, f"{it.name}-key", namespace=fleet.namespace)
    assert f"{it.name}-key" in await fleet.shows(it.name, "Degraded", "True", "SecretMissing")
    assert await it.work() == first
    await fleet.add_secret(f"{it.name}-key", secrets_of(stranger)["key"])
    await set_secret(fleet, f"{it.name}-cert", secrets_of(stranger)["cert"])

    second = await it.ships_another(first)
    await fleet.ready(it.name)
    query = "SELECT digest FROM artifacts WHERE signed_by = $1 AND state = 'ready'"
    digest = await fleet.database.fetchval(query, fingerprint(stranger.certificate))
    assert [image.partition("@")[2] for image in served(second).values()] == [digest]


async def test_other_credentials_for_the_same_image_write_nothing(fleet: Fleet) -> None:
    it = Watched(fleet)
    await fleet.add_secret(it.name, {".dockerconfigjson": '{"auths": {}}'})
    before = await it.start()
    spec = {"moduleSpec": {"imageRepoSecret": {"name": it.name}}}
    await fleet.kube.merge_patch(MODULES, it.name, {"spec": spec})
    await eventually(lambda: names_secret(it), what="the secret's name is shipped")
    await fleet.ready(it.name)
    after = await it.work()
    assert served(after) == served(before)
    query = "SELECT count(*) FROM artifacts WHERE target = $1"
    looked = await fleet.database.fetchval(query, fleet.image(it.name, KERNEL))

    await set_secret(fleet, it.name, {".dockerconfigjson": '{"auths": {"r.example": {"auth": "YTpi"}}}'})

    async def is_looked_at() -> bool:
        return bool(await fleet.database.fetchval(query, fleet.image(it.name, KERNEL)) > looked)

    await eventually(is_looked_at, what="the image is looked at with the new credentials")
    await fleet.ready(it.name)
    assert await it.work() == after


async def names_secret(it: Watched) -> bool:
    shipped = (await it.work())["spec"]["workload"]["manifests"][0]["spec"]
    return bool(shipped.get("imageRepoSecret") == {"name": it.name})


def secrets_of(pair: SigningPair) -> dict[str, dict[str, str]]:
    """What the Secrets of key and certificate hold."""
    key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "key": {"key": key.decode()},
        "cert": {"cert": pair.certificate.public_bytes(Encoding.PEM).decode()},
    }


async def push_unsigned(fleet: Fleet, name: str, module: bytes) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        entry = tarfile.TarInfo("opt/hello.ko")
        entry.size = len(module)
        layer.addfile(entry, io.BytesIO(module))
    await fleet.push(name, "unsigned", content=content.getvalue())
