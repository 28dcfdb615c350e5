"""The API client of agents and of whoever plays the spoke: the product's, and the few requests it has no use for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared.domain.errors import HubError
from shared.kube.client import KubeClient, Resource

CLUSTER_ROLES = Resource(group="rbac.authorization.k8s.io", version="v1", plural="clusterroles")
APPLIED_WORKS = Resource(group="work.open-cluster-management.io", version="v1", plural="appliedmanifestworks")
KMM_MODULES = Resource(group="kmm.sigs.x-k8s.io", version="v1beta1", plural="modules")


class NoSuchKind(Exception):
    """The API server has no resource type of this kind; the message is that of Kubernetes' REST mapping."""

    def __init__(self, kind: str) -> None:
        super().__init__(f'the server doesn\'t have a resource type "{kind}"')


class ApiClient(KubeClient):
    """Use as `KubeClient`."""

    @property
    def url(self) -> str:
        """The server's address as its kubeconfig has it."""
        return str(self._configuration.host)

    async def mapping(self, api_version: str, kind: str) -> tuple[Resource, bool]:
        """The resource of a kind as the server says now, and whether it is namespaced.

        Raises:
            NoSuchKind: the server does not serve it.
        """
        group, _, version = api_version.rpartition("/")
        path = f"/apis/{api_version}" if group else f"/api/{version}"
        try:
            known = (await self._request("GET", path))["resources"]
        except HubError as error:
            if error.reason == "NotFound":
                raise NoSuchKind(kind) from error
            raise
        for one in known:
            if one["kind"] == kind and "/" not in one["name"]:
                return Resource(group=group, version=version, plural=one["name"]), bool(one["namespaced"])
        raise NoSuchKind(kind)

    async def replace(
        self, resource: Resource, name: str, body: Mapping[str, Any], *, namespace: str | None
    ) -> dict[str, Any]:
        """PUT an object. Raises Conflict if its resourceVersion is not the stored one."""
        return await self._request("PUT", resource.path(namespace, name), body=body)

    async def apply_unforced(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        manager: str,
        force: bool,
        namespace: str | None,
    ) -> dict[str, Any]:
        """Server-side apply that leaves fields of other managers to them, unless forced. Raises Conflict."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            body=body,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager} | ({"force": "true"} if force else {}),
        )

    async def delete_in_background(
        self, resource: Resource, name: str, *, namespace: str | None, uid: str
    ) -> None:
        """Delete exactly this object; what it owns is left to the garbage collector."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        await self._request("DELETE", resource.path(namespace, name), body=body)

    async def list_all(self, resource: Resource, *, namespace: str | None = None) -> list[dict[str, Any]]:
        """Every object of a resource; tests have few."""
        items: list[dict[str, Any]] = json.loads(
            await self.list_page(resource, namespace=namespace, limit=5000)
        )["items"]
        return items


def server_message(error: BaseException) -> str:
    """What the API server itself said: our client's errors begin with the request."""
    return str(error).partition(": ")[2] if isinstance(error, HubError) else str(error)
