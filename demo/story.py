"""The story that the demo tells, and that the end-to-end test proves: each step states what must be so."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from demo.base_image import dockerfile
from demo.boot import BootReport, Verdict, boot
from demo.inspect import MODULE_PATTERN, KernelModule, pull_module
from demo.kernels import Kernel
from demo.narrator import Narrator
from demo.signing_key import SigningKey, new_signing_key
from demo.user import User, Work, condition
from services.signer.module_signature import load_certificate, load_private_key, sign_module, strip_signatures
from shared.domain.errors import HubError
from shared.registry.client import RegistryClient
from shared.store.database import Engine
from shared.store.tables import artifacts

MODULE = "kmm-hello"
SPOKE_NAMESPACE = "kmm-operator-system"
LABEL = "hardware.example/accelerator"
SIGNER = "kmm-hub demo"
CLUSTERS = tuple(f"edge-{number}" for number in range(1, 7))
PATIENCE_SECONDS = 600.0
BOOTS_AT_ONCE = 2
QUIET_SECONDS = 2.0
"""How long nothing may be written before "it was not written" is believed."""


class NotSo(HubError):
    """Something of the story did not come true."""

    reason = "NotSo"


@dataclass(slots=True, kw_only=True)
class Story:
    """The people, the hub and what is known so far.

    Attributes:
        kernels: three kernels of the first fleet, and a fourth that comes later.
    """

    narrator: Narrator
    user: User
    registry: RegistryClient
    engine: Engine
    registry_address: str
    kernels: Sequence[Kernel]
    key: SigningKey = field(default_factory=lambda: _new_key(SIGNER))

    async def tell(self) -> None:
        """Run all steps. Raises NotSo at the first one that does not come true."""
        await self.join_clusters()
        await self.apply_module()
        works = await self.see_works()
        await self.see_modules(works)
        await self.move_cluster(works)
        await self.deselect_cluster()
        await self.let_kernels_judge()
        await self.delete_module()

    @property
    def fleet(self) -> dict[str, str]:
        """Cluster to kernel, at the beginning: two clusters for each of three kernels."""
        return {cluster: self.kernels[number % 3].version for number, cluster in enumerate(CLUSTERS)}

    async def join_clusters(self) -> None:
        """Six clusters on three kernels."""
        with self.narrator.step("Six clusters join, on three kernels"):
            for cluster, kernel in self.fleet.items():
                await self.user.join_cluster(cluster, labels={LABEL: "hello"}, kernels=[kernel])
            for kernel in sorted(set(self.fleet.values())):
                on = ", ".join(cluster for cluster, runs in self.fleet.items() if runs == kernel)
                self.narrator.seen(f"{kernel}: {on}")

    async def apply_module(self) -> None:
        """A key made on the spot, a Dockerfile, and one ManagedClusterModule with build and sign."""
        with self.narrator.step("A user applies one ManagedClusterModule with build and sign"):
            await self.user.store_secret("hello-key", self.key.key_secret())
            await self.user.store_secret("hello-cert", self.key.certificate_secret())
            await self.user.store_config_map("hello-dockerfile", {"dockerfile": dockerfile()})
            await self.user.apply_module(MODULE, self._module_spec())
            self.narrator.seen(f"signing key of {SIGNER!r}, Dockerfile, module {MODULE}")

    async def see_works(self) -> dict[str, Work]:
        """Three builds and three signatures for six ManifestWorks, each by digest."""
        with self.narrator.step("The hub builds and signs once for each kernel, and posts six ManifestWorks"):
            works = await self._wait_for(lambda works: set(works) == set(CLUSTERS), "six ManifestWorks")
            await self._expect_artifacts(3)
            for cluster, work in works.items():
                expect(list(work.images) == [self.fleet[cluster]], f"{cluster}: maps {list(work.images)}")
                expect("@sha256:" in work.images[self.fleet[cluster]], f"{cluster}: no digest")
                for word in ('"build"', '"sign"', '"regexp"'):
                    expect(word not in work.text, f"{cluster}: the work still has {word}")
            images = {image for work in works.values() for image in work.images.values()}
            expect(len(images) == 3, f"{len(images)} distinct images instead of 3")
            self.narrator.seen("exactly 3 builds and 3 signatures, counted in Postgres")
            self.narrator.seen("6 ManifestWorks, 3 distinct images, all by digest, no build or sign section")
            await self.wait_until_ready()
            self.narrator.seen("the module says Ready")
            return works

    async def see_modules(self, works: Mapping[str, Work]) -> None:
        """Every shipped module is for its kernel and signed with our key."""
        with self.narrator.step("Each image is pulled back by digest and asked with modinfo"):
            for kernel, image in sorted(_images(works).items()):
                self.narrator.doing(f"pulls {image}")
                await self._pull(kernel, image)
                self.narrator.seen(f"{kernel}: vermagic is {kernel}, signer is {SIGNER!r}")

    async def move_cluster(self, before: Mapping[str, Work]) -> None:
        """One cluster boots a fourth kernel: one more build, one work changes, five do not."""
        new = self.kernels[3].version
        with self.narrator.step(f"{CLUSTERS[0]} moves to {new}"):
            await self.user.report_kernels(CLUSTERS[0], [new])
            after = await self._wait_for(
                lambda works: CLUSTERS[0] in works and list(works[CLUSTERS[0]].images) == [new],
                f"the work of {CLUSTERS[0]} for {new}",
            )
            await asyncio.sleep(QUIET_SECONDS)
            after = await self.user.works()
            await self._expect_artifacts(4)
            unchanged = [name for name in CLUSTERS[1:] if after[name].version == before[name].version]
            expect(len(unchanged) == 5, f"only {unchanged} were left alone")
            self.narrator.seen(
                "exactly one more build and signature, one work changed, five were not written"
            )
            await self._pull(new, after[CLUSTERS[0]].images[new])
            self.narrator.seen(f"{new}: vermagic and signer are right")

    async def deselect_cluster(self) -> None:
        """One cluster loses its label: its work goes, the others stay as they are."""
        with self.narrator.step(f"{CLUSTERS[1]} loses its label"):
            before = await self.user.works()
            await self.user.remove_label(CLUSTERS[1], LABEL)
            await self._wait_for(lambda works: CLUSTERS[1] not in works, "its work to go")
            await asyncio.sleep(QUIET_SECONDS)
            after = await self.user.works()
            expect(set(after) == set(CLUSTERS) - {CLUSTERS[1]}, f"works left: {sorted(after)}")
            expect(
                all(after[name].version == before[name].version for name in after), "another work was written"
            )
            self.narrator.seen("its work is gone, five are untouched")

    async def let_kernels_judge(self) -> None:
        """Each kernel boots, trusts our certificate, and tries what its cluster's work names."""
        with self.narrator.step("The kernels judge: each boots with our certificate enrolled"):
            images = _images(await self.user.works())
            foreign = _new_key("somebody else")
            seats = asyncio.Semaphore(BOOTS_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for kernel in self.kernels:
                    group.create_task(self._judge(kernel, images[kernel.version], foreign, seats))

    async def delete_module(self) -> None:
        """The module is deleted: all works go, then the module itself."""
        with self.narrator.step("The user deletes the module"):
            await self.user.delete_module(MODULE)
            await self._wait_for(lambda works: not works, "all works to go")
            await self._wait(self._module_is_gone, "the module to go")
            self.narrator.seen("all ManifestWorks are gone, then the module")

    def _module_spec(self) -> dict[str, Any]:
        return {
            "spokeNamespace": SPOKE_NAMESPACE,
            "selector": {LABEL: "hello"},
            "moduleSpec": {
                "selector": {"kubernetes.io/arch": "amd64"},
                "moduleLoader": {
                    "container": {
                        "modprobe": {"moduleName": "kmm_hello", "dirName": "/opt"},
                        "registryTLS": {"insecure": True},
                        "kernelMappings": [
                            {
                                "regexp": r"^6\.\d+\..*-amd64$",
                                "containerImage": f"{self.registry_address}/drivers/kmm-hello:${{KERNEL_FULL_VERSION}}",
                            }
                        ],
                        "build": {
                            "dockerfileConfigMap": {"name": "hello-dockerfile"},
                            "buildArgs": [
                                {"name": "REGISTRY", "value": self.registry_address},
                                {"name": "MODULE_VERSION", "value": "1.0"},
                            ],
                            "baseImageRegistryTLS": {"insecure": True},
                        },
                        "sign": {
                            "keySecret": {"name": "hello-key"},
                            "certSecret": {"name": "hello-cert"},
                            "filesToSign": [MODULE_PATTERN],
                        },
                    }
                },
            },
        }

    async def _pull(self, kernel: str, image: str) -> KernelModule:
        module = await pull_module(self.registry, image)
        expect(module.vermagic == kernel, f"{image}: vermagic is {module.vermagic}, not {kernel}")
        expect(module.signer == SIGNER, f"{image}: signer is {module.signer!r}, not {SIGNER!r}")
        return module

    def _expect_verdicts(self, kernel: Kernel, report: BootReport) -> None:
        expect(report.release == kernel.version, f"booted {report.release} instead of {kernel.version}")
        verdicts = {attempt.name: attempt.verdict for attempt in report.attempts}
        wanted = {"unsigned": Verdict.REFUSED, "foreign": Verdict.REFUSED, "shipped": Verdict.LOADED}
        expect(verdicts == wanted, f"{kernel.version}: {verdicts}\n{report.console[-2000:]}")
        self.narrator.seen(
            f"{kernel.version}: unsigned refused, foreign key refused, shipped module loaded "
            f"({report.seconds:.1f} s)"
        )

    async def _expect_artifacts(self, count: int) -> None:
        """Exactly so many artifacts, each built once and signed once, none adopted."""
        async with self.engine.connect() as connection:
            rows = (
                await connection.execute(
                    sa.select(artifacts.c.state, artifacts.c.source_is_adopted, artifacts.c.signed_by)
                )
            ).all()
        made = [row for row in rows if row.state == "ready" and row.signed_by]
        expect(
            len(rows) == len(made) == count, f"{len(rows)} artifacts, {len(made)} of them signed, not {count}"
        )

    async def _judge(self, kernel: Kernel, image: str, foreign: SigningKey, seats: asyncio.Semaphore) -> None:
        module = await pull_module(self.registry, image)
        bare = strip_signatures(module.content)
        async with seats:
            self.narrator.doing(f"boots {kernel.version} and tries three modules")
            report = await boot(
                kernel,
                {"unsigned": bare, "foreign": _signed(bare, foreign), "shipped": module.content},
                trusted_certificate=self.key.certificate,
            )
        self._expect_verdicts(kernel, report)

    async def wait_until_ready(self) -> None:
        """Wait until the module's condition Ready is True."""

        async def is_ready() -> bool:
            module = await self.user.module(MODULE)
            return module is not None and condition(module, "Ready")[0] == "True"

        await self._wait(is_ready, "the module to be Ready")

    async def _wait_for(self, holds: Callable[[dict[str, Work]], bool], what: str) -> dict[str, Work]:
        works: dict[str, Work] = {}

        async def look() -> bool:
            nonlocal works
            works = await self.user.works()
            return holds(works)

        await self._wait(look, what)
        return works

    async def _wait(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        """Look until it is so, telling what the module says meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await holds():
            module = await self.user.module(MODULE)
            said = condition(module, "Ready")[1] if module else "no module"
            if time.monotonic() > deadline:
                raise NotSo(f"waited {PATIENCE_SECONDS:.0f} s for {what}; the module says {said}")
            self.narrator.doing(f"waits for {what}; the module says {said}")
            await asyncio.sleep(0.3)

    async def _module_is_gone(self) -> bool:
        return await self.user.module(MODULE) is None


def expect(is_so: bool, otherwise: str) -> None:
    """Raises NotSo with `otherwise` unless `is_so`."""
    if not is_so:
        raise NotSo(otherwise)


def _images(works: Mapping[str, Work]) -> dict[str, str]:
    return {kernel: image for work in works.values() for kernel, image in work.images.items()}


def _new_key(common_name: str) -> SigningKey:
    return new_signing_key(common_name, now=dt.datetime.now(dt.UTC))  # noqa: TID251 - a certificate's validity


def _signed(module: bytes, key: SigningKey) -> bytes:
    return sign_module(module, load_private_key(key.key), load_certificate(key.certificate))
