"""What one kernel of one module needs: an artifact, or the reason why none can be asked for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.domain.artifact import ArtifactRequest, BuildRecipe, SignRecipe
from shared.domain.errors import PermanentError
from shared.domain.image import ImageReference
from shared.domain.kernel import KernelVersion, architecture
from shared.domain.mapping import (
    InvalidResolution,
    MappingIndex,
    NoMatchingKernel,
    Resolution,
    ResolvedBuild,
    ResolvedSign,
)
from shared.domain.module import ModuleSpec

KEY_FIELD = "key"
CERT_FIELD = "cert"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFact:
    """A Secret as the watcher knows it: its version and the names of its data keys."""

    version: str
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What modules may name in the operator's namespace.

    Attributes:
        namespace: the operator's namespace, for messages.
        dockerfiles: ConfigMap name to Dockerfile text, None if it has no such key.
        secrets: by name.
    """

    namespace: str
    dockerfiles: Mapping[str, str | None]
    secrets: Mapping[str, SecretFact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A kernel needs this artifact, to be shipped as this resolution says."""

    resolution: Resolution
    request: ArtifactRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """Nothing can be asked for; `is_match` tells whether an entry took the kernel at all."""

    reason: str
    message: str
    is_match: bool


class ConfigurationMissing(PermanentError):
    """A module names a ConfigMap or Secret that is not there, or lacks the key."""


def demand(
    *, module: str, spec: ModuleSpec, index: MappingIndex, kernel: KernelVersion, configuration: Configuration
) -> Wanted | Unmet:
    """What `module` needs for `kernel`.

    Args:
        module: the ManagedClusterModule's name.
        spec: its spec.
        index: the mappings of that spec.
        kernel: as read from a claim.
        configuration: ConfigMaps and Secrets that exist now.

    Returns:
        The artifact, or the reason why there is none; nothing is raised.
    """
    try:
        resolution = index.resolve(module_name=module, spoke_namespace=spec.spoke_namespace, kernel=kernel)
    except NoMatchingKernel as error:
        return Unmet(reason=error.reason, message=str(error), is_match=False)
    except InvalidResolution as error:
        return Unmet(reason=error.reason, message=str(error), is_match=True)
    try:
        return Wanted(resolution=resolution, request=_request(spec, resolution, configuration))
    except PermanentError as error:
        return Unmet(reason=error.reason, message=f"kernel {kernel}: {error}", is_match=True)


def _request(spec: ModuleSpec, resolution: Resolution, configuration: Configuration) -> ArtifactRequest:
    target = ImageReference.parse(resolution.image)
    if target.digest is not None and (resolution.build is not None or resolution.sign is not None):
        raise PermanentError(
            f"image {target}: what is built or signed needs a tag to be pushed to, not a digest; write name:tag",
            reason="InvalidImageReference",
        )
    repo_secret = spec.image_repo_secret
    return ArtifactRequest(
        target=target.lookup,
        kernel=resolution.kernel,
        architecture=architecture(resolution.kernel),
        build=None if resolution.build is None else _build(resolution.build, configuration),
        sign=None if resolution.sign is None else _sign(resolution.sign, resolution.build, configuration),
        access=resolution.tls,
        repo_secret=repo_secret,
        repo_secret_version=_secret(repo_secret, "imageRepoSecret", configuration).version
        if repo_secret
        else None,
        rebuild_trigger=spec.rebuild_trigger,
    )


def _build(build: ResolvedBuild, configuration: Configuration) -> BuildRecipe:
    name = build.dockerfile_config_map
    if name not in configuration.dockerfiles:
        raise ConfigurationMissing(
            f"ConfigMap {name!r} (build.dockerfileConfigMap) does not exist in namespace "
            f"{configuration.namespace!r}; create it with the Dockerfile under the key 'dockerfile'",
            reason="ConfigMapMissing",
        )
    dockerfile = configuration.dockerfiles[name]
    if not dockerfile:
        raise ConfigurationMissing(
            f"ConfigMap {name!r} in namespace {configuration.namespace!r} has no key 'dockerfile'; "
            "put the Dockerfile's text there",
            reason="DockerfileMissing",
        )
    return BuildRecipe(
        dockerfile=dockerfile,
        args=build.build_args,
        secrets=tuple(
            (secret, _secret(secret, "build.secrets", configuration).version) for secret in build.secrets
        ),
        base_access=build.base_image_tls,
    )


def _sign(sign: ResolvedSign, build: ResolvedBuild | None, configuration: Configuration) -> SignRecipe:
    if build is None and not sign.unsigned_image:
        raise PermanentError(
            "sign: there is nothing to sign; write sign.unsignedImage, or add a build section",
            reason="InvalidModule",
        )
    return SignRecipe(
        files=sign.files,
        key_secret=sign.key_secret,
        key_version=_secret(sign.key_secret, "sign.keySecret", configuration, field=KEY_FIELD).version,
        cert_secret=sign.cert_secret,
        cert_version=_secret(sign.cert_secret, "sign.certSecret", configuration, field=CERT_FIELD).version,
        source=None
        if build is not None or not sign.unsigned_image
        else ImageReference.parse(sign.unsigned_image).lookup,
        source_access=sign.unsigned_tls,
    )


def _secret(name: str, where: str, configuration: Configuration, *, field: str | None = None) -> SecretFact:
    secret = configuration.secrets.get(name)
    if secret is None:
        raise ConfigurationMissing(
            f"Secret {name!r} ({where}) does not exist in namespace {configuration.namespace!r}; create it there",
            reason="SecretMissing",
        )
    if field is not None and field not in secret.keys:
        raise ConfigurationMissing(
            f"Secret {name!r} ({where}) in namespace {configuration.namespace!r} has no key {field!r}",
            reason="SecretIncomplete",
        )
    return secret
