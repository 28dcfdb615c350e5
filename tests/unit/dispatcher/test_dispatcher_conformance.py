"""The shared conformance cases of KMM's hub that the dispatcher and the watcher decide.

The case file lies beside the checkout; without it these tests are skipped, and the tables in the other files here
cover the same rules.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet_values import a_cluster, as_stored, container_of, mappings_of, ready, stored_module

from services.dispatcher.assemble import pin
from services.dispatcher.catalog import Catalog, outcome_of
from services.dispatcher.decide import Create, Delete, Leave, Why
from services.dispatcher.demand import Configuration, SecretFact
from services.dispatcher.picture import Picture, _needs, _selected
from services.dispatcher.report import Place
from services.dispatcher.scope import Scope
from services.dispatcher.status import Survey, module_status
from services.watcher import record
from services.watcher.facts import cluster_row
from services.watcher.kinds import ClusterClaim, ManagedCluster, ManagedClusterStatus
from shared.domain.claim import read_claim
from shared.domain.work import IMAGES_ANNOTATION, MODULE_LABEL, ObservedWork, StoredWork, observe_work
from shared.kube.reflector import Metadata

Json = dict[str, Any]
CASES = Path(__file__).parents[4] / "shared" / "conformance" / "cases.yaml"
NAMED = Configuration(
    namespace="op",
    dockerfiles={"df": "FROM scratch\n"},
    secrets={name: SecretFact(version="1", keys=frozenset({"key", "cert"})) for name in ("k", "c")},
)
"""What the cases' modules name."""


def work_json(given: Json) -> Json:
    """The work as the cases describe it; the digest that we ship stands for the tag, which the annotation keeps."""
    module = given["managedClusterModule"]
    name, cluster = module["metadata"]["name"], a_cluster(*read_claim("\n".join(given["kernels"])).kernels)
    read = {name: Catalog().read(stored_module(module["spec"], name=name, uid=module["metadata"]["uid"]))}
    clusters = {cluster.name: a_cluster(*cluster.kernels, labels=module["spec"]["selector"])}
    pair = (name, given["cluster"])
    needs = _needs(read, clusters, [pair], NAMED)
    made = ready(needs.values())
    outcomes = {key: outcome_of(need, made) for key, need in needs.items()}
    picture = Picture(
        modules=read, clusters=clusters, works={}, pairs=frozenset({pair}), needs=needs, outcomes=outcomes
    )
    decision = picture.decide(pair)
    assert isinstance(decision, Create), decision
    return described(decision.work)


def described(work: Json) -> Json:
    metadata, spec = work["metadata"], work["spec"]
    (manifest,), (config,) = spec["workload"]["manifests"], spec["manifestConfigs"]
    tags = yaml.safe_load(metadata["annotations"][IMAGES_ANNOTATION])
    assert all("@sha256:" in mapping["containerImage"] for mapping in mappings_of(work))
    return {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": metadata["labels"],
        "module": {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], **manifest["metadata"]},
        "kernelMappings": [
            {**mapping, "containerImage": tags[mapping["literal"]]} for mapping in mappings_of(work)
        ],
        "containerHasBuild": "build" in container_of(work),
        "containerHasSign": "sign" in container_of(work),
        "containerImage": container_of(work).get("containerImage"),
        "resourceIdentifier": config["resourceIdentifier"],
        "feedbackPaths": [
            f"{path['name']}={path['path']}" for rule in config["feedbackRules"] for path in rule["jsonPaths"]
        ],
        "deleteOption": spec.get("deleteOption"),
        "updateStrategy": config.get("updateStrategy"),
        "ownerKinds": [owner["kind"] for owner in metadata["ownerReferences"]],
    }


def observed(works: list[Json]) -> list[ObservedWork]:
    return [observe_work(as_stored(copy.deepcopy(work))) for work in works]


def counters(given: Json) -> Json:
    done = Leave(why=Why.UP_TO_DATE)
    places = [
        Place(cluster=work.cluster, decision=done, work=work) for work in observed(given["manifestWorks"])
    ]
    return module_status(Survey(generation=1, places=places, outcomes={}), previous={}, now="")


def pairs_of(modules: dict[str, Json], clusters: dict[str, dict[str, str]]) -> set[tuple[str, str]]:
    spec = {"spokeNamespace": "spoke", "moduleSpec": {}}
    read = {
        name: Catalog().read(stored_module({**spec, "selector": selector}, name=name))
        for name, selector in modules.items()
    }
    fleet = {name: a_cluster(name=name, labels=labels) for name, labels in clusters.items()}
    return _selected(read, set(), Scope(clusters=frozenset(fleet)), fleet)


def selected(given: Json) -> Json:
    labels = {cluster["metadata"]["name"]: cluster["metadata"]["labels"] for cluster in given["clusters"]}
    return {"selected": sorted(cluster for _, cluster in pairs_of({"m": given["selector"]}, labels))}


def affected(given: Json) -> Json:
    modules = {one["metadata"]["name"]: one["spec"]["selector"] for one in given["managedClusterModules"]}
    return {"enqueued": sorted(module for module, _ in pairs_of(modules, {"c": given["clusterLabels"]}))}


def wakes(given: Json) -> Json:
    rows = []
    for version, side in (("1", "old"), ("2", "new")):
        metadata = given[side]["metadata"]
        claims = given[side]["status"].get("clusterClaims") or []
        status = ManagedClusterStatus(cluster_claims=[ClusterClaim(**claim) for claim in claims])
        cluster = ManagedCluster(
            metadata=Metadata(name=metadata["name"], labels=metadata["labels"], resource_version=version),
            status=status,
        )
        rows.append(cluster_row(cluster))
    old, new = rows
    return {
        "enqueue": record.is_news(record.CLUSTERS, record.keep_last_known(record.CLUSTERS, new, old), old)
    }


def pinned(given: Json) -> Json:
    """Without an answer nothing is ready, so that nothing is shipped: the tag is only ever what the user wrote."""
    if given.get("registryError"):
        return {"image": given["image"]}
    has_digest = "@" in given["image"]
    return {
        "image": pin(given["image"], given["registryDigest"]),
        "registryCalls": 0 if has_digest else 1,
        "lookedUp": given["image"] if ":" in given["image"] else f"{given['image']}:latest",
    }


def collected(given: Json) -> Json:
    """Each work gets the decision of its own name and cluster, with the module on the clusters that it selects."""
    spec = {"spokeNamespace": "spoke", "selector": {"in": "yes"}, "moduleSpec": {}}
    name = given["mcmName"]
    works = observed([with_labels(work) for work in given["manifestWorks"]])
    picture = Picture(
        modules={name: Catalog().read(stored_module(spec, name=name))},
        clusters={one: a_cluster(name=one, labels={"in": "yes"}) for one in given["selectedClusters"]},
        works={(work.name, work.cluster): StoredWork(work=work, posted_hash=None) for work in works},
        pairs=frozenset((work.name, work.cluster) for work in works),
        needs={},
        outcomes={},
    )
    gone = [pair for pair in sorted(picture.pairs) if isinstance(picture.decide(pair), Delete)]
    return {"actions": [f"delete ManifestWork {cluster}/{work}" for work, cluster in gone]}


def with_labels(work: Json) -> Json:
    return {"metadata": {"labels": {}, **work["metadata"]}, "spec": {}}


DECISIONS: dict[str, Callable[[Json], Json]] = {
    "manifestwork": work_json,
    "mcm-status": counters,
    "select": selected,
    "affected-mcms": affected,
    "cluster-update-predicate": wakes,
    "tag-to-digest": pinned,
    "gc": collected,
}


def cases() -> list[Any]:
    if not CASES.is_file():
        skip = pytest.mark.skip(reason="the conformance cases are not beside this checkout")
        return [pytest.param({}, marks=skip, id="cases")]
    stored = yaml.safe_load(CASES.read_text(encoding="utf-8"))["cases"]
    return [
        pytest.param(
            case,
            id=case["id"],
        )
        for case in stored
        if case["kind"] in DECISIONS
    ]


@pytest.mark.parametrize("case", cases())
def test_case(case: Json) -> None:
    answer = DECISIONS[case["kind"]](case["input"])
    assert {name: answer.get(name) for name in case["expect"]} == case["expect"]


def test_the_label_is_upstreams() -> None:
    assert MODULE_LABEL == "kmm.node.kubernetes.io/managedclustermodule.name"
