"""What the build stage relies on in its tools holds for buildah and for the simulated tools."""

import base64
import gzip
import io
import json
import random
import tarfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_lab import Lab
from own_registry import run_registry

from services.builder.build_request import BuildRequest
from services.builder.buildah import Buildah
from services.builder.buildah_failure import BuildFailed, BuildTimedOut, RegistryRefused, RegistryUnavailable
from services.builder.tools import BuildTools
from shared.domain.image import ImageReference
from shared.registry.access import Credentials
from shared.registry.client import RegistryClient
from shared.registry.port import ImageRegistry
from simulation.builder_tools import BuildWeather, SimulatedBuildah
from simulation.line import Line, Weather
from simulation.module_image import module_image
from simulation.registry import RegistryState, SimulatedRegistry

pytest_plugins = ["kernel_lab_fixtures"]

USER = Credentials(username="builder", password="builder-password")
HTPASSWD = "builder:$2b$05$M3Doj7zWe3PZJ4O1F27NYOY8RuE3wfn3eCoWbT562IicoDA1taje6\n"
NOTHING_TO_RUN = "FROM scratch\nLABEL some=thing\n"


@dataclass
class Bench:
    """Tools, and the registries that they push to.

    Attributes:
        tools: for `registry`, where `kmod-run:latest` is, an image with a shell.
        client: of it.
        closed_tools: for `closed`, which wants the credentials of `USER`.
        away_tools: for `away`, where nobody listens.
    """

    tools: BuildTools
    client: ImageRegistry
    registry: str
    closed_tools: BuildTools
    closed: str
    away_tools: BuildTools
    away: str

    def request(self, *instructions: str, **changes: object) -> BuildRequest:
        """A build on the small base image."""
        values = {
            "dockerfile": "\n".join([f"FROM {self.registry}/kmod-run:latest", *instructions, ""]),
            "build_args": {},
            "destination": f"{self.registry}/test:{uuid.uuid4().hex}",
            "time_limit": 120.0,
            **changes,
        }
        return BuildRequest(**values)


def simulated_tools(state: RegistryState) -> SimulatedBuildah:
    line = Line("test", Weather(delay=0), random.Random(1))
    return SimulatedBuildah(state, line, random.Random(1), BuildWeather(seconds=(0.01, 0.02)))


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.integration)])
def real(request: pytest.FixtureRequest) -> tuple[Lab, Buildah] | None:
    """The lab and its builder, which are made outside of the event loop."""
    if request.param == "simulated":
        return None
    return request.getfixturevalue("lab"), request.getfixturevalue("builder")


@pytest.fixture
async def bench(real: tuple[Lab, Buildah] | None, tmp_path: Path) -> AsyncIterator[Bench]:
    if real is None:
        state, closed_state, away = (RegistryState(chance=random.Random(1)) for _ in range(3))
        state.push("open.example/kmod-run:latest", module_image())
        closed_state.required = USER
        away.is_down = True
        yield Bench(
            tools=simulated_tools(state),
            client=SimulatedRegistry(state, Line("test", Weather(delay=0), random.Random(1))),
            registry="open.example",
            closed_tools=simulated_tools(closed_state),
            closed="closed.example",
            away_tools=simulated_tools(away),
            away="away.example",
        )
        return
    lab, builder = real
    (tmp_path / "passwords").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "passwords")}}
    with run_registry(tmp_path, auth=auth) as closed:
        async with RegistryClient() as client:
            yield Bench(
                tools=builder,
                client=client,
                registry=lab.registry,
                closed_tools=builder,
                closed=closed.address,
                away_tools=builder,
                away="127.0.0.1:1",
            )


async def contents(client: ImageRegistry, image: ImageReference) -> tuple[bytes, list[bytes]]:
    """An image's configuration, and its layers unpacked."""
    found = await client.image(image)
    config = await client.config(image, found.config)
    layers = []
    for layer in found.layers:
        packed = b"".join([chunk async for chunk in client.blob(image, layer)])
        layers.append(gzip.decompress(packed))
    return config, layers


async def test_the_image_is_in_the_registry_under_its_tag_with_its_labels(bench: Bench) -> None:
    lines: list[str] = []
    request = bench.request("RUN true", labels={"kmm.test/recipe": "abc", "other": "1 2"})
    built = await bench.tools.build(request, on_line=lines.append)
    image = ImageReference.parse(request.destination)
    head = await bench.client.head(image)
    assert head is not None
    assert head.digest == built.digest
    config, _ = await contents(bench.client, image)
    labels = json.loads(config)["config"]["Labels"]
    assert labels["kmm.test/recipe"] == "abc"
    assert labels["other"] == "1 2"
    assert json.loads(config)["architecture"] == "amd64"
    assert any("RUN true" in line for line in lines)
    assert "RUN true" in built.log_tail


async def test_modules_are_where_the_dockerfile_copies_them(bench: Bench) -> None:
    dockerfile = (
        "ARG BASE\nFROM ${BASE} AS made\nRUN printf x > /hello.ko\n"
        "FROM scratch\nARG KERNEL_FULL_VERSION\n"
        "COPY --from=made /hello.ko /opt/lib/modules/${KERNEL_FULL_VERSION}/\n"
    )
    request = bench.request(
        dockerfile=dockerfile,
        build_args={"BASE": f"{bench.registry}/kmod-run:latest", "KERNEL_FULL_VERSION": "6.1.0-13-amd64"},
    )
    await bench.tools.build(request)
    _, layers = await contents(bench.client, ImageReference.parse(request.destination))
    names = []
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            names += [name.removeprefix("./") for name in archive.getnames()]
    assert "opt/lib/modules/6.1.0-13-amd64/hello.ko" in names


async def test_a_failing_instruction_is_named_and_nothing_is_pushed(bench: Bench) -> None:
    request = bench.request("RUN true", "RUN exit 3")
    with pytest.raises(BuildFailed) as caught:
        await bench.tools.build(request)
    assert caught.value.reason == "BuildFailed"
    assert str(caught.value).startswith("the Dockerfile failed at instruction 'RUN exit 3'")
    assert "RUN true" in caught.value.log_tail
    assert await bench.client.head(ImageReference.parse(request.destination)) is None


async def test_a_missing_base_image_is_the_users_to_mend(bench: Bench) -> None:
    with pytest.raises(RegistryRefused, match="nothing:1") as caught:
        await bench.tools.build(bench.request(dockerfile=f"FROM {bench.registry}/nothing:1\nRUN true\n"))
    assert caught.value.reason == "ImageMissing"


async def test_a_build_that_takes_too_long_is_ended(bench: Bench) -> None:
    request = bench.request("RUN sleep 60", time_limit=2.0)
    with pytest.raises(BuildTimedOut, match="took over 2 s") as caught:
        await bench.tools.build(request)
    assert caught.value.reason == "BuildTimedOut"
    assert await bench.client.head(ImageReference.parse(request.destination)) is None


async def test_a_registry_that_is_away_may_come_back(bench: Bench) -> None:
    with pytest.raises(RegistryUnavailable, match="pushing"):
        await bench.away_tools.build(
            bench.request(dockerfile=NOTHING_TO_RUN, destination=f"{bench.away}/mod:1")
        )
    with pytest.raises(RegistryUnavailable):
        await bench.away_tools.build(
            bench.request(dockerfile=f"FROM {bench.away}/base:1\n", destination=f"{bench.away}/mod:1")
        )


async def test_credentials_are_used_and_their_absence_is_named(bench: Bench) -> None:
    destination = f"{bench.closed}/mod:1"
    with pytest.raises(RegistryRefused) as caught:
        await bench.closed_tools.build(bench.request(dockerfile=NOTHING_TO_RUN, destination=destination))
    assert caught.value.reason == "RegistryDenied"
    login = base64.b64encode(f"{USER.username}:{USER.password}".encode()).decode()
    auth_file = json.dumps({"auths": {bench.closed: {"auth": login}}}).encode()
    built = await bench.closed_tools.build(
        bench.request(dockerfile=NOTHING_TO_RUN, destination=destination, auth_file=auth_file)
    )
    assert built.digest.startswith("sha256:")
    with pytest.raises(RegistryRefused) as caught:
        await bench.closed_tools.build(
            bench.request(dockerfile=f"FROM {destination}\nRUN true\n", destination=destination)
        )
    assert caught.value.reason == "RegistryDenied"


async def test_secrets_are_neither_in_the_image_nor_in_the_log(bench: Bench) -> None:
    canary = f"canary-{uuid.uuid4().hex}"
    lines: list[str] = []
    request = bench.request(
        "RUN cat /run/secrets/token/value",
        f"RUN echo {canary} > /dev/null",
        secrets={"token": {"value": canary.encode()}},
    )
    built = await bench.tools.build(request, on_line=lines.append)
    assert canary not in built.log_tail + "\n".join(lines)
    assert any("***" in line for line in lines)
    _, layers = await contents(bench.client, ImageReference.parse(request.destination))
    assert not any(canary.encode() in layer for layer in layers)
