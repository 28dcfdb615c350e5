"""The builder's adapter against the real buildah, a real registry and real kernel headers."""

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import uuid
from pathlib import Path

import pytest
from kernel_lab import Lab
from own_registry import run_registry

from demo import base_image
from demo.image_layout import ImageLayout
from services.builder.buildah import Buildah, BuildRequest
from services.builder.buildah_failure import BuildFailed, BuildTimedOut, RegistryRefused, RegistryUnavailable

pytest_plugins = ["kernel_lab_fixtures"]
pytestmark = pytest.mark.integration

PASSWORD_FILE = "builder:$2b$05$M3Doj7zWe3PZJ4O1F27NYOY8RuE3wfn3eCoWbT562IicoDA1taje6\n"
PASSWORD = "builder-password"


def request(lab: Lab, *instructions: str, **changes: object) -> BuildRequest:
    """A build on the small base image."""
    values = {
        "dockerfile": "\n".join([f"FROM {lab.registry}/kmod-run:latest", *instructions, ""]),
        "build_args": {},
        "destination": f"{lab.registry}/test:{uuid.uuid4().hex}",
        **changes,
    }
    return BuildRequest(**values)


def running(command: str) -> list[str]:
    """Command lines of running processes that begin like this."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if line.startswith(command):
            found.append(line)
    return found


def mounts_below(directory: Path) -> list[str]:
    """What this machine has mounted below a directory."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if line.split()[1].startswith(str(directory))]


def files_with(word: str, directory: Path) -> str:
    """Names of the files below a directory that hold a word."""
    search = ["grep", "-rl", word, str(directory)]
    return subprocess.run(search, capture_output=True, text=True, timeout=60, check=False).stdout


def wait_for_process(command: str) -> None:
    """Return when a process with this command line is running."""
    deadline = time.monotonic() + 30
    while not running(command):
        assert time.monotonic() < deadline, f"{command} was not started"
        time.sleep(0.05)


def wait_until_gone(command: str) -> None:
    """Return when no process has this command line."""
    deadline = time.monotonic() + 10
    while running(command):
        assert time.monotonic() < deadline, f"{command} lives on"
        time.sleep(0.05)


async def test_modules_for_two_kernels_are_built_at_once(lab: Lab, builder: Buildah) -> None:
    chosen = [lab.kernel("cloud-amd64"), lab.kernel("+")]
    lines: list[str] = []
    images = await asyncio.gather(
        *(
            builder.build(
                lab.module_request(kernel, labels={"kmm.test/kernel": kernel.version}), on_line=lines.append
            )
            for kernel in chosen
        )
    )
    assert any("kmm_hello.ko" in line for line in lines)
    for kernel, image in zip(chosen, images, strict=True):
        files = await lab.files("kmm-hello", image)
        module = files[f"opt/lib/modules/{kernel.version}/kmm_hello.ko"]
        assert f"vermagic={kernel.version} ".encode() in module
        assert b"\0version=4.2\0" in b"\0" + module
        assert f"opt/lib/modules/{kernel.version}/modules.dep" in files
        config = await lab.config("kmm-hello", image)
        assert config["config"]["Labels"]["kmm.test/kernel"] == kernel.version
        tag = kernel.version.replace("+", "_")
        assert await lab.fetch(f"kmm-hello/manifests/{tag}") == await lab.fetch(
            f"kmm-hello/manifests/{image.digest}"
        )


async def test_the_cache_serves_until_a_rebuild_is_asked_for(lab: Lab, builder: Buildah) -> None:
    instruction = "RUN cat /proc/sys/kernel/random/uuid > /id"

    async def identity(**changes: object) -> bytes:
        built = await builder.build(request(lab, instruction, **changes))
        return (await lab.files("test", built))["id"]

    first = await identity()
    assert await identity() == first
    rebuilt = await identity(use_cache=False)
    assert rebuilt != first
    assert await identity() == rebuilt


async def test_a_build_argument_is_part_of_the_cache_key(lab: Lab, builder: Buildah) -> None:
    async def value(text: str) -> bytes:
        built = await builder.build(
            request(lab, "ARG VALUE", 'RUN printf %s "$VALUE" > /value', build_args={"VALUE": text})
        )
        return (await lab.files("test", built))["value"]

    assert await value("one") == b"one"
    assert await value("$(reboot) `id` \"'") == b"$(reboot) `id` \"'"


async def test_a_failing_instruction_is_named_and_nothing_is_pushed(lab: Lab, builder: Buildah) -> None:
    failing = request(lab, "RUN echo before", "RUN echo 'no rule to make target' >&2; exit 3")
    with pytest.raises(BuildFailed) as caught:
        await builder.build(failing)
    assert caught.value.reason == "BuildFailed"
    assert str(caught.value).startswith("the Dockerfile failed at instruction \"RUN echo 'no rule")
    assert "no rule to make target" in str(caught.value)
    assert "before" in caught.value.log_tail
    with pytest.raises(urllib.error.HTTPError) as answer:
        await lab.fetch(f"test/manifests/{failing.destination.rsplit(':', 1)[1]}")
    answer.value.close()
    assert answer.value.code == 404


async def test_the_time_limit_ends_everything_that_was_started(
    lab: Lab, builder: Buildah, builder_directory: Path
) -> None:
    mark = str(uuid.uuid4().int % 10**9 + 10**9)
    slow = request(lab, f"RUN setsid sleep {mark} & sleep {mark}", time_limit=3.0)
    started = time.monotonic()
    build = asyncio.create_task(builder.build(slow))
    await asyncio.to_thread(wait_for_process, f"sleep {mark}")
    with pytest.raises(BuildTimedOut, match="took over 3 s"):
        await build
    assert time.monotonic() - started < 6
    assert running(f"sleep {mark}") == []
    assert mounts_below(builder_directory) == []
    assert list((builder_directory / "root" / "work").iterdir()) == []
    await builder.build(request(lab, "RUN true"))


async def test_a_cancelled_build_ends_at_once(lab: Lab, builder: Buildah) -> None:
    mark = str(uuid.uuid4().int % 10**9 + 10**9)
    build = asyncio.create_task(builder.build(request(lab, f"RUN sleep {mark}")))
    await asyncio.to_thread(wait_for_process, f"sleep {mark}")
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert running(f"sleep {mark}") == []


KILLED_BUILDER = """
import asyncio, pathlib, sys
from services.builder.buildah import Buildah, BuildRequest
directory, dockerfile, destination = sys.argv[1:]
request = BuildRequest(
    dockerfile=dockerfile, build_args={}, destination=destination, secrets={"token": {"value": b"canary-left"}}
)
asyncio.run(Buildah(pathlib.Path(directory, "root"), pathlib.Path(directory, "run")).build(request))
"""


def kill_a_builder_at_work(directory: Path, work: BuildRequest, command: str) -> None:
    """Start a builder as a process of its own, and kill it when its build runs this command."""
    builder = [sys.executable, "-c", KILLED_BUILDER, str(directory), work.dockerfile, work.destination]
    with subprocess.Popen(builder) as process:
        wait_for_process(command)
        process.kill()


async def test_a_killed_builder_takes_its_build_along_and_the_next_one_cleans_up(
    lab: Lab, tmp_path: Path
) -> None:
    mark = str(uuid.uuid4().int % 10**9 + 10**9)
    work = request(lab, f"RUN setsid sleep {mark} & sleep {mark}")
    await asyncio.to_thread(kill_a_builder_at_work, tmp_path, work, f"sleep {mark}")
    await asyncio.to_thread(wait_until_gone, f"sleep {mark}")
    assert files_with("canary-left", tmp_path) != ""
    await Buildah(tmp_path / "root", tmp_path / "run").build(request(lab, "RUN true"))
    assert files_with("canary-left", tmp_path) == ""
    assert mounts_below(tmp_path) == []


async def test_a_build_reads_its_secrets_and_leaves_no_trace_of_them(
    lab: Lab, builder: Buildah, builder_directory: Path
) -> None:
    canary = "canary-" + uuid.uuid4().hex
    lines: list[str] = []
    built = await builder.build(
        request(
            lab,
            "RUN echo $(cat /run/secrets/token/value); wc -c < /run/secrets/token/value > /length",
            "USER 1000",
            "RUN test -r /run/secrets/token/value && ! touch /run/secrets/token/other",
            secrets={"token": {"value": canary.encode()}},
        ),
        on_line=lines.append,
    )
    files = await lab.files("test", built)
    assert files["length"] == f"{len(canary)}\n".encode()
    assert not any(canary.encode() in content for content in files.values())
    assert canary not in "\n".join(lines) + built.log_tail
    assert "***" in lines
    assert files_with(canary, builder_directory) == ""


async def test_a_secret_build_is_nobody_elses_cache(lab: Lab, builder: Buildah) -> None:
    instruction = "RUN cat /run/secrets/token/value > /leak || true"
    secret = {"token": {"value": b"canary-of-one-user"}}
    await builder.build(request(lab, instruction, secrets=secret))
    other = await builder.build(request(lab, instruction))
    assert (await lab.files("test", other))["leak"] == b""


async def test_a_build_sees_neither_our_processes_nor_our_environment(
    lab: Lab, builder: Buildah, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "canary-of-the-service")
    built = await builder.build(
        request(
            lab, "RUN env; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; true"
        )
    )
    assert "canary-of-the-service" not in built.log_tail
    assert "DATABASE_PASSWORD" not in built.log_tail
    assert " ".join(sys.argv[:2]) not in built.log_tail


@pytest.fixture
def image_directory(lab: Lab, tmp_path: Path) -> Path:
    """An image in a plain directory of the machine (containers-transports(5), dir)."""
    directory = tmp_path / "image"
    directory.mkdir()
    layout = ImageLayout(base_image.cache_directory())
    manifest = layout.manifest(base_image.RUN_IMAGE)
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    (directory / "manifest.json").write_bytes(manifest)
    content = json.loads(manifest)
    for descriptor in (content["config"], *content["layers"]):
        blob = layout.blob(descriptor["digest"])
        shutil.copy(blob, directory / blob.name)
    return directory


async def test_a_base_image_comes_from_a_registry_only(
    lab: Lab, builder: Buildah, image_directory: Path
) -> None:
    with pytest.raises(BuildFailed, match="rejected by policy"):
        await builder.build(request(lab, dockerfile=f"FROM dir:{image_directory}\n"))


async def test_a_missing_base_image_is_the_users_to_mend(lab: Lab, builder: Buildah) -> None:
    with pytest.raises(RegistryRefused, match="nothing:1") as caught:
        await builder.build(request(lab, dockerfile=f"FROM {lab.registry}/nothing:1\n"))
    assert caught.value.reason == "ImageMissing"


async def test_a_registry_that_is_away_may_come_back(lab: Lab, builder: Buildah) -> None:
    with pytest.raises(RegistryUnavailable):
        await builder.build(request(lab, dockerfile="FROM 127.0.0.1:1/base:1\n"))
    with pytest.raises(RegistryUnavailable, match=r"pushing 127\.0\.0\.1:1/mod:1"):
        await builder.build(request(lab, "RUN true", destination="127.0.0.1:1/mod:1"))


async def test_credentials_are_used_and_their_absence_is_named(
    lab: Lab, builder: Buildah, tmp_path: Path
) -> None:
    (tmp_path / "passwords").write_text(PASSWORD_FILE)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "passwords")}}
    with run_registry(tmp_path, auth=auth) as private:
        destination = f"{private.address}/mod:1"
        with pytest.raises(RegistryRefused) as caught:
            await builder.build(request(lab, "RUN true", destination=destination))
        assert caught.value.reason == "RegistryDenied"
        login = base64.b64encode(f"builder:{PASSWORD}".encode()).decode()
        auth_file = json.dumps({"auths": {private.address: {"auth": login}}}).encode()
        pushed = await builder.build(request(lab, "RUN true", destination=destination, auth_file=auth_file))
        assert pushed.digest.startswith("sha256:")
        again = await builder.build(
            request(lab, dockerfile=f"FROM {destination}\nRUN true\n", auth_file=auth_file)
        )
        assert again.digest.startswith("sha256:")
        with pytest.raises(RegistryRefused) as caught:
            await builder.build(request(lab, dockerfile=f"FROM {destination}\nRUN true\n"))
        assert caught.value.reason == "RegistryDenied"


async def test_a_full_disk_drops_the_cache_and_builds_go_on(lab: Lab, tmp_path: Path) -> None:
    wanting = Buildah(tmp_path / "root", tmp_path / "run", minimum_free_bytes=1 << 60)
    await wanting.build(request(lab, "RUN true"))
    layers = tmp_path / "root" / "storage" / "overlay-layers" / "layers.json"
    assert json.loads(layers.read_text() or "[]") in ([], None)
    await wanting.build(request(lab, "RUN true"))
    shutil.rmtree(tmp_path / "root")
