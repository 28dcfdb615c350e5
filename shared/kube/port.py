"""What services need of the hub's API, whoever provides it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from shared.kube.client import Resource


class HubApi(Protocol):
    """The hub's API as `shared.kube.client.KubeClient` offers it over HTTPS.

    Every method may raise ApiUnavailable (the answer to a write may be lost after the write), Forbidden and Refused.
    tests/contract/test_hub_api.py says what else holds.
    """

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        """Read one object. Raises NotFound."""

    async def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        limit: int = 500,
        token: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> bytes:
        """One page of a list, undecoded. All pages show the collection as it was for the first. Raises Gone."""

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Create an object. Raises Conflict if it exists, NotFound if its namespace does not."""

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Apply a JSON merge patch (RFC 7386).

        Raises:
            NotFound: no such object.
            Conflict: the patch names a metadata.resourceVersion that is not the object's.
            Refused: the patch names a metadata.uid that is not the object's. The status subresource ignores the uid.
        """

    async def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str | None = None
    ) -> None:
        """Delete an object, and only the one with `uid` if given. Raises NotFound, Conflict."""

    def watch(
        self, resource: Resource, *, resource_version: str, namespace: str | None = None
    ) -> AsyncIterator[bytes]:
        """The lines of one watch request, each an undecoded event. Ends when the server closes the watch.

        Raises Gone, or yields an event ERROR with code 410, if the version is too old.
        """
