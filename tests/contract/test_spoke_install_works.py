"""What `kmmhub spoke-install --method manifestwork` prints, applied and taken away by real agents with real rights."""

from __future__ import annotations

import pytest
from agent_fixtures import bench
from spoke.client import CLUSTER_ROLES
from spoke.kmm_manifests import NAMESPACE, issuer_crd, kmm_manifests
from work_bench import Bench, condition, manifests

from kmmhub.spoke.carried import works
from kmmhub.spoke.selection import Selection
from shared.kube.client import CRDS, MANIFEST_WORKS, NAMESPACES, Resource

__all__ = ["bench"]  # a fixture

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

DEPLOYMENTS = Resource(group="apps", version="v1", plural="deployments")
WEBHOOKS = Resource(
    group="admissionregistration.k8s.io", version="v1", plural="validatingwebhookconfigurations"
)
ISSUERS = Resource(group="cert-manager.io", version="v1", plural="issuers")


async def test_an_agent_installs_kmm_and_takes_it_away_but_for_crds_and_namespace(bench: Bench) -> None:
    await bench.lane.install_crd(issuer_crd())
    (work,) = works(kmm_manifests(), Selection(clusters=(bench.lane.cluster,)))
    name = work["metadata"]["name"]
    await bench.hub.create(MANIFEST_WORKS, work, namespace=bench.lane.cluster)

    said = manifests(await bench.applied(name))

    assert len(said) == len(kmm_manifests()) + 3
    assert {condition(one["conditions"], "Applied")["status"] for one in said} == {"True"}
    operator = await bench.on_spoke(DEPLOYMENTS, "kmm-operator-controller", namespace=NAMESPACE)
    assert operator is not None
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    assert {"name": "KMM_MANAGED", "value": "1"} in container["env"]

    await bench.delete(name)

    await bench.gone(name)
    for resource, removed, namespace in (
        (DEPLOYMENTS, "kmm-operator-controller", NAMESPACE),
        (ISSUERS, "kmm-operator-selfsigned-issuer", NAMESPACE),
        (WEBHOOKS, "kmm-operator-validating-webhook", None),
        (CLUSTER_ROLES, "kmm-operator-manager-role", None),
    ):
        assert await bench.on_spoke(resource, removed, namespace=namespace) is None, removed
    for resource, kept in (
        (CRDS, "modules.kmm.sigs.x-k8s.io"),
        (NAMESPACES, NAMESPACE),
        (CLUSTER_ROLES, "open-cluster-management:klusterlet-work:kmm-installer"),
    ):
        found = await bench.on_spoke(resource, kept, namespace=None)
        assert found is not None, kept
        assert "deletionTimestamp" not in found["metadata"], kept
