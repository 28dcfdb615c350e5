"""`kmmhub status` and `kmmhub retry` on a real database."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from services.watcher import record
from shared.domain.artifact import ArtifactRequest, Stage
from shared.domain.kernel import KernelVersion
from shared.domain.lease import Failure
from shared.store import artifacts
from shared.store.database import connect
from shared.store.migrate import upgrade
from shared.store.postgres import PostgresStore

pytestmark = pytest.mark.integration

KERNEL = "6.1.0-1-amd64"


def module_row(name: str, image: str) -> dict[str, Any]:
    container = {
        "modprobe": {"moduleName": "x"},
        "kernelMappings": [{"literal": KERNEL, "containerImage": image}],
    }
    return {
        "name": name,
        "uid": name,
        "generation": 1,
        "spec": {
            "spokeNamespace": "kmm",
            "selector": {},
            "moduleSpec": {"selector": {}, "moduleLoader": {"container": container}},
        },
        "status": {},
        "finalizers": [],
        "is_deleting": False,
        "resource_version": 1,
    }


def cluster_row(name: str, *kernels: str) -> dict[str, Any]:
    return {
        "name": name,
        "uid": name,
        "labels": {},
        "kernels": list(kernels),
        "invalid_kernels": [],
        "claim_is_present": bool(kernels),
        "claim_is_near_limit": False,
        "is_deleting": False,
        "resource_version": 1,
    }


@pytest.fixture
def filled(database_url: str) -> str:
    """A database with one module, a cluster that it can serve and one that says nothing of its kernels."""

    async def fill() -> None:
        engine = connect(database_url, application="test")
        async with PostgresStore(engine).begin() as transaction:
            await record.record_facts(transaction, record.MODULES, [module_row("m", "r.example/m:1")])
            await record.record_facts(
                transaction, record.CLUSTERS, [cluster_row("c1", KERNEL), cluster_row("silent")]
            )
        await engine.dispose()

    upgrade(database_url)
    asyncio.run(fill())
    return database_url


def status(*arguments: str, database_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kmmhub.main", "status", *arguments, "--database-url", database_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_status_tells_each_cluster_and_kernel(filled: str) -> None:
    told = status("m", "-o", "json", database_url=filled)
    assert told.returncode == 1, told.stderr  # not Ready
    (module,) = json.loads(told.stdout)["modules"]
    assert {one["cluster"]: (one["phase"], one["reason"]) for one in module["clusters"]} == {
        "c1": ("Building", "BuildPending"),
        "silent": ("Waiting", "ClaimMissing"),
    }
    (kernel,) = module["kernels"]
    assert (kernel["kernel"], kernel["clusters"], kernel["image"]) == (KERNEL, 1, "r.example/m:1")
    assert {one["type"] for one in module["conditions"]} >= {"Ready", "Available", "Degraded"}


def test_status_for_people(filled: str) -> None:
    told = status(database_url=filled)
    assert told.returncode == 1
    for word in ("m ", "c1", "silent", "ClaimMissing", KERNEL):
        assert word in told.stdout
    (silent,) = (line for line in told.stdout.splitlines() if line.startswith("silent"))
    assert "KMM_MANAGED=1" in silent, "a pipe's lines are not folded"


def test_a_module_that_is_not_there(filled: str) -> None:
    told = status("nix", database_url=filled)
    assert told.returncode == 1
    assert "there are: m" in told.stderr


def test_retry_clears_a_failure(filled: str) -> None:
    """A failed image waits for a builder again; one that did not fail is left alone."""

    async def prepare() -> None:
        engine = connect(filled, application="test")
        async with PostgresStore(engine).begin() as transaction:
            request = ArtifactRequest(
                target="r.example/m:1", kernel=KernelVersion(KERNEL), architecture="amd64"
            )
            await artifacts.want(transaction, [request])
            await transaction.put_module_kernels({("m", KERNEL): request.key})
        async with PostgresStore(engine).begin() as transaction:
            lease = await artifacts.take_lease(transaction, request.key, Stage.BUILD, owner="t", seconds=30)
            assert lease is not None
            failure = Failure(reason="BuildFailed", message="no", retry_seconds=None)
            assert await artifacts.finish(transaction, lease, failure, seconds=1)
        await engine.dispose()

    asyncio.run(prepare())
    command = [sys.executable, "-m", "kmmhub.main", "retry", "m", "--database-url", filled, "-o", "json"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, timeout=60, check=False) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout)["artifacts"]) == 1
    assert second.returncode == 1
    assert "no failed image" in second.stderr
