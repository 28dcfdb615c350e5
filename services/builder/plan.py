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
class Promote:
    """Let the target's tag stand for this image, which was built before: `name@digest`."""

    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Build, and push to this staging tag. What is not to be signed is promoted then."""

    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """There is no such image, and nothing says how to build it."""

    image: str


Plan: TypeAlias = "Adopt | Promote | Build | Missing"


def staging_tag(request: ArtifactRequest) -> str | None:
    """Where a build is pushed to, None if nothing is built.

    Never the final tag: an unsigned image must not bear it where one is to be signed, and a builder that lost its
    lease while it built must move it under no circumstances. The tag keeps what works name by digest from registries
    that collect what has no tag, also after a later build took the final one.
    """
    if request.build is None:
        return None
    return str(ImageReference.parse(request.target).with_tag(f"kmm-unsigned-{request.recipe[:32]}"))


def plan(request: ArtifactRequest, *, target: Found | None, other: Found | None) -> Plan:
    """Decide what to do.

    Args:
        request: the artifact.
        target: the image that the target's tag or digest stands for now.
        other: the staging image where the artifact is built, the unsigned image where it is only signed.

    An image that bears no recipe of ours is somebody else's: it is adopted as it is. One of ours that was made from
    another recipe is replaced. What is to be signed is signed from the unsigned image, if that is there: signing what
    was signed before would put one more layer on it with each new key.
    """
    reference = ImageReference.parse(request.target)
    if request.build is not None:
        if target is not None and target.recipe is None:
            return Adopt(image=reference.pinned(target.digest))
        return _plan_build(request, target, other)
    if request.sign is not None and request.sign.source is not None:
        if target is not None and (other is None or target.source_digest is None):
            return Adopt(image=reference.pinned(target.digest))
        if other is None:
            return Missing(image=request.sign.source)
        return Adopt(image=ImageReference.parse(request.sign.source).pinned(other.digest))
    return Missing(image=request.target) if target is None else Adopt(image=reference.pinned(target.digest))


def _plan_build(request: ArtifactRequest, target: Found | None, staged: Found | None) -> Plan:
    """As `plan`, for what is built, where the target's tag is free or ours."""
    reference = ImageReference.parse(request.target)
    there = target if target is not None and target.recipe == request.recipe else None
    if there is not None and request.sign is None and there.source_digest is None:
        return Adopt(image=reference.pinned(there.digest))
    if staged is not None and staged.recipe == request.recipe:
        image = reference.pinned(staged.digest)
        return Promote(image=image) if request.sign is None else Adopt(image=image)
    if there is not None:
        return Adopt(image=reference.pinned(there.digest))
    destination = staging_tag(request)
    assert destination is not None, "only what is built comes here"
    return Build(destination=destination)
