"""Properties of the works that are posted: on whom they depend, what never changes them, what they never carry."""

import copy
from typing import Any, TypeAlias

from fleet_values import (
    BUILD,
    KERNELS,
    NAME,
    SIGN,
    a_cluster,
    container_of,
    digest,
    mappings_of,
    raw_spec,
    works_of,
)
from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.catalog import Catalog
from services.dispatcher.decide import Cluster, Create
from shared.domain.canonical import canonical_json
from shared.domain.claim import read_claim
from shared.domain.kernel import KernelVersion
from shared.domain.work import MODULE_LABEL

Json = dict[str, Any]
Jsons: TypeAlias = "st.SearchStrategy[Json]"
recipes: Jsons = st.sampled_from(
    [
        {},
        {"build": BUILD},
        {"sign": {**SIGN, "unsignedImage": "r.example/u:1"}},
        {"build": BUILD, "sign": SIGN},
    ]
)
tls: Jsons = st.sampled_from([{}, {"registryTLS": {"insecure": True}}, {"registryTLS": {}}])
in_tree: Jsons = st.sampled_from([{}, {"inTreeModulesToRemove": []}, {"inTreeModulesToRemove": ["a", "b"]}])


takers: Jsons = st.sampled_from(
    [{"regexp": "."}, {"regexp": "^5\\.[02]"}, {"literal": KERNELS[1]}, {"regexp": "zz"}]
)
images = st.sampled_from(
    ["r.example:5000/a/${MOD_NAME}:${KERNEL_XYZ}", "r.example/b:${KERNEL_FULL_VERSION}", ""]
)
others: Jsons = st.sampled_from(
    [
        {},
        {"imageRepoSecret": {"name": "pull"}},
        {"imageRebuildTriggerGeneration": 2},
        {"devicePlugin": None},
    ]
)
defaults: Jsons = st.sampled_from([{}, {"containerImage": "r.example/c:1"}])


@st.composite
def mappings(draw: st.DrawFn) -> Json:
    return {**draw(takers), "containerImage": draw(images), **draw(recipes), **draw(tls), **draw(in_tree)}


@st.composite
def specs(draw: st.DrawFn) -> Json:
    entries = draw(st.lists(mappings(), min_size=1, max_size=3))
    container = {**draw(defaults), **draw(recipes), **draw(tls)}
    return raw_spec(*entries, module=draw(others), **container)


clusters = st.lists(st.sets(st.sampled_from(KERNELS), max_size=3), min_size=1, max_size=5).map(
    lambda sets: [a_cluster(*sorted(kernels), name=f"c{number}") for number, kernels in enumerate(sets)]
)


def shuffled(value: Any, data: st.DataObject) -> Any:
    """The same JSON with the members of its objects in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], data) for key in data.draw(st.permutations(list(value)))}
    return [shuffled(member, data) for member in value] if isinstance(value, list) else value


@given(specs(), clusters)
def test_no_clusters_work_depends_on_another_cluster(spec: Json, fleet: list[Cluster]) -> None:
    """Upstream (v2.4 and later) lets the first cluster change the module that the others are computed from."""
    shared_catalog = Catalog()
    together = works_of(spec, fleet, catalog=shared_catalog)
    assert together == {name: works_of(spec, [a])[name] for a in fleet for name in [a.name]}
    assert together == works_of(spec, list(reversed(fleet)), catalog=shared_catalog)


@given(specs(), clusters)
def test_the_spec_is_never_changed(spec: Json, fleet: list[Cluster]) -> None:
    before = copy.deepcopy(spec)
    works_of(spec, fleet)
    assert spec == before


@given(specs(), clusters)
def test_a_shipped_work_shares_nothing_with_the_spec(spec: Json, fleet: list[Cluster]) -> None:
    before = copy.deepcopy(spec)
    for decision in works_of(spec, fleet).values():
        if isinstance(decision, Create):
            container_of(decision.work)["modprobe"]["dirName"] = "/changed"
            container_of(decision.work).clear()
            decision.work["spec"]["workload"]["manifests"][0]["spec"].clear()
    assert spec == before


@given(st.data(), specs(), clusters)
def test_the_order_of_keys_changes_nothing(data: st.DataObject, spec: Json, fleet: list[Cluster]) -> None:
    as_sent = works_of(spec, fleet)
    reordered = works_of(shuffled(spec, data), fleet)
    for name, decision in as_sent.items():
        other = reordered[name]
        if isinstance(decision, Create):
            assert isinstance(other, Create)
            assert canonical_json(other.work) == canonical_json(decision.work)
        else:
            assert other == decision


@given(st.data(), specs(), st.sets(st.sampled_from(KERNELS), min_size=1))
def test_the_order_of_kernels_in_the_claim_changes_nothing(
    data: st.DataObject, spec: Json, kernels: set[KernelVersion]
) -> None:
    lines = data.draw(st.permutations([*kernels, *(f"{kernel}+" for kernel in kernels)]))
    claim = read_claim("\n".join(lines))
    assert works_of(spec, [a_cluster(*claim.kernels)]) == works_of(spec, [a_cluster(*sorted(kernels))])


@given(specs(), clusters)
def test_no_recipe_is_shipped_and_every_image_is_pinned(spec: Json, fleet: list[Cluster]) -> None:
    for decision in works_of(spec, fleet).values():
        if not isinstance(decision, Create):
            continue
        assert keys_in(decision.work).isdisjoint({"build", "sign", "regexp"})
        shipped = mappings_of(decision.work)
        assert shipped
        literals = [mapping["literal"] for mapping in shipped]
        assert len(set(literals)) == len(literals)
        for mapping in shipped:
            name, _, pinned = mapping["containerImage"].partition("@")
            assert pinned.startswith("sha256:")
            assert len(pinned) == len(digest(0))
            assert ":" not in name.rpartition("/")[2]
        assert decision.work["metadata"]["labels"] == {MODULE_LABEL: NAME}


def keys_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys_in(member) for member in value.values()))
    return set().union(*(keys_in(member) for member in value)) if isinstance(value, list) else set()
