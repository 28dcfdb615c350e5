"""Image references: taking them apart, pinning them to a digest.

Grammar: the distribution project's `reference` package and the OCI distribution specification. A reference
keeps the name as the user wrote it: mirrors and pull secrets match on that text.
"""

import re
from dataclasses import dataclass, replace
from typing import NewType, Self

from shared.domain.errors import PermanentError

Digest = NewType("Digest", str)
"""A digest that passed `parse_digest`: `sha256:` and 64 hexadecimal digits."""

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]+")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_MAX_NAME = 255
_EXAMPLE = "write it like registry.example:5000/team/module:1.0 or …/module@sha256:…"


class InvalidImageReference(PermanentError):
    """A text that is no image reference, digest or tag; the message quotes it."""

    reason = "InvalidImageReference"


def parse_digest(text: str) -> Digest:
    """Return `text` as a digest; it must be `sha256:` and 64 lower-case hexadecimal digits.

    For digests that come from a registry or are about to be trusted.

    Raises:
        InvalidImageReference: any other text.
    """
    if not _SHA256.fullmatch(text):
        raise InvalidImageReference(f"digest {_shown(text)}: expected sha256: and 64 hexadecimal digits")
    return Digest(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """An image's name with a tag, a digest, both or neither. `parse` makes one, `str()` gives the text back.

    Attributes:
        name: registry and repository as written, without tag and digest.
        registry: host and port to ask; `docker.io` if the name has none.
        repository: path to ask for there; on `docker.io` a single word stands for `library/<word>`.
        tag: as written, or None.
        digest: as written, or None. Only its form `algorithm:hex` is known to be right, not its length.
    """

    name: str
    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference in `text`.

        The first part of the path is a registry if it has a dot or a colon or is `localhost`.

        Raises:
            InvalidImageReference: with the part that is wrong.
        """
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise InvalidImageReference(f"image {_shown(text)}: bad digest {_shown(digest)}; {_EXAMPLE}")
        head, slash, last = rest.rpartition("/")
        last, colon, tag = last.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise InvalidImageReference(
                f"image {_shown(text)}: bad tag {_shown(tag)}; a tag is 1 to 128 letters, digits and _ . -"
            )
        name = head + slash + last
        registry, repository = _split_name(name)
        if not _is_registry(registry):
            raise InvalidImageReference(f"image {_shown(text)}: bad registry {_shown(registry)}; {_EXAMPLE}")
        if not _REPOSITORY.fullmatch(repository) or len(name) > _MAX_NAME:
            raise InvalidImageReference(
                f"image {_shown(text)}: bad name {_shown(repository)}; up to {_MAX_NAME} lower-case letters, "
                f"digits, and single . _ - between them; {_EXAMPLE}"
            )
        return cls(
            name=name,
            registry=registry,
            repository=repository,
            tag=tag if colon else None,
            digest=digest if at else None,
        )

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"{self.name}{tag}{digest}"

    @property
    def lookup(self) -> str:
        """The reference as text for a registry look-up: with `:latest` if it has neither tag nor digest."""
        return str(self) if self.tag or self.digest else f"{self.name}:{DEFAULT_TAG}"

    @property
    def manifest(self) -> str:
        """What to ask for in `/v2/<repository>/manifests/<…>`: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or DEFAULT_TAG

    def pinned(self, digest: str) -> str:
        """Return `name@digest`, tag dropped, host and port kept; a reference with a digest stays as it is.

        `digest` is the registry's answer; check it with `parse_digest` where it comes in.
        """
        return str(self) if self.digest else f"{self.name}@{digest}"

    def with_tag(self, tag: str) -> Self:
        """Return the same name with `tag` and without a digest.

        Raises:
            InvalidImageReference: `tag` is not 1 to 128 letters, digits and `_ . -`.
        """
        if not _TAG.fullmatch(tag):
            raise InvalidImageReference(
                f"tag {_shown(tag)} for {self.name}: a tag is 1 to 128 letters, digits and _ . -"
            )
        return replace(self, tag=tag, digest=None)


def _is_registry(text: str) -> bool:
    found = _REGISTRY.fullmatch(text)
    return found is not None and int(found["port"] or 0) < 2**16


def _split_name(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "…")
