"""From what is stored to the pairs that are decided about, and each pair's decision."""

from typing import Any

import pytest
from fleet_values import (
    CONFIGURATION,
    KERNELS,
    a_cluster,
    as_stored,
    posted,
    raw_spec,
    ready,
    shipment,
    stored_module,
    without_loader,
)

from services.dispatcher.catalog import Catalog, ReadModule, outcome_of
from services.dispatcher.decide import Cluster, Create, Delete, Leave, Why
from services.dispatcher.picture import Picture, _needs, _posted, _selected
from services.dispatcher.scope import Pair, Scope
from services.dispatcher.survey import survey_module
from shared.domain.work import MODULE_LABEL, ObservedWork, StoredWork, observe_work

A, B = KERNELS[:2]
Json = dict[str, Any]
EDGE = {"edge": "yes"}


def modules(**specs: Json) -> dict[str, ReadModule]:
    return {name: Catalog().read(stored_module(spec, name=name)) for name, spec in specs.items()}


def clusters(*fleet: Cluster) -> dict[str, Cluster]:
    return {cluster.name: cluster for cluster in fleet}


def labelled(
    label: str | None, *, name: str = "m", cluster: str = "c1", is_gone: bool = False
) -> ObservedWork:
    labels = {} if label is None else {MODULE_LABEL: label}
    work = {"metadata": {"name": name, "namespace": cluster, "labels": labels}, "spec": {}}
    return observe_work(as_stored(work), is_gone=is_gone)


def stored(*works: ObservedWork) -> dict[Pair, StoredWork]:
    return {(work.name, work.cluster): StoredWork(work=work, posted_hash=None) for work in works}


def picture(
    read: dict[str, ReadModule], fleet: dict[str, Cluster], works: dict[Pair, StoredWork], *pairs: Pair
) -> Picture:
    needs = _needs(read, fleet, pairs, CONFIGURATION)
    made = ready(needs.values())
    return Picture(
        modules=read,
        clusters=fleet,
        works=works,
        pairs=frozenset(pairs),
        needs=needs,
        outcomes={key: outcome_of(need, made) for key, need in needs.items()},
    )


# ----------------------------------------------------------------------------------------------------------- decisions


def test_each_pair_gets_its_own_kernels() -> None:
    fleet = clusters(a_cluster(A, name="c1"), a_cluster(B, name="c2"))
    seen = picture(modules(m=raw_spec()), fleet, {}, ("m", "c1"), ("m", "c2"))
    literals = {}
    for pair in seen.pairs:
        decision = seen.decide(pair)
        assert isinstance(decision, Create)
        manifest = decision.work["spec"]["workload"]["manifests"][0]
        mappings = manifest["spec"]["moduleLoader"]["container"]["kernelMappings"]
        literals[pair[1]] = [mapping["literal"] for mapping in mappings]
    assert literals == {"c1": [A], "c2": [B]}


def test_a_work_of_ours_without_module_is_an_orphan() -> None:
    seen = picture({}, clusters(a_cluster(A)), stored(posted([shipment(A)])), ("m", "c1"))
    assert seen.decide(("m", "c1")) == Delete(uid="uid-w")


def test_a_work_of_a_cluster_that_is_gone_is_deleted() -> None:
    seen = picture(modules(m=raw_spec()), {}, stored(posted([shipment(A)])), ("m", "c1"))
    assert seen.decide(("m", "c1")) == Delete(uid="uid-w")


@pytest.mark.parametrize("label", [None, "other"])
def test_somebody_elses_work_without_module_stays(label: str | None) -> None:
    seen = picture({}, {}, stored(labelled(label)), ("m", "c1"))
    assert seen.decide(("m", "c1")) == Leave(why=Why.FOREIGN)


def test_a_module_that_cannot_be_read_takes_nothing_away() -> None:
    fleet = clusters(a_cluster(A))
    seen = picture(modules(m={"selector": 1}), fleet, stored(posted([shipment(A)])), ("m", "c1"))
    assert seen.decide(("m", "c1")) == Leave(why=Why.INVALID_MODULE)


def test_a_refusal_is_told_only_while_there_is_something_to_write() -> None:
    """A module that was changed back asks for nothing any more: what was refused before is no trouble."""
    fleet, read = clusters(a_cluster(A)), modules(m=raw_spec())
    pair, refusals = ("m", "c1"), {("m", "c1"): ("WorkRefused", "no")}
    before = picture(read, fleet, {}, pair)
    decision = before.decide(pair)
    assert isinstance(decision, Create)
    work = observe_work(as_stored(decision.work))
    after = picture(read, fleet, {pair: StoredWork(work=work, posted_hash=work.observed_hash)}, pair)
    told = [survey_module(seen, read["m"], refusals).places[0].refusal for seen in (before, after)]
    assert told == [("WorkRefused", "no"), None]


def test_a_work_with_our_label_under_another_name_goes_with_its_module() -> None:
    """Upstream owns works by the label alone (`internal/manifestwork`, GarbageCollect)."""
    going = {"m": Catalog().read(stored_module(raw_spec(), name="m", is_deleting=True))}
    seen = picture(going, {}, stored(labelled("m", name="renamed")), ("renamed", "c1"))
    assert seen.decide(("renamed", "c1")) == Delete(uid="uid-w")


# --------------------------------------------------------------------------------------------------------------- pairs

FLEET = clusters(a_cluster(A, name="c1", labels=EDGE), a_cluster(B, name="c2"))
READ = modules(all=raw_spec(), edge=raw_spec(selector=EDGE), broken={})


@pytest.mark.parametrize(
    ("whole", "scope", "expected"),
    [
        pytest.param(set(), Scope(), set(), id="nothing"),
        pytest.param({"all"}, Scope(), {("all", "c1"), ("all", "c2")}, id="module-on-all-it-selects"),
        pytest.param({"edge"}, Scope(), {("edge", "c1")}, id="module-only-on-what-it-selects"),
        pytest.param({"broken", "nix"}, Scope(), set(), id="unreadable-and-unknown-select-nothing"),
        pytest.param(
            set(),
            Scope(clusters=frozenset({"c1"})),
            {("all", "c1"), ("edge", "c1")},
            id="cluster-with-its-modules",
        ),
        pytest.param(
            set(), Scope(clusters=frozenset({"c2", "gone"})), {("all", "c2")}, id="unselected-cluster"
        ),
    ],
)
def test_selected_pairs(whole: set[str], scope: Scope, expected: set[Pair]) -> None:
    assert _selected(READ, whole, scope, FLEET) == expected


WORKS = stored(
    labelled("m", cluster="c1"),
    labelled("m", cluster="c2"),
    labelled("n", name="n", cluster="c1"),
    labelled(None, name="foreign", cluster="c1"),
    labelled("gone", name="gone", cluster="c1", is_gone=True),
)


@pytest.mark.parametrize(
    ("whole", "scope", "expected"),
    [
        pytest.param(set(), Scope(), set(), id="nothing"),
        pytest.param(set(), Scope(everything=True), {("m", "c1"), ("m", "c2"), ("n", "c1")}, id="everything"),
        pytest.param({"m"}, Scope(), {("m", "c1"), ("m", "c2")}, id="deselected-clusters-of-a-module"),
        pytest.param(
            set(), Scope(clusters=frozenset({"c1"})), {("m", "c1"), ("n", "c1")}, id="modules-of-a-cluster"
        ),
        pytest.param({"foreign", "gone"}, Scope(), set(), id="neither-foreign-nor-gone"),
    ],
)
def test_works_that_may_have_to_go(whole: set[str], scope: Scope, expected: set[Pair]) -> None:
    assert _posted(WORKS, whole, scope) == expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([("all", "c1"), ("all", "c2")], {("all", A), ("all", B)}, id="each-kernel-once"),
        pytest.param([("edge", "c1"), ("edge", "c2")], {("edge", A)}, id="not-for-unselected-clusters"),
        pytest.param([("plugin", "c1")], set(), id="a-module-without-loader-needs-no-image"),
        pytest.param([("broken", "c1"), ("nix", "c1"), ("all", "gone")], set(), id="nothing-known"),
    ],
)
def test_needs(pairs: list[Pair], expected: set[tuple[str, str]]) -> None:
    read = {**READ, **modules(plugin=without_loader())}
    assert set(_needs(read, FLEET, pairs, CONFIGURATION)) == expected
