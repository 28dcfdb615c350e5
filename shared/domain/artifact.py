"""An artifact: one image that some cluster needs, however many clusters wait for it.

Its identity is the hash of everything that decides its content or the way to reach it, so that equal needs
of different clusters and modules meet in one row, and any change of an input is a new artifact.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType

from shared.domain.canonical import Json, content_hash
from shared.domain.kernel import KernelVersion

ArtifactKey = NewType("ArtifactKey", str)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""A time that is over for everybody."""

RECIPE_LABEL = "hub.kmm.sigs.x-k8s.io/recipe"
"""Image label: the recipe that an image of ours was built from; an image without it is somebody else's."""

SOURCE_LABEL = "hub.kmm.sigs.x-k8s.io/source-digest"
"""Image label: the digest of the unsigned image that a signed image of ours was made from."""


class ArtifactState(StrEnum):
    """Where an artifact stands. `building` and `signing` are held under a lease; `unwanted`: nobody needs it now."""

    WANTED = "wanted"
    BUILDING = "building"
    BUILT = "built"
    SIGNING = "signing"
    READY = "ready"
    FAILED = "failed"
    UNWANTED = "unwanted"


class Stage(StrEnum):
    """The two kinds of work on an artifact; each has its queue and its workers."""

    BUILD = "build"
    SIGN = "sign"

    @property
    def waiting(self) -> ArtifactState:
        """The state in which an artifact waits for a worker of this stage."""
        return ArtifactState.WANTED if self is Stage.BUILD else ArtifactState.BUILT

    @property
    def working(self) -> ArtifactState:
        """The state in which a worker of this stage holds the artifact's lease."""
        return ArtifactState.BUILDING if self is Stage.BUILD else ArtifactState.SIGNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a registry is reached (`registryTLS`: KMM API, section registryTLS)."""

    insecure: bool = False
    skip_tls_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecipe:
    """What an image is built from. Secrets appear by name and version, never by content."""

    dockerfile: str
    args: tuple[tuple[str, str], ...]
    secrets: tuple[tuple[str, str], ...] = ()
    base_access: Access = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRecipe:
    """Which files are signed with which key. `source` is the unsigned image where nothing is built."""

    files: tuple[str, ...]
    key_secret: str
    key_version: str
    cert_secret: str
    cert_version: str
    source: str | None = None
    source_access: Access = Access()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRequest:
    """Everything that builder and signer need to make one artifact."""

    target: str
    kernel: KernelVersion
    architecture: str
    build: BuildRecipe | None = None
    sign: SignRecipe | None = None
    access: Access = Access()
    repo_secret: str | None = None
    repo_secret_version: str | None = None
    rebuild_trigger: int | None = None

    @property
    def key(self) -> ArtifactKey:
        """The identity: hash of the whole request."""
        return ArtifactKey(content_hash(request_to_json(self)))

    @property
    def recipe(self) -> str:
        """Hash of what decides the unsigned content; goes into RECIPE_LABEL.

        Credentials, TLS settings of the target and the signing key are left out: rotating them must not
        rebuild an image.
        """
        request = request_to_json(self)
        return content_hash(
            {name: request[name] for name in ("kernel", "architecture", "build", "rebuild_trigger")}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact as it stands: what was asked for, how far it is, and what went wrong last.

    `shared.domain.lease` says how one becomes the next.

    Attributes:
        attempts: tries of the current stage so far.
        source: `name@digest` of the unsigned image, once there is one.
        digest: what is shipped, once it is ready.
        signed_by: fingerprint of the certificate whose signature was verified.
        reason, message: of the last failure.
        fence: the fencing number of the newest lease; it only grows.
        owner: who held the newest lease; for people.
        not_before: nobody may take it earlier: the pause before the next try, or the deadline of its lease.
        announce_after: if nobody moved it until then, it is announced again.
        announced: how many times a stage of it was announced; it only grows.
        source_is_adopted: the unsigned image was there already.
        log_tail: the end of the build's output.
    """

    key: ArtifactKey
    request: ArtifactRequest
    state: ArtifactState
    attempts: int
    source: str | None
    digest: str | None
    signed_by: str | None
    reason: str | None
    message: str | None
    fence: int = 0
    owner: str | None = None
    not_before: dt.datetime = EPOCH
    announce_after: dt.datetime = EPOCH
    announced: int = 0
    source_is_adopted: bool = False
    log_tail: str | None = None
    build_seconds: float | None = None
    sign_seconds: float | None = None


def request_to_json(request: ArtifactRequest) -> dict[str, Json]:
    """The stored form of a request; `request_from_json` reads it back."""
    build, sign = request.build, request.sign
    return {
        "target": request.target,
        "kernel": request.kernel,
        "architecture": request.architecture,
        "build": None
        if build is None
        else {
            "dockerfile": build.dockerfile,
            "args": [list(pair) for pair in build.args],
            "secrets": [list(pair) for pair in build.secrets],
            "base_access": _access_to_json(build.base_access),
        },
        "sign": None
        if sign is None
        else {
            "files": list(sign.files),
            "key_secret": sign.key_secret,
            "key_version": sign.key_version,
            "cert_secret": sign.cert_secret,
            "cert_version": sign.cert_version,
            "source": sign.source,
            "source_access": _access_to_json(sign.source_access),
        },
        "access": _access_to_json(request.access),
        "repo_secret": request.repo_secret,
        "repo_secret_version": request.repo_secret_version,
        "rebuild_trigger": request.rebuild_trigger,
    }


def request_from_json(stored: Mapping[str, Any]) -> ArtifactRequest:
    """Read a request that `request_to_json` wrote."""
    build, sign = stored["build"], stored["sign"]
    return ArtifactRequest(
        target=stored["target"],
        kernel=KernelVersion(stored["kernel"]),
        architecture=stored["architecture"],
        build=None
        if build is None
        else BuildRecipe(
            dockerfile=build["dockerfile"],
            args=tuple((name, value) for name, value in build["args"]),
            secrets=tuple((name, version) for name, version in build["secrets"]),
            base_access=Access(**build["base_access"]),
        ),
        sign=None
        if sign is None
        else SignRecipe(
            files=tuple(sign["files"]),
            key_secret=sign["key_secret"],
            key_version=sign["key_version"],
            cert_secret=sign["cert_secret"],
            cert_version=sign["cert_version"],
            source=sign["source"],
            source_access=Access(**sign["source_access"]),
        ),
        access=Access(**stored["access"]),
        repo_secret=stored["repo_secret"],
        repo_secret_version=stored["repo_secret_version"],
        rebuild_trigger=stored["rebuild_trigger"],
    )


def _access_to_json(access: Access) -> dict[str, Json]:
    return {"insecure": access.insecure, "skip_tls_verify": access.skip_tls_verify}
