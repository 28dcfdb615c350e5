"""What the build stage asks of a build tool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from services.builder.build_request import BuildRequest, BuiltImage


class BuildTools(Protocol):
    """Builds images. `services.builder.buildah` is the tool; the simulation has another one."""

    async def build(
        self, request: BuildRequest, *, on_line: Callable[[str], None] = lambda _: None
    ) -> BuiltImage:
        """Build an image, push it, and return the digest that the registry knows it by.

        Args:
            request: what to build, and where to.
            on_line: receives each line of the log, cleaned and without secret values.

        Raises:
            BuildFailed: the Dockerfile is at fault.
            RegistryRefused: a registry does not have an image, or denies access.
            BuildTimedOut: the time limit was reached.
            RegistryUnavailable: a registry or the network failed (`services.builder.buildah_failure`).
            BuildInterrupted: something outside ended the build.
        """
