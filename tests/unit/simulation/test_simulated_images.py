"""Production's stages on simulated registries and tools; and what the weather does to both."""

import asyncio
import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from services.builder.build_request import BuildRequest
from services.builder.buildah_failure import BuildInterrupted, RegistryUnavailable
from services.builder.stage import BuildStage
from services.signer.image import FileToSignMissing, verify_image
from services.signer.module_signature import load_certificate
from services.signer.stage import SignStage
from shared.domain.artifact import RECIPE_LABEL, ArtifactRequest, BuildRecipe, SignRecipe, Stage
from shared.domain.errors import TransientError
from shared.domain.image import ImageReference
from shared.domain.lease import Built, Lease, Signed
from shared.kube.client import NAMESPACES, SECRETS
from shared.leasing.secrets import SecretReader
from shared.registry.client import at_digest
from shared.registry.errors import DigestMismatch, ImageMissing, RegistryDenied
from simulation.builder_tools import BuildWeather, SimulatedBuildah
from simulation.hub import SimulatedKube
from simulation.hub_state import HubState
from simulation.line import Line, Weather
from simulation.loop import SimulationLoop
from simulation.material import CERTIFICATE, PRIVATE_KEY
from simulation.module_image import kernel_module, module_image
from simulation.registry import RegistryState, SimulatedRegistry
from simulation.run import simulate

KERNEL = "6.1.0-13-amd64"
DOCKERFILE = "FROM scratch\nCOPY *.ko /opt/lib/modules/${KERNEL_FULL_VERSION}/\n"
TARGET = ImageReference.parse("registry.example/team/hello:1")


@dataclass
class Agreeing:
    """A lease that never gets lost; it counts how often that was asked."""

    asked: int = 0

    async def confirm(self) -> None:
        self.asked += 1


@dataclass
class Site:
    """Both stages, on one line each to a hub and a registry."""

    loop: SimulationLoop
    weather: Weather
    build_weather: BuildWeather

    def __post_init__(self) -> None:
        self.state = RegistryState(chance=self.loop.chance("registry"))
        self.tags: list[tuple[str, str, str]] = []
        self.state.observe = lambda *set_: self.tags.append(set_)
        hub = HubState(self.loop.chance("hub"), self.loop.time)
        hub.create(NAMESPACES, {"metadata": {"name": "kmm"}})
        fields = {"key": PRIVATE_KEY, "cert": CERTIFICATE}
        data = {name: base64.b64encode(value).decode() for name, value in fields.items()}
        hub.create(SECRETS, {"metadata": {"name": "signing"}, "data": data}, namespace="kmm")
        self.registry = SimulatedRegistry(self.state, self.line("registry"))
        self.tools = SimulatedBuildah(
            self.state, self.line("tools"), self.loop.chance("builds"), self.build_weather
        )
        secrets = SecretReader(SimulatedKube(hub, Line("kube", Weather(), self.loop.chance("kube"))), "kmm")
        self.builder = BuildStage(
            registry=self.registry, secrets=secrets, buildah=self.tools, time_limit=600.0
        )
        self.signer = SignStage(registry=self.registry, secrets=secrets)
        self.request = ArtifactRequest(
            target=str(TARGET),
            kernel=KERNEL,
            architecture="amd64",
            build=BuildRecipe(dockerfile=DOCKERFILE, args=(("KERNEL_FULL_VERSION", KERNEL),)),
            sign=SignRecipe(
                files=(f"/opt/lib/modules/{KERNEL}/module.ko",),
                key_secret="signing",
                key_version="1",
                cert_secret="signing",
                cert_version="1",
            ),
        )

    def line(self, name: str) -> Line:
        return Line(name, self.weather, self.loop.chance(name))

    def lease(self, stage: Stage, source: str | None = None) -> Lease:
        return Lease(
            key=self.request.key, stage=stage, fence=1, attempt=1, request=self.request, source=source
        )

    async def build(self) -> Built:
        return await self.builder.perform(self.lease(Stage.BUILD), Agreeing())

    async def sign(self, source: str, holder: Agreeing | None = None) -> Signed:
        return await self.signer.perform(self.lease(Stage.SIGN, source), holder or Agreeing())


def on_site(
    case: Callable[[Site], Any],
    seed: int = 1,
    weather: Weather | None = None,
    build_weather: BuildWeather | None = None,
) -> Any:
    """Run a case on a site of its own."""

    async def main(loop: SimulationLoop) -> Any:
        return await case(Site(loop, weather or Weather(), build_weather or BuildWeather()))

    return simulate(main, seed=seed)


def test_a_module_is_an_elf_relocatable_with_its_facts() -> None:
    module = kernel_module("hello", KERNEL)
    kind, machine = struct.unpack_from("<HH", module, 16)
    assert (module[:4], kind, machine) == (b"\x7fELF", 1, 62)
    assert f"\0vermagic={KERNEL} SMP".encode() in module
    assert struct.unpack_from("<Q", module, 40)[0] + 3 * 64 == len(module)


def test_an_image_is_built_and_signed_and_only_then_has_its_tag() -> None:
    async def case(site: Site) -> None:
        built = await site.build()
        assert not built.is_adopted
        assert await site.registry.head(TARGET) is None
        holder = Agreeing()
        signed = await site.sign(built.source, holder)
        assert holder.asked == 1
        head = await site.registry.head(TARGET)
        assert head is not None
        assert head.digest == signed.digest
        certificate = load_certificate(CERTIFICATE)
        files = site.request.sign.files
        assert await verify_image(site.registry, TARGET, files, certificate) == ()
        assert await verify_image(site.registry, ImageReference.parse(built.source), files, certificate) != ()
        assert (await site.build()).source == built.source
        assert (await site.sign(built.source)).digest == signed.digest
        assert site.state.has_image(TARGET.pinned(signed.digest))

    on_site(case)


@pytest.mark.parametrize("seed", range(8))
def test_in_any_weather_the_tag_is_only_ever_a_signed_image(seed: int) -> None:
    async def case(site: Site) -> None:
        site.state.weather.refusals = 0.05
        site.state.weather.short_answers = 0.05
        certificate = load_certificate(CERTIFICATE)
        for _ in range(200):
            try:
                built = await site.build()
                await site.sign(built.source)
                break
            except TransientError:
                await asyncio.sleep(1)
        else:
            pytest.fail("200 attempts were not enough")
        site.weather.loss = site.weather.lost_answers = 0.0
        site.state.weather.refusals = site.state.weather.short_answers = 0.0
        finals = {digest for _, tag, digest in site.tags if tag == TARGET.tag}
        assert finals
        for digest in finals:
            image = at_digest(TARGET, digest)
            assert await verify_image(site.registry, image, site.request.sign.files, certificate) == ()

    on_site(
        case,
        seed=seed,
        weather=Weather(loss=0.03, lost_answers=0.03),
        build_weather=BuildWeather(kills=0.3),
    )


def test_a_push_may_have_happened_though_its_answer_was_lost() -> None:
    async def case(site: Site) -> None:
        request = BuildRequest(
            dockerfile=DOCKERFILE, build_args={}, destination=str(TARGET), labels={RECIPE_LABEL: "r"}
        )
        while not site.tags:
            with pytest.raises(RegistryUnavailable, match="pushing"):
                await site.tools.build(request)
        assert site.state.has_image(str(TARGET))

    on_site(case, seed=2, weather=Weather(lost_answers=0.5))


def test_a_killed_build_takes_time_and_pushes_nothing() -> None:
    async def case(site: Site) -> None:
        request = BuildRequest(dockerfile=DOCKERFILE, build_args={}, destination=str(TARGET))
        with pytest.raises(BuildInterrupted):
            await site.tools.build(request)
        assert site.loop.time() > 0.1
        assert site.tags == []

    on_site(case, build_weather=BuildWeather(kills=1.0))


def test_no_two_builds_give_the_same_image() -> None:
    async def case(site: Site) -> None:
        request = BuildRequest(dockerfile=DOCKERFILE, build_args={}, destination=str(TARGET))
        first, second = [(await site.tools.build(request)).digest for _ in range(2)]
        assert first != second

    on_site(case)


def test_a_file_to_sign_that_the_image_lacks_is_said() -> None:
    async def case(site: Site) -> None:
        site.state.push(str(TARGET.with_tag("raw")), module_image(("/opt/other.ko",)))
        digest = site.state.tags(str(TARGET))["raw"]
        with pytest.raises(FileToSignMissing, match=r"/opt/other\.ko"):
            await site.sign(TARGET.pinned(digest))

    on_site(case)


def test_garbage_is_what_no_tag_leads_to() -> None:
    async def case(site: Site) -> None:
        first = site.state.push(str(TARGET), module_image(created="1"))
        second = site.state.push(str(TARGET), module_image(created="2"))
        site.state.collect_garbage()
        assert site.state.has_image(TARGET.pinned(second))
        assert not site.state.has_image(TARGET.pinned(first))
        site.state.delete_tag(str(TARGET))
        assert await site.registry.head(TARGET) is None
        site.state.collect_garbage()
        with pytest.raises(ImageMissing):
            await site.registry.image(at_digest(TARGET, second))

    on_site(case)


@pytest.mark.parametrize(
    ("status", "error"), [(401, RegistryDenied), (403, RegistryDenied), (429, None), (500, None)]
)
def test_the_registrys_answers_become_productions_errors(status: int, error: type | None) -> None:
    async def case(site: Site) -> None:
        site.state.weather.refusals, site.state.weather.statuses = 1.0, (status,)
        with pytest.raises(error or TransientError) as caught:
            await site.registry.head(TARGET)
        assert caught.value.reason == ("RegistryUnavailable" if error is None else "RegistryDenied")
        site.state.weather.statuses = (404,)
        assert await site.registry.head(TARGET) is None
        site.state.weather.refusals, site.state.weather.short_answers = 0.0, 1.0
        site.state.push(str(TARGET), module_image())
        with pytest.raises(DigestMismatch):
            await site.registry.manifest(TARGET)

    on_site(case)
