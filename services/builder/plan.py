"""What the build stage has to do, given what the registry has. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shared.domain.artifact import ArtifactRequest
from shared.domain.image import ImageReference


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An image in the registry: its digest, and what our labels on it say (None without the label)."""

    digest: str
    recipe: str | None
    source_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Take this image as the result: `name@digest`."""

    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Build, and push to this tag."""

    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """There is no such image, and nothing says how to build it."""

    image: str


Plan: TypeAlias = "Adopt | Build | Missing"


def staging_tag(request: ArtifactRequest) -> str | None:
    """Where an image waits for its signature, None if it is not built or not signed.

    Never the final tag: an unsigned image must not bear it.
    """
    if request.build is None or request.sign is None:
        return None
    return str(ImageReference.parse(request.target).with_tag(f"kmm-unsigned-{request.recipe[:32]}"))


def plan(request: ArtifactRequest, *, target: Found | None, other: Found | None) -> Plan:
    """Decide what to do.

    Args:
        request: the artifact.
        target: the image that the target's tag or digest stands for now.
        other: the staging image where the artifact is built and signed, the unsigned image where it is only signed.

    An image that bears no recipe of ours is somebody else's: it is adopted as it is. One of ours that was made from
    another recipe is replaced. Where both are there, the unsigned image is taken: signing what was signed before
    would put one more layer on it with each new key.
    """
    reference = ImageReference.parse(request.target)
    if request.build is not None:
        if target is not None and target.recipe is None:
            return Adopt(image=reference.pinned(target.digest))
        staging = staging_tag(request)
        if staging is not None and other is not None and other.recipe == request.recipe:
            return Adopt(image=reference.pinned(other.digest))
        if target is not None and target.recipe == request.recipe:
            return Adopt(image=reference.pinned(target.digest))
        return Build(destination=staging or request.target)
    if request.sign is not None and request.sign.source is not None:
        if target is not None and (other is None or target.source_digest is None):
            return Adopt(image=reference.pinned(target.digest))
        if other is None:
            return Missing(image=request.sign.source)
        return Adopt(image=ImageReference.parse(request.sign.source).pinned(other.digest))
    return Missing(image=request.target) if target is None else Adopt(image=reference.pinned(target.digest))
