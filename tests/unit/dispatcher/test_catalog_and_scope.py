"""Modules read once per generation; where kernels stand; which pairs an announcement concerns."""

from typing import Any

import pytest
from fleet_values import (
    BUILD,
    CONFIGURATION,
    KERNELS,
    SIGN,
    an_artifact,
    digest,
    raw_spec,
    stored_module,
    without_loader,
)

from services.dispatcher.assemble import Shipment
from services.dispatcher.catalog import Catalog, names_used, outcome_of
from services.dispatcher.decide import Pending
from services.dispatcher.demand import Unmet, Wanted
from services.dispatcher.scope import Scope, scope_of
from shared.domain.artifact import ArtifactState
from shared.domain.module import ModuleSpec, parse_module
from shared.events.messages import Changed, Kind

Json = dict[str, Any]
BROKEN = raw_spec({"regexp": "(", "containerImage": "r.example/k:1"})


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("change", "is_read_again"),
    [
        ({}, False),
        ({"status": {"numberDesired": 3}, "resource_version": 9, "finalizers": ("x",)}, False),
        ({"is_deleting": True}, False),
        ({"generation": 2}, True),
        ({"uid": "made again"}, True),
    ],
)
def test_a_module_is_read_once_per_generation(change: Json, is_read_again: bool) -> None:
    catalog = Catalog()
    first, second = catalog.read(stored_module()), catalog.read(stored_module(**change))
    assert (second.index is not first.index) is is_read_again
    assert second.module.is_deleting is change.get("is_deleting", False)
    assert second.stored == stored_module(**change)


def test_a_changed_spec_gives_other_answers() -> None:
    catalog = Catalog()
    catalog.read(stored_module())
    newer = catalog.read(
        stored_module(raw_spec({"regexp": ".", "containerImage": "r.example/new:1"}), generation=2)
    )
    need = newer.demand(KERNELS[0], CONFIGURATION)
    assert isinstance(need, Wanted)
    assert need.request.target == "r.example/new:1"


def test_a_module_that_no_longer_exists_is_forgotten() -> None:
    catalog = Catalog()
    first = catalog.read(stored_module())
    catalog.forget_all_but(["other"])
    assert catalog.read(stored_module()).index is not first.index


@pytest.mark.parametrize(
    ("spec", "is_readable", "reason"),
    [
        pytest.param({}, False, "InvalidModule", id="nothing-in-it"),
        pytest.param({**raw_spec(), "selector": "all"}, False, "InvalidModule", id="wrong-type"),
        pytest.param(BROKEN, True, "InvalidPattern", id="broken-pattern-spoils-only-what-reaches-it"),
    ],
)
def test_a_problem_of_a_module_is_part_of_the_answer(spec: Json, is_readable: bool, reason: str) -> None:
    read = Catalog().read(stored_module(spec))
    assert (read.module.spec is not None) is is_readable
    assert read.problem is not None
    assert read.problem[0] == reason
    assert "spec." in read.problem[1]


def test_a_good_module_has_no_problem() -> None:
    assert Catalog().read(stored_module()).problem is None


# -------------------------------------------------------------------------------------------------- where kernels stand


def a_need() -> Wanted:
    spec = raw_spec({"regexp": ".", "containerImage": "r.example/k:1"})
    need = Catalog().read(stored_module(spec)).demand(KERNELS[0], CONFIGURATION)
    assert isinstance(need, Wanted)
    return need


NEED = a_need()


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        pytest.param(None, "BuildPending", "waits for a builder", id="not-stored-yet"),
        pytest.param({"state": ArtifactState.WANTED}, "BuildPending", "waits for a builder", id="wanted"),
        pytest.param({"state": ArtifactState.BUILDING}, "Building", "is being built", id="building"),
        pytest.param({"state": ArtifactState.BUILT}, "SignPending", "waits for a signer", id="built"),
        pytest.param({"state": ArtifactState.SIGNING}, "Signing", "is being signed", id="signing"),
        pytest.param(
            {"state": ArtifactState.WANTED, "reason": "ImageMissing", "message": "no such image"},
            "ImageMissing",
            "no such image (it is tried again)",
            id="waits-for-another-try",
        ),
        pytest.param(
            {"state": ArtifactState.FAILED, "reason": "BuildFailed", "message": "exit status 2"},
            "BuildFailed",
            "exit status 2",
            id="failed",
        ),
    ],
)
def test_an_artifact_that_is_not_ready(fields: Json | None, reason: str, words: str) -> None:
    known = {} if fields is None else {NEED.request.key: an_artifact(NEED, **{"digest": None, **fields})}
    outcome = outcome_of(NEED, known)
    assert isinstance(outcome, Pending)
    assert (outcome.reason, outcome.is_match) == (reason, True)
    assert outcome.message.startswith("image r.example/k:1")
    assert outcome.message.endswith(words)


@pytest.mark.parametrize("state", [state for state in ArtifactState if state is not ArtifactState.READY])
def test_a_digest_alone_does_not_make_an_image_ready(state: ArtifactState) -> None:
    artifact = an_artifact(NEED, state=state, digest=digest(1), reason="R", message="m")
    assert isinstance(outcome_of(NEED, {artifact.key: artifact}), Pending)


def test_a_ready_artifact_is_shipped_by_digest() -> None:
    artifact = an_artifact(NEED, digest=digest(3))
    assert outcome_of(NEED, {artifact.key: artifact}) == Shipment(
        resolution=NEED.resolution, image=f"r.example/k@{digest(3)}", tag="r.example/k:1"
    )


def test_an_artifact_of_another_key_is_not_taken() -> None:
    other = an_artifact(NEED)
    assert isinstance(outcome_of(NEED, {type(other.key)("0" * 64): other}), Pending)


@pytest.mark.parametrize("is_match", [True, False])
def test_an_unmet_need_waits(is_match: bool) -> None:
    outcome = outcome_of(Unmet(reason="R", message="m", is_match=is_match), {})
    assert outcome == Pending(reason="R", message="m", is_match=is_match)


# ------------------------------------------------------------------------------------------- whom announcements concern


def spec_of(raw: Json) -> ModuleSpec:
    return parse_module(raw)


ON_CONTAINER = raw_spec(
    build={**BUILD, "secrets": [{"name": "token"}]}, sign=SIGN, module={"imageRepoSecret": {"name": "pull"}}
)
ON_MAPPING = raw_spec({"regexp": "x", "containerImage": "a:1", "build": BUILD, "sign": SIGN})


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (raw_spec(), set()),
        (without_loader(), set()),
        (without_loader(imageRepoSecret={"name": "pull"}), {"pull"}),
        (ON_CONTAINER, {"df", "token", "key", "cert", "pull"}),
        (ON_MAPPING, {"df", "key", "cert"}),
        (raw_spec(build={}, sign={}), set()),
    ],
)
def test_names_that_a_module_uses(raw: Json, names: set[str]) -> None:
    assert names_used(spec_of(raw)) == names


SPECS = {"builds": spec_of(ON_MAPPING), "plain": spec_of(raw_spec()), "unreadable": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param([], Scope(), id="nothing"),
        pytest.param([Changed(kind=Kind.EVERYTHING, name="resync")], Scope(everything=True), id="everything"),
        pytest.param(
            [Changed(kind=Kind.MODULE, name="plain")], Scope(modules=frozenset({"plain"})), id="module"
        ),
        pytest.param(
            [Changed(kind=Kind.MODULE, name="gone")], Scope(modules=frozenset({"gone"})), id="gone-module"
        ),
        pytest.param([Changed(kind=Kind.CLUSTER, name="c")], Scope(clusters=frozenset({"c"})), id="cluster"),
        pytest.param(
            [Changed(kind=Kind.WORK, namespace="c", name="plain")],
            Scope(pairs=frozenset({("plain", "c")})),
            id="work",
        ),
        pytest.param(
            [Changed(kind=Kind.ARTIFACT, name="a" * 64)],
            Scope(artifacts=frozenset({"a" * 64})),
            id="artifact",
        ),
        pytest.param(
            [Changed(kind=Kind.CONFIG_MAP, name="df")], Scope(modules=frozenset({"builds"})), id="config-map"
        ),
        pytest.param(
            [Changed(kind=Kind.SECRET, name="key")], Scope(modules=frozenset({"builds"})), id="secret"
        ),
        pytest.param([Changed(kind=Kind.SECRET, name="unused")], Scope(), id="secret-of-nobody"),
        pytest.param(
            [
                Changed(kind=Kind.MODULE, name="plain"),
                Changed(kind=Kind.SECRET, name="cert"),
                Changed(kind=Kind.CLUSTER, name="c"),
                Changed(kind=Kind.CLUSTER, name="c"),
            ],
            Scope(modules=frozenset({"builds", "plain"}), clusters=frozenset({"c"})),
            id="gathered",
        ),
    ],
)
def test_scope(changes: list[Changed], expected: Scope) -> None:
    assert scope_of(changes, SPECS) == expected
    assert scope_of(reversed(changes), SPECS) == expected
