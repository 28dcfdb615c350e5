"""A build tool that takes time and pushes small images; what it understands of a Dockerfile is what tests need."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import Template

from services.builder.build_log import BuildLog
from services.builder.build_request import BuildRequest, BuiltImage
from services.builder.buildah_failure import BuildTimedOut, Step, explain
from shared.domain.image import ImageReference
from shared.registry.access import RegistryAccess
from shared.registry.docker_config import read_docker_config
from shared.registry.errors import RegistryDenied, RegistryRejected, RegistryUnavailable
from simulation.line import Line
from simulation.module_image import ImageFiles, module_image
from simulation.registry import RegistryState, SimulatedRegistry

SCRATCH = "scratch"
FAILING = {"false", "exit"}
"""First words of RUN instructions that end a build."""


@dataclass(slots=True, kw_only=True)
class BuildWeather:
    """How builds go now; the nemesis changes it.

    Attributes:
        kills: probability that something outside kills a build (BuildInterrupted).
        seconds: shortest and longest time of a build.
    """

    kills: float = 0.0
    seconds: tuple[float, float] = (5.0, 60.0)


class SimulatedBuildah:
    """One process's tools, as `services.builder.tools.BuildTools`.

    `RUN false` and `RUN exit N` fail, `RUN sleep N` takes time, other instructions do nothing. `FROM` needs its image
    in the registry, if it names the destination's registry. The image has a kernel module wherever the last stage's
    COPY lines put a `.ko`.

    Attributes:
        weather: how builds go.
    """

    def __init__(
        self, state: RegistryState, line: Line, chance: random.Random, weather: BuildWeather | None = None
    ) -> None:
        """Builds push to the registries of `state`, over `line`."""
        self.weather = weather or BuildWeather()
        self._state = state
        self._registry = SimulatedRegistry(state, line)
        self._chance = chance

    async def build(
        self, request: BuildRequest, *, on_line: Callable[[str], None] = lambda _: None
    ) -> BuiltImage:
        """As `BuildTools.build`. The push crosses the line: it may happen though its answer is lost."""
        hidden = [content for files in request.secrets.values() for content in files.values()]
        run = _Run(request, BuildLog(hidden=hidden, on_line=on_line))
        seconds = self._chance.uniform(*self.weather.seconds) + run.sleeps()
        is_killed = self._chance.random() < self.weather.kills
        try:
            async with asyncio.timeout(request.time_limit):
                await self._check_bases(run)
                await asyncio.sleep(seconds * self._chance.random() if is_killed else seconds)
                if is_killed:
                    raise run.failure(Step.BUILD, code=-9)
                run.follow()
                image = module_image(
                    list(run.module_paths()),
                    kernel=request.build_args.get("KERNEL_FULL_VERSION", "0"),
                    labels=request.labels,
                    created=f"{asyncio.get_running_loop().time():.9f}/{self._chance.getrandbits(64):x}",
                )
                digest = await self._push(run, image)
        except TimeoutError as error:
            raise BuildTimedOut(
                f"building {request.destination} took over {request.time_limit:.0f} s",
                log_tail=run.log.tail(),
            ) from error
        return BuiltImage(digest=digest, log_tail=run.log.tail())

    async def _check_bases(self, run: _Run) -> None:
        """Look up base images, as the first thing that a build does."""
        for base in run.bases():
            if base.registry == run.destination.registry:
                try:
                    found = await self._registry.head(base, access=run.access(base))
                except (RegistryDenied, RegistryUnavailable) as error:
                    raise run.failure(Step.BUILD, _words_of(error)) from error
                if found is None:
                    raise run.failure(Step.BUILD, f"reading manifest in {base}: manifest unknown")

    async def _push(self, run: _Run, image: ImageFiles) -> str:
        destination, access = run.destination, run.access(run.destination)
        try:
            for blob in image.blobs:
                await self._registry.upload_blob(destination, blob, access=access)
            return await self._registry.put_manifest(
                destination, image.manifest, image.media_type, access=access
            )
        except (RegistryDenied, RegistryRejected, RegistryUnavailable) as error:
            raise run.failure(Step.PUSH, _words_of(error)) from error


class _Run:
    """One build: its request, what its Dockerfile says, and its log."""

    def __init__(self, request: BuildRequest, log: BuildLog) -> None:
        self.log = log
        self.destination = ImageReference.parse(request.destination)
        self._request = request
        lines = request.dockerfile.replace("\\\n", " ").splitlines()
        substituted = (Template(line.strip()).safe_substitute(request.build_args) for line in lines)
        self._instructions = [line for line in substituted if line and not line.startswith("#")]

    def follow(self) -> None:
        """Run the instructions, in words. Raises BuildFailed where one of them fails."""
        for number, instruction in enumerate(self._instructions, start=1):
            self._say(f"STEP {number}/{len(self._instructions)}: {instruction}")
            verb, *words = instruction.split()
            if verb.upper() == "RUN" and words and words[0] in FAILING:
                self._say(f"subprocess exited with status {words[1] if len(words) > 1 else 1}")
                raise self.failure(Step.BUILD, f'building at STEP "{instruction}": exit status 1')

    def sleeps(self) -> float:
        """Seconds that instructions ask for."""
        return sum(float(words[1]) for words in self._of("RUN") if words[0] == "sleep")

    def bases(self) -> Iterator[ImageReference]:
        """Images that FROM names, without the names of stages."""
        stages = {SCRATCH}
        for words in self._of("FROM"):
            if words[0] not in stages:
                yield ImageReference.parse(words[0])
            stages.add(words[-1])

    def module_paths(self) -> Iterator[str]:
        """Where the last stage has kernel modules, at least one."""
        places = list(self._copied())
        name = self._request.build_args.get("MOD_NAME") or self.destination.repository.rpartition("/")[2]
        yield from places or [f"/opt/{name}.ko"]

    def access(self, image: ImageReference) -> RegistryAccess:
        """The credentials for an image."""
        configuration = self._request.auth_file
        credentials = read_docker_config(configuration).credentials_for(image) if configuration else None
        return RegistryAccess(credentials=credentials)

    def failure(self, step: Step, words: str = "", *, code: int = 125) -> Exception:
        """What production makes of buildah's end."""
        if words:
            self._say(f"Error: {words}")
        return explain(
            step=step,
            exit_code=code,
            log_tail=self.log.tail(),
            instruction=self.log.instruction,
            destination=self._request.destination,
        )

    def _copied(self) -> Iterator[str]:
        last = max((at for at, line in enumerate(self._instructions) if _verb(line) == "FROM"), default=0)
        for line in self._instructions[last:]:
            if _verb(line) == "COPY":
                *sources, target = [word for word in shlex.split(line)[1:] if not word.startswith("--")]
                for source in sources:
                    name = source.rpartition("/")[2].replace("*", "module")
                    if target.endswith(".ko"):
                        yield target
                    elif name.endswith(".ko"):
                        yield f"{target.rstrip('/')}/{name}"

    def _of(self, verb: str) -> Iterator[list[str]]:
        return (line.split()[1:] for line in self._instructions if _verb(line) == verb)

    def _say(self, line: str) -> None:
        self.log.feed(f"{line}\n".encode())


def _verb(instruction: str) -> str:
    return instruction.split(maxsplit=1)[0].upper()


def _words_of(error: RegistryDenied | RegistryRejected | RegistryUnavailable) -> str:
    """How buildah words what a registry did."""
    if isinstance(error, RegistryRejected):
        return f"unexpected HTTP status: {error}"
    if isinstance(error, RegistryDenied):
        return f"unauthorized: authentication required: {error}"
    return f"connection reset by peer: {error}"
