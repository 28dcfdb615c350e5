"""From API objects to facts, and which changes of facts are news."""

from typing import Any

import pytest

from services.watcher.facts import cluster_row, config_map_row, module_row, secret_row
from services.watcher.kinds import (
    ClusterClaim,
    ConfigMap,
    ManagedCluster,
    ManagedClusterModule,
    ManagedClusterStatus,
    Secret,
)
from services.watcher.record import (
    CLUSTERS,
    CONFIG_MAPS,
    MODULES,
    SECRETS,
    FactTable,
    is_news,
    keep_last_known,
)
from shared.domain.claim import CLAIM_NAME
from shared.kube.reflector import Metadata

Json = dict[str, Any]


def metadata(**fields: Any) -> Metadata:
    return Metadata(**{"name": "c1", "uid": "u1", "resource_version": "5", **fields})


def a_cluster(*claims: tuple[str, str], **fields: Any) -> Json:
    listed = [ClusterClaim(name=name, value=value) for name, value in claims]
    return cluster_row(
        ManagedCluster(metadata=metadata(**fields), status=ManagedClusterStatus(cluster_claims=listed))
    )


# ------------------------------------------------------------------------------------------------------------ clusters


def test_everything_about_a_cluster() -> None:
    row = a_cluster(
        (CLAIM_NAME, "5.2.0+\nnope\n5.1.0\n5.2.0"),
        labels={"a": "b"},
        deletion_timestamp="2026-01-01T00:00:00Z",
    )
    (invalid,) = row.pop("invalid_kernels")
    assert invalid["text"] == "nope"
    assert "at least three parts" in invalid["reason"]
    assert row == {
        "name": "c1",
        "uid": "u1",
        "labels": {"a": "b"},
        "kernels": ["5.1.0", "5.2.0"],
        "claim_is_present": True,
        "claim_is_near_limit": False,
        "is_deleting": True,
        "resource_version": 5,
    }


@pytest.mark.parametrize(
    ("claims", "is_present", "kernels"),
    [
        pytest.param([], False, [], id="no-claims"),
        pytest.param([("z", "1")], False, [], id="other-claims-only"),
        pytest.param([(CLAIM_NAME, "")], True, [], id="empty-claim-is-a-claim"),
        pytest.param([("z", "1"), (CLAIM_NAME, "5.1.0")], True, ["5.1.0"], id="among-others"),
        pytest.param([(CLAIM_NAME, "5.1.0"), (CLAIM_NAME, "5.2.0")], True, ["5.1.0"], id="first-of-the-name"),
        pytest.param([(CLAIM_NAME, "\n 5.1.0 \n\n")], True, ["5.1.0"], id="blanks"),
    ],
)
def test_kernels_of_a_claim(claims: list[tuple[str, str]], is_present: bool, kernels: list[str]) -> None:
    row = a_cluster(*claims)
    assert (row["claim_is_present"], row["kernels"]) == (is_present, kernels)


@pytest.mark.parametrize("status", [None, ManagedClusterStatus()])
def test_a_cluster_without_status(status: ManagedClusterStatus | None) -> None:
    row = cluster_row(ManagedCluster(metadata=metadata(), status=status))
    assert (row["claim_is_present"], row["labels"], row["is_deleting"]) == (False, {}, False)


@pytest.mark.parametrize(("kernels", "expected"), [(10, False), (30, True)])
def test_a_claim_that_is_nearly_full(kernels: int, expected: bool) -> None:
    """Past 1,024 characters the spoke cannot write it, and the hub goes on seeing the old list."""
    lines = [f"5.14.0-{number}.el9_6.x86_64+debug+long" for number in range(100, 100 + kernels)]
    assert a_cluster((CLAIM_NAME, "\n".join(lines)))["claim_is_near_limit"] is expected


def test_a_long_entry_is_cut() -> None:
    (invalid,) = a_cluster((CLAIM_NAME, "x" * 1000))["invalid_kernels"]
    assert len(invalid["text"]) == 256


def test_what_is_stored_has_no_nul() -> None:
    """RFC 8259 allows it in a string; Postgres refuses it in text and jsonb."""
    assert "\0" not in str(a_cluster((CLAIM_NAME, "5.1.0\nbad\0one"))["invalid_kernels"][0]["text"])


# ------------------------------------------------------------------------------------------------------ other resources


def test_a_module_is_stored_as_written() -> None:
    spec = {"selector": None, "anything": [1]}
    module = ManagedClusterModule(
        metadata=metadata(generation=3, finalizers=["f"]), spec=spec, status={"s": 1}
    )
    assert module_row(module) == {
        "name": "c1",
        "uid": "u1",
        "generation": 3,
        "spec": spec,
        "status": {"s": 1},
        "finalizers": ["f"],
        "is_deleting": False,
        "resource_version": 5,
    }


def test_a_module_without_anything() -> None:
    row = module_row(ManagedClusterModule(metadata=metadata()))
    assert (row["spec"], row["status"], row["finalizers"]) == ({}, {}, [])


@pytest.mark.parametrize(
    ("data", "dockerfile"),
    [
        ({"dockerfile": "FROM a"}, "FROM a"),
        ({"dockerfile": ""}, ""),
        ({"Dockerfile": "FROM a"}, None),
        (None, None),
    ],
)
def test_a_dockerfile(data: dict[str, str] | None, dockerfile: str | None) -> None:
    row = config_map_row(ConfigMap(metadata=metadata(), data=data))
    assert row == {"name": "c1", "dockerfile": dockerfile, "resource_version": 5}


def version_of(data: dict[str, str] | None, **fields: Any) -> str:
    version: str = secret_row(Secret(metadata=metadata(namespace="ns", **fields), data=data))["version"]
    return version


@pytest.mark.parametrize(
    ("data", "fields", "is_same"),
    [
        pytest.param({"b": "Mg==", "a": "MQ=="}, {}, True, id="order-of-keys"),
        pytest.param(
            {"a": "MQ==", "b": "Mg=="}, {"resource_version": "9"}, True, id="a-write-without-change"
        ),
        pytest.param({"a": "MQ==", "b": "Mg=="}, {"uid": "u2"}, True, id="made-again-with-the-same-content"),
        pytest.param({"a": "MQ==", "b": "Mw=="}, {}, False, id="value"),
        pytest.param({"a": "MQ==", "c": "Mg=="}, {}, False, id="key"),
        pytest.param({"a": "MQ=="}, {}, False, id="fewer"),
        pytest.param(None, {}, False, id="empty"),
        pytest.param({"a": "MQ==", "b": "Mg=="}, {"name": "other"}, False, id="salted-with-the-name"),
    ],
)
def test_the_version_of_a_secret(data: dict[str, str] | None, fields: Json, is_same: bool) -> None:
    assert (version_of(data, **fields) == version_of({"a": "MQ==", "b": "Mg=="})) is is_same


def test_a_secrets_content_is_given_to_nobody() -> None:
    row = secret_row(Secret(metadata=metadata(namespace="ns"), data={"token": "aHVudGVyMg=="}))
    assert row["keys"] == ["token"]
    assert set(row) == {"name", "version", "keys", "resource_version"}
    assert "aHVudGVyMg" not in str(row)
    assert "hunter2" not in str(row)


# ----------------------------------------------------------------------------------------------------- last known, news

KNOWN = a_cluster((CLAIM_NAME, "5.1.0\nnope"))


def test_a_cluster_whose_claim_went_away_keeps_its_kernels() -> None:
    """Upstream ignores the removal; here it is news, too."""
    row = keep_last_known(CLUSTERS, a_cluster(resource_version="6"), KNOWN)
    assert (row["kernels"], row["invalid_kernels"]) == (KNOWN["kernels"], KNOWN["invalid_kernels"])
    assert (row["claim_is_present"], row["resource_version"]) == (False, 6)
    assert is_news(CLUSTERS, row, KNOWN)


def test_it_keeps_them_for_as_long_as_the_claim_is_away() -> None:
    row = keep_last_known(CLUSTERS, a_cluster(), KNOWN)
    later = keep_last_known(CLUSTERS, a_cluster(resource_version="7"), row)
    assert later["kernels"] == ["5.1.0"]
    assert not is_news(CLUSTERS, later, row)


@pytest.mark.parametrize("value", ["", "5.3.0", "nope"])
def test_a_claim_that_is_there_counts_as_it_is(value: str) -> None:
    row = a_cluster((CLAIM_NAME, value))
    assert keep_last_known(CLUSTERS, row, KNOWN) == row


def test_a_cluster_that_was_never_seen_has_nothing_to_keep() -> None:
    row = a_cluster()
    assert keep_last_known(CLUSTERS, row, None) == row
    assert is_news(CLUSTERS, row, None)


def test_another_cluster_of_its_name_starts_without_its_kernels() -> None:
    row = a_cluster(uid="another")
    assert row["uid"] != KNOWN["uid"]
    assert keep_last_known(CLUSTERS, row, KNOWN) == row


def test_only_clusters_have_claims() -> None:
    row = config_map_row(ConfigMap(metadata=metadata()))
    assert keep_last_known(CONFIG_MAPS, row, {**row, "dockerfile": "FROM a"}) == row


def test_keeping_changes_neither_argument() -> None:
    row, known = a_cluster(), dict(KNOWN)
    keep_last_known(CLUSTERS, row, known)
    assert row == a_cluster()
    assert known == KNOWN


def test_another_cluster_of_the_same_name_has_nothing_to_keep() -> None:
    """Deletion and creation can reach the watcher as one change: batches keep the last event of each name."""
    assert keep_last_known(CLUSTERS, a_cluster(uid="u2"), KNOWN)["kernels"] == []


MODULE = module_row(ManagedClusterModule(metadata=metadata(generation=1), spec={"a": 1}, status={"s": 1}))
SECRET = {"name": "s", "version": "v", "keys": ["key"], "resource_version": 5}


@pytest.mark.parametrize(
    ("facts", "known", "change", "expected"),
    [
        pytest.param(CLUSTERS, KNOWN, {}, False, id="nothing"),
        pytest.param(CLUSTERS, KNOWN, {"resource_version": 6}, False, id="heartbeat"),
        pytest.param(CLUSTERS, KNOWN, {"labels": {"a": "b"}}, True, id="labels"),
        pytest.param(CLUSTERS, KNOWN, {"kernels": ["5.2.0"]}, True, id="kernels"),
        pytest.param(CLUSTERS, KNOWN, {"is_deleting": True}, True, id="deletion"),
        pytest.param(CLUSTERS, KNOWN, {"uid": "u2"}, True, id="made-again"),
        pytest.param(
            MODULES, MODULE, {"status": {"s": 2}, "resource_version": 6}, False, id="our-own-status"
        ),
        pytest.param(MODULES, MODULE, {"generation": 2, "spec": {"a": 2}}, True, id="spec"),
        pytest.param(MODULES, MODULE, {"finalizers": ["x"]}, True, id="finalizers"),
        pytest.param(SECRETS, SECRET, {"resource_version": 6}, False, id="secret-touched"),
        pytest.param(SECRETS, SECRET, {"version": "w"}, True, id="secret-rotated"),
        pytest.param(SECRETS, SECRET, {"keys": []}, True, id="secret-without-key"),
    ],
)
def test_news(facts: FactTable, known: Json, change: Json, expected: bool) -> None:
    assert is_news(facts, {**known, **change}, known) is expected
