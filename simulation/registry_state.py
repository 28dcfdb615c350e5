"""Container registries as a value in memory.

Source of the rules: OCI distribution specification 1.1, and what docker-registry does beyond it; the contract tests
hold both against the real ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.domain.image import ImageReference
from shared.registry.access import Credentials, RegistryAccess
from shared.registry.auth import denied
from shared.registry.content import digest_of
from shared.registry.errors import (
    RegistryRejected,
    RegistryUnavailable,
)
from shared.registry.manifest import (
    Descriptor,
    Manifest,
    media_type_of,
)
from simulation.line import LineBroken
from simulation.module_image import ImageFiles


@dataclass(slots=True, kw_only=True)
class RegistryWeather:
    """How a registry behaves now; the nemesis changes it. All are probabilities of one request.

    Attributes:
        refusals: answered with one of `statuses` instead of being done.
        statuses: 401 and 403 refuse credentials, 404 says that nothing is there, 408, 429 and 5xx that it is busy.
            By default only what says that it passes: services may believe the others, and give up.
        short_answers: a blob or manifest comes with other bytes than it has.
    """

    refusals: float = 0.0
    statuses: tuple[int, ...] = (401, 404, 429, 500, 503)
    short_answers: float = 0.0


@dataclass(slots=True)
class Repository:
    """One repository. Blobs are those that were pushed or mounted here; a registry shows no others."""

    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class RegistryState:
    """All registries of the simulated world. A repository's key is its name with the registry, as in references.

    Attributes:
        weather: how it behaves.
        is_down: nobody can connect.
        required: who alone may do anything; None lets everybody in.
        observe: told of each tag that was set: repository, tag, digest.
    """

    def __init__(self, *, chance: random.Random) -> None:
        self.weather = RegistryWeather()
        self.is_down = False
        self.required: Credentials | None = None
        self.observe: Callable[[str, str, str], None] = lambda *_: None
        self._chance = chance
        self._contents: dict[str, bytes] = {}
        self._repositories: dict[str, Repository] = {}

    # What others do to it

    def push(self, image: str, files: ImageFiles) -> str:
        """Somebody pushes an image by tag. Returns its digest."""
        reference = ImageReference.parse(image)
        for blob in files.blobs:
            self.add_blob(reference, blob)
        return self.put(reference, files.manifest, files.media_type)

    def move_tag(self, image: str, digest: str) -> None:
        """Somebody lets a tag stand for another image of the repository."""
        reference = ImageReference.parse(image)
        self._set_tag(reference, digest)

    def delete_tag(self, image: str) -> None:
        """Somebody deletes a tag; the image stays until garbage is collected."""
        reference = ImageReference.parse(image)
        self.repository(reference).tags.pop(reference.manifest, None)

    def collect_garbage(self) -> None:
        """Drop manifests that no tag leads to, and then blobs that no manifest names."""
        for repository in self._repositories.values():
            kept = set(repository.tags.values())
            for digest in list(kept):
                kept |= set(_named(repository.manifests[digest].content))
            repository.manifests = {
                digest: repository.manifests[digest] for digest in repository.manifests if digest in kept
            }
            named = {name for manifest in repository.manifests.values() for name in _named(manifest.content)}
            repository.blobs &= named
        used = {digest for repository in self._repositories.values() for digest in repository.blobs}
        self._contents = {digest: content for digest, content in self._contents.items() if digest in used}

    def damage(self, digest: str) -> None:
        """A bit of a blob flips on disk."""
        content = self._contents[digest]
        self._contents[digest] = content[:-1] + bytes([content[-1] ^ 1])

    def lose(self, digest: str) -> None:
        """A blob is gone from the disk, though repositories still link to it."""
        del self._contents[digest]

    # What can be seen

    def has_image(self, image: str) -> bool:
        """Whether an image can be pulled: its manifest and all that it names."""
        reference = ImageReference.parse(image)
        manifest = self.find(reference)
        repository = self.repository(reference)
        return manifest is not None and all(
            self.blob(reference, name) is not None or name in repository.manifests
            for name in _named(manifest.content)
        )

    def names(self, registry: str) -> list[str]:
        """Repositories of a registry (host and port)."""
        return [name for name in self._repositories if name.startswith(f"{registry}/")]

    def tags(self, image: str) -> Mapping[str, str]:
        """Digests by tag, of an image's repository."""
        return self.repository(ImageReference.parse(image)).tags

    # Effects of requests, without any weather

    def repository(self, reference: ImageReference) -> Repository:
        """The reference's repository, made if it was never used."""
        return self._repositories.setdefault(reference.name, Repository())

    def find(self, reference: ImageReference) -> Manifest | None:
        """What the reference's digest or tag stands for."""
        repository = self.repository(reference)
        digest = reference.digest or repository.tags.get(reference.manifest, "")
        return repository.manifests.get(digest)

    def blob(self, reference: ImageReference, digest: str) -> bytes | None:
        """A blob of the reference's repository."""
        return self._contents.get(digest) if digest in self.repository(reference).blobs else None

    def add_blob(self, reference: ImageReference, content: bytes) -> str:
        """Store a blob. Returns its digest."""
        digest = digest_of(content)
        self._contents[digest] = content
        self.repository(reference).blobs.add(digest)
        return digest

    def mount(self, digest: str, source: ImageReference, target: ImageReference) -> bool:
        """Take a blob of another repository. Returns whether that had it."""
        if self.blob(source, digest) is None:
            return False
        self.repository(target).blobs.add(digest)
        return True

    def put(self, reference: ImageReference, content: bytes, media_type: str) -> str:
        """Store a manifest, under the reference's tag if it has one. Returns its digest.

        Raises:
            RegistryRejected: it is no JSON, or names what the repository does not have.
        """
        digest, repository = digest_of(content), self.repository(reference)
        try:
            names = list(_named(content))
        except ValueError as error:
            raise RegistryRejected(f"PUT {reference} was answered with 400 (MANIFEST_INVALID).") from error
        for name in names:
            if self.blob(reference, name) is None and name not in repository.manifests:
                raise RegistryRejected(
                    f"PUT {reference} was answered with 400 (MANIFEST_BLOB_UNKNOWN: {name})."
                )
        descriptor = Descriptor(
            media_type=media_type_of(content, media_type), digest=digest, size=len(content)
        )
        repository.manifests[digest] = Manifest(descriptor=descriptor, content=content)
        if reference.tag is not None:
            self._set_tag(reference, digest)
        return digest

    def refuse(self, what: str, access: RegistryAccess) -> bool:
        """Let the weather answer in place of the registry. Returns whether it says 404.

        Raises:
            LineBroken: it is down.
            RegistryDenied, RegistryUnavailable: as `RegistryClient`.
        """
        if self.is_down:
            raise LineBroken("the registry is away")
        status = 0
        if self.required is not None and access.credentials != self.required:
            status = 401
        elif self.weather.refusals and self._chance.random() < self.weather.refusals:
            status = self._chance.choice(self.weather.statuses)
        if status in {401, 403}:
            raise denied(what)
        if status not in {0, 404}:
            raise RegistryUnavailable(f"{what} was answered with {status}.")
        return status == 404

    def shorten(self, content: bytes) -> bytes:
        """What arrives of content, as the weather wants it."""
        short = self.weather.short_answers
        return content[:-1] if short and self._chance.random() < short else content

    def _set_tag(self, reference: ImageReference, digest: str) -> None:
        repository = self.repository(reference)
        assert digest in repository.manifests, f"{reference.name} has no {digest}"
        repository.tags[reference.manifest] = digest
        self.observe(reference.name, reference.manifest, digest)


def _named(manifest: bytes) -> Iterator[str]:
    """Digests that a manifest or index names."""
    document: dict[str, Any] = json.loads(manifest)
    parts: Iterable[dict[str, Any]] = [
        *document.get("layers", ()),
        *document.get("manifests", ()),
        *([document["config"]] if "config" in document else ()),
    ]
    return (part["digest"] for part in parts)
