"""A lean client of the API server: pooled connections, orjson, errors by meaning.

The `kubernetes` package reads kubeconfig files and in-cluster credentials and keeps tokens fresh; requests are
made directly, because its own request path costs four times the CPU of this one per write.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import AddrInfoType
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from shared.domain.backoff import asked_delay
from shared.domain.errors import HubError, PermanentError
from shared.kube.errors import ApiUnavailable, Conflict, Forbidden, Gone, NotFound, Refused
from shared.runtime.keepalive import keep_alive

REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10, sock_read=15)
"""Webhooks, which the server asks first, have ten seconds by default (admissionregistration.k8s.io/v1)."""
WATCH_SECONDS = 60
"""How long the server is asked to keep a watch open; then it is resumed where it ended."""

WATCH_SILENCE_SECONDS = 75
"""A watch that neither says anything nor ends within so long is half-open. Bookmarks are no sign of life: the server
sends none for a kind of which it has seen no event since it started (apiserver, storage/cacher, dispatchEvents)."""

MAX_LINE_BYTES = 16 * 1024 * 1024
CONNECTIONS = 32


class NoHub(PermanentError):
    """No hub is configured."""

    reason = "NoHub"


class WatchBroken(ApiUnavailable):
    """A watch that was open broke or fell silent."""

    reason = "WatchBroken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of object as the API's paths name it."""

    group: str
    version: str
    plural: str

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """The path of a collection, or of one object if `name` is given. Names are escaped.

        Raises:
            Refused: a name that would make it the path of something else.
        """
        if {namespace, name} & {"", ".", ".."}:
            raise Refused(f"{self.plural}: {namespace!r} and {name!r} cannot be names in the Kubernetes API")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


MANAGED_CLUSTERS = Resource(
    group="cluster.open-cluster-management.io", version="v1", plural="managedclusters"
)
MANIFEST_WORKS = Resource(group="work.open-cluster-management.io", version="v1", plural="manifestworks")
MODULES = Resource(group="hub.kmm.sigs.x-k8s.io", version="v1beta1", plural="managedclustermodules")
CONFIG_MAPS = Resource(group="", version="v1", plural="configmaps")
SECRETS = Resource(group="", version="v1", plural="secrets")
EVENTS = Resource(group="", version="v1", plural="events")
NAMESPACES = Resource(group="", version="v1", plural="namespaces")
LEASES = Resource(group="coordination.k8s.io", version="v1", plural="leases")
CRDS = Resource(group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions")


class KubeClient:
    """Use as `async with KubeClient.connect() as kube:`."""

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        self._configuration = configuration
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> Self:
        """Read the configuration: a given kubeconfig, else KUBECONFIG or ~/.kube/config, else the pod's own.

        Raises:
            NoHub: none of them names a hub.
        """
        configuration = kubernetes_client.Configuration()
        try:
            await kubernetes_config.load_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig) if kubeconfig else None, client_configuration=configuration
            )
        except kubernetes_config.ConfigException as error:
            raise NoHub(
                f"no hub is configured: set KUBECONFIG to the hub's kubeconfig file ({error})"
            ) from error
        return cls(configuration)

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(
            cafile=self._configuration.ssl_ca_cert, cadata=self._configuration.ca_cert_data
        )
        if self._configuration.cert_file:
            context.load_cert_chain(self._configuration.cert_file, self._configuration.key_file)
        if not self._configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._session = aiohttp.ClientSession(
            base_url=self._configuration.host,
            connector=aiohttp.TCPConnector(limit=0, ssl=context, socket_factory=_make_socket),
            timeout=REQUEST_TIMEOUT,
            read_bufsize=MAX_LINE_BYTES,
        )
        self._seats = asyncio.Semaphore(CONNECTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        """Read one object. Raises NotFound."""
        return await self._request("GET", resource.path(namespace, name))

    async def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        limit: int = 500,
        token: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> bytes:
        """One page of a list, undecoded, so that the caller decodes only the fields it needs. Raises Gone."""
        query = {"limit": str(limit)} | ({"continue": token} if token else {})
        if labels:
            query["labelSelector"] = ",".join(f"{name}={value}" for name, value in labels.items())
        return await self._request_bytes("GET", resource.path(namespace), query=query)

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Create an object. Raises Conflict if it exists, NotFound if its namespace does not."""
        return await self._request("POST", resource.path(namespace), body=body)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Apply a JSON merge patch (RFC 7386). Raises NotFound, Conflict."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=body,
            content_type="application/merge-patch+json",
        )

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        manager: str,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Server-side apply, taking over fields that others manage."""
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            body=body,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager, "force": "true"},
        )

    async def delete(
        self, resource: Resource, name: str, *, namespace: str | None = None, uid: str | None = None
    ) -> None:
        """Delete an object, and only the one with `uid` if given. Raises NotFound, Conflict."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions"} | (
            {"preconditions": {"uid": uid}} if uid else {}
        )
        await self._request("DELETE", resource.path(namespace, name), body=body)

    async def watch(
        self, resource: Resource, *, resource_version: str, namespace: str | None = None
    ) -> AsyncIterator[bytes]:
        """The lines of one watch request, each an undecoded event. Ends when the server closes the watch.

        Raises:
            Gone: the version is too old.
            WatchBroken: it was open, then the connection broke or fell silent.
            ApiUnavailable, Forbidden, NotFound, Refused: it was never open.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SILENCE_SECONDS)
        session = self._open_session()
        broken = ApiUnavailable
        try:
            async with session.get(
                resource.path(namespace), params=query, headers=await self._headers(), timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _error_for(
                        response.status, await response.read(), "watch", resource.plural, response.headers
                    )
                broken = WatchBroken
                async for line in response.content:
                    yield line
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise broken(f"the watch of {resource.plural} broke: {error!r}") from error

    async def _request(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        content = await self._request_bytes(method, path, **rest)
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise ApiUnavailable(f"{method} {path}: the answer is no JSON: {content[:80]!r}") from error
        if not isinstance(answer, dict):
            raise ApiUnavailable(f"{method} {path}: the answer is no JSON object: {content[:80]!r}")
        return answer

    async def _request_bytes(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        data = None if body is None else orjson.dumps(body)
        headers = await self._headers() | ({"Content-Type": content_type} if data is not None else {})
        try:
            async with (
                self._seats,
                self._open_session().request(
                    method, path, data=data, params=query, headers=headers
                ) as response,
            ):
                answer = await response.read()
                if response.status >= 400:
                    raise _error_for(response.status, answer, method, path, response.headers)
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiUnavailable(f"{method} {path}: the API server cannot be reached: {error!r}") from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("KubeClient is used outside of `async with`")
        return self._session

    async def _headers(self) -> dict[str, str]:
        settings: Mapping[str, Any] = await self._configuration.auth_settings()
        tokens = {setting["key"]: setting["value"] for setting in settings.values() if setting["value"]}
        return {"Accept": "application/json"} | tokens


def _make_socket(address: AddrInfoType) -> socket.socket:
    """A socket that notices when the API server's host is gone, also on a watch, which may rightly say nothing."""
    connection = socket.socket(*address[:3])
    keep_alive(connection)
    return connection


def _error_for(status: int, answer: bytes, method: str, path: str, headers: Mapping[str, str]) -> HubError:
    """Turn a Kubernetes Status into an error of ours (api-conventions, "Response Status Kind")."""
    try:
        message = str(orjson.loads(answer).get("message", ""))
    except (orjson.JSONDecodeError, AttributeError):
        message = answer[:500].decode(errors="replace")
    text = f"{method} {path}: {message or f'HTTP {status}'}"
    if status == 429 or status >= 500:
        return ApiUnavailable(text, retry_after=asked_delay(headers.get("Retry-After", "")))
    by_status: dict[int, type[HubError]] = {
        401: Forbidden,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        410: Gone,
    }
    return by_status.get(status, Refused)(text)
