"""What a test of a work agent does on the hub, and sees there: works of its own in the namespace of one cluster."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from running_services import eventually
from spoke.client import KMM_MODULES, ApiClient
from spoke.lane import Lane

from shared.kube.client import CONFIG_MAPS, MANIFEST_WORKS, Resource
from shared.kube.errors import NotFound

GRACE_SECONDS = 4.0
"""How long objects outlive a work that vanishes; OCM's default is an hour."""

AGENT_SECONDS = 40.0
"""What an agent may take for anything but a resync; OCM's own retries double their pauses."""

Json = dict[str, Any]


def config_map(name: str, data: Mapping[str, str], *, namespace: str = "default", **metadata: Any) -> Json:
    """A manifest that an agent may apply without further rights, and whose content nobody validates."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "data": dict(data),
    }


def module(name: str, *, namespace: str = "kmm", selector: Mapping[str, str] | None = None) -> Json:
    """A small Module with every default spelled out."""
    container = {
        "modprobe": {"moduleName": "kmm_hello", "dirName": "/opt"},
        "kernelMappings": [{"literal": "6.1.0-13-amd64", "containerImage": "registry.example/hello:1"}],
    }
    return {
        "apiVersion": "kmm.sigs.x-k8s.io/v1beta1",
        "kind": "Module",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": dict(selector or {}), "moduleLoader": {"container": container}},
    }


def configured(manifest: Mapping[str, Any], plural: str, **config: Any) -> Json:
    """An entry of `manifestConfigs` for a manifest."""
    group = manifest["apiVersion"].rpartition("/")[0]
    names = {key: manifest["metadata"][key] for key in ("name", "namespace")}
    return {"resourceIdentifier": {"group": group, "resource": plural, **names}, **config}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The hub's side of a lane. `lane.agent` runs."""

    hub: ApiClient
    lane: Lane

    @staticmethod
    def new_name() -> str:
        """A name that no other test uses."""
        return f"w{secrets.token_hex(4)}"

    async def post(self, *manifests: Json, name: str | None = None, **spec: Any) -> str:
        """Create a work. Returns its name."""
        name = name or self.new_name()
        body = {
            "apiVersion": "work.open-cluster-management.io/v1",
            "kind": "ManifestWork",
            "metadata": {"name": name},
            "spec": {"workload": {"manifests": list(manifests)}, **spec},
        }
        await self.hub.create(MANIFEST_WORKS, body, namespace=self.lane.cluster)
        return name

    async def change(self, name: str, *manifests: Json) -> None:
        """Give a work other manifests."""
        await self.patch(name, {"spec": {"workload": {"manifests": list(manifests)}}})

    async def patch(self, name: str, patch: Mapping[str, Any]) -> None:
        """Change a work by a merge patch."""
        await self.hub.merge_patch(MANIFEST_WORKS, name, patch, namespace=self.lane.cluster)

    async def delete(self, name: str) -> None:
        """Ask for the deletion of a work."""
        await self.hub.delete(MANIFEST_WORKS, name, namespace=self.lane.cluster)

    async def work(self, name: str) -> Json | None:
        """A work, None if there is none."""
        return await self._get(self.hub, MANIFEST_WORKS, name, self.lane.cluster)

    async def on_spoke(
        self, resource: Resource, name: str, *, namespace: str | None = "default"
    ) -> Json | None:
        """An object of the spoke, None if there is none."""
        return await self._get(self.lane.kube, resource, name, namespace)

    async def map(self, name: str) -> Json | None:
        """A ConfigMap of the spoke's namespace `default`."""
        return await self.on_spoke(CONFIG_MAPS, name)

    async def module(self, name: str) -> Json | None:
        """A Module of the spoke's namespace `kmm`."""
        return await self.on_spoke(KMM_MODULES, name, namespace="kmm")

    async def edit(self, resource: Resource, name: str, patch: Mapping[str, Any], *, namespace: str) -> Json:
        """Somebody on the spoke edits an object."""
        return await self.lane.kube.merge_patch(resource, name, patch, namespace=namespace)

    async def shows(
        self, name: str, kind: str, status: str, reason: str, *, seconds: float = AGENT_SECONDS
    ) -> Json:
        """Wait for a condition of the work's current generation. Returns the work."""

        async def look() -> Json:
            work = await self.work(name)
            assert work is not None, "the work is gone"
            found = condition((work.get("status") or {}).get("conditions") or [], kind)
            assert (found["status"], found["reason"]) == (status, reason), found
            # Asking for the deletion counts as a generation of its own, which nobody applies any more.
            if kind != "Deleting":
                assert found["observedGeneration"] == work["metadata"]["generation"], found
            return work

        return await eventually(look, what=f"{kind}={status} ({reason}) on {name}", seconds=seconds)

    async def applied(self, name: str) -> Json:
        """Wait until a work is applied, and what it names is there. Returns the work."""
        await self.shows(name, "Applied", "True", "AppliedManifestWorkComplete")
        return await self.shows(name, "Available", "True", "ResourcesAvailable")

    async def refused(self, name: str) -> str:
        """Wait until the agent says that it could not apply a work of one manifest. Returns its message."""
        work = await self.shows(name, "Applied", "False", "AppliedManifestWorkFailed")
        (manifest,) = manifests(work)
        found = condition(manifest["conditions"], "Applied")
        assert (found["status"], found["reason"]) == ("False", "AppliedManifestFailed")
        return str(found["message"])

    async def gone(self, name: str) -> None:
        """Wait until a work is gone."""

        async def look() -> bool:
            return await self.work(name) is None

        await eventually(look, what=f"work {name} is gone", seconds=AGENT_SECONDS)

    @staticmethod
    async def _get(kube: ApiClient, resource: Resource, name: str, namespace: str | None) -> Json | None:
        try:
            return await kube.get(resource, name, namespace=namespace)
        except NotFound:
            return None


def condition(conditions: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The condition of a type; fails if there is none."""
    found = [one for one in conditions if one["type"] == kind]
    assert found, f"no condition {kind}: {conditions}"
    return found[0]


def manifests(work: Mapping[str, Any]) -> list[Json]:
    """What the agent says about each manifest."""
    return list(work["status"]["resourceStatus"]["manifests"])


def values(work: Mapping[str, Any]) -> dict[str, Any]:
    """The feedback of a work of one manifest: name to fieldValue."""
    (manifest,) = manifests(work)
    return {
        one["name"]: one["fieldValue"] for one in (manifest.get("statusFeedback") or {}).get("values") or []
    }
