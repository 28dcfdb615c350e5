"""The build stage of one artifact: look, plan, build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from services.builder.build_request import BuildRequest
from services.builder.plan import Adopt, Build, Found, Missing, Promote, plan, staging_tag
from services.builder.tools import BuildTools
from shared.domain.artifact import RECIPE_LABEL, SOURCE_LABEL, ArtifactRequest
from shared.domain.errors import TransientError
from shared.domain.image import ImageReference
from shared.domain.lease import Built, Lease
from shared.leasing.secrets import SecretReader, registry_access
from shared.leasing.worker import Holder
from shared.registry.access import RegistryAccess
from shared.registry.errors import ImageMissing, ImageUnreadable
from shared.registry.port import ImageRegistry
from shared.runtime.fail_point import FailPoint, fail_point

log = structlog.get_logger()


class ImageNotThere(TransientError):
    """The image is not in the registry, and the module has no instructions to build it: waited for."""

    reason = "ImageMissing"


class BuildStage:
    """Performs the build stage of artifacts."""

    def __init__(
        self, *, registry: ImageRegistry, secrets: SecretReader, buildah: BuildTools, time_limit: float
    ) -> None:
        """`time_limit` is in seconds, for one build and its push."""
        self._registry = registry
        self._secrets = secrets
        self._buildah = buildah
        self._time_limit = time_limit

    async def perform(self, lease: Lease, holder: Holder) -> Built:
        """Ensure that the unsigned image exists. Raises HubError."""
        request = lease.request
        docker_config = await self._secrets.read_docker_config(request.repo_secret)
        target = await self._find(request.target, request, docker_config)
        other = await self._find_other(request, docker_config)
        match plan(request, target=target, other=other):
            case Missing(image=image):
                raise ImageNotThere(
                    f"the registry has no image {image}, and the module does not say how to build it; push it, "
                    "or add a build section"
                )
            case Adopt(image=image):
                log.info("image.adopted", image=image)
                return Built(source=image, is_adopted=True)
            case Promote(image=image):
                await self._promote(image, request, holder, docker_config)
                return Built(source=image, is_adopted=True)
            case Build(destination=destination):
                await holder.confirm()
                fail_point(FailPoint.BUILD_PLANNED)
                built = await self._buildah.build(
                    await self._build_request(request, destination, docker_config), on_line=_log_line
                )
                fail_point(FailPoint.IMAGE_BUILT)
                image = ImageReference.parse(request.target).pinned(built.digest)
                if request.sign is None:
                    await self._promote(image, request, holder, docker_config)
                return Built(source=image, is_adopted=False, log_tail=built.log_tail)

    async def _promote(
        self, image: str, request: ArtifactRequest, holder: Holder, docker_config: bytes | None
    ) -> None:
        """Move the target's tag, as the one who holds the lease. Raises LeaseLost, HubError."""
        target = ImageReference.parse(request.target)
        digest = ImageReference.parse(image).digest
        assert digest is not None
        await holder.confirm()
        await self._registry.tag(
            target, digest, access=registry_access(request.access, docker_config, target)
        )
        fail_point(FailPoint.IMAGE_PROMOTED)

    async def _find_other(self, request: ArtifactRequest, docker_config: bytes | None) -> Found | None:
        staging = staging_tag(request)
        if staging is not None:
            return await self._find(staging, request, docker_config)
        if request.build is None and request.sign is not None and request.sign.source is not None:
            return await self._find(request.sign.source, request, docker_config, is_source=True)
        return None

    async def _find(
        self, image: str, request: ArtifactRequest, docker_config: bytes | None, *, is_source: bool = False
    ) -> Found | None:
        """Look an image up by HEAD, and only where it exists read its labels."""
        reference = ImageReference.parse(image)
        tls = request.sign.source_access if is_source and request.sign is not None else request.access
        access = registry_access(tls, docker_config, reference)
        descriptor = await self._registry.head(reference, access=access)
        if descriptor is None:
            return None
        labels = await self._labels(reference, request.architecture, access)
        return Found(
            digest=descriptor.digest, recipe=labels.get(RECIPE_LABEL), source_digest=labels.get(SOURCE_LABEL)
        )

    async def _labels(
        self, reference: ImageReference, architecture: str, access: RegistryAccess
    ) -> Mapping[str, Any]:
        """An image's labels; one that is not laid out as ours, or just vanished, has none of ours."""
        try:
            image = await self._registry.image(reference, architecture=architecture, access=access)
            config = orjson.loads(await self._registry.config(reference, image.config, access=access))
        except (ImageMissing, ImageUnreadable, orjson.JSONDecodeError):
            return {}
        section = config.get("config") if isinstance(config, dict) else None
        labels = section.get("Labels") if isinstance(section, dict) else None
        return labels if isinstance(labels, dict) else {}

    async def _build_request(
        self, request: ArtifactRequest, destination: str, docker_config: bytes | None
    ) -> BuildRequest:
        build = request.build
        assert build is not None
        return BuildRequest(
            dockerfile=build.dockerfile,
            build_args=dict(build.args),
            destination=destination,
            labels={RECIPE_LABEL: request.recipe},
            secrets={name: await self._secrets.read(name) for name, _ in build.secrets},
            auth_file=docker_config,
            verify_base_image_tls=not (build.base_access.insecure or build.base_access.skip_tls_verify),
            verify_push_tls=not (request.access.insecure or request.access.skip_tls_verify),
            use_cache=request.rebuild_trigger is None,
            time_limit=self._time_limit,
        )


def _log_line(line: str) -> None:
    log.debug("build.line", line=line)
