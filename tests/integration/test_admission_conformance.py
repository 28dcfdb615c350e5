"""The shared cases about admission, on a real API server with the CRD, and by the domain's rules.

The case file lies beside the checkout; without it these tests are skipped, and `admission_cases` covers the rules.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubectl import Hub, Kubectl

from shared.domain.admission import validate, validate_update

pytestmark = pytest.mark.integration

CASES = Path(__file__).parents[3] / "shared" / "conformance" / "cases.yaml"
KINDS = ("validate", "validate-update", "crd-schema")


def cases() -> list[Any]:
    if not CASES.is_file():
        skip = pytest.mark.skip(reason="the conformance cases are not beside this checkout")
        return [pytest.param({}, marks=skip, id="cases")]
    stored = yaml.safe_load(CASES.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in stored if case["kind"] in KINDS]


@pytest.fixture(scope="module")
def kubectl(hub: Hub) -> Kubectl:
    """A hub that has the CRDs of the project."""
    command = Kubectl(hub)
    command.apply_crds()
    return command


def whole(part: dict[str, Any], name: str) -> dict[str, Any]:
    """An object under a name that no other test uses."""
    manifest = deepcopy(part)
    manifest["metadata"]["name"] = name
    return {"apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1", "kind": "ManagedClusterModule"} | manifest


@pytest.mark.parametrize("case", cases())
def test_case(kubectl: Kubectl, case: dict[str, Any], request: pytest.FixtureRequest) -> None:
    name = f"conformance-{abs(hash(case['id'])) % 10**8}"
    new = whole(case["input"]["managedClusterModule"], name)
    old = whole(case["input"]["old"], name) if "old" in case["input"] else None
    if old is None:
        done = kubectl.run("create", "--dry-run=server", "--filename=-", given=new)
        violations = validate(new)
    else:
        kubectl.read("create", "--filename=-", given=old)
        request.addfinalizer(lambda: kubectl.run("delete", "mcm", name, "--wait=false"))
        done = kubectl.run("replace", "--dry-run=server", "--filename=-", given=new)
        violations = validate_update(new, old)

    is_allowed = case["expect"]["allowed"]
    assert (done.returncode == 0) == is_allowed, done.stderr or json.dumps(new)
    if case["kind"] != "crd-schema":  # structure is the API server's business alone
        assert (violations == ()) == is_allowed
