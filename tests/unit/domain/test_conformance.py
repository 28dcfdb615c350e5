"""The shared conformance cases of KMM's hub, as far as they are decided by the domain alone.

The case file lies beside the checkout; without it these tests are skipped, and the tables in the other files here
cover the same rules.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.domain.artifact import Access
from shared.domain.claim import CLAIM_NAME, find_claim, read_claim, split_claim, write_claim
from shared.domain.image import ImageReference
from shared.domain.kernel import InvalidKernel, dns_safe, kernel_variables, normalize
from shared.domain.mapping import (
    InvalidResolution,
    MappingIndex,
    NoMatchingKernel,
    ResolvedBuild,
    ResolvedSign,
)
from shared.domain.module import parse_module, worker_tolerations
from shared.domain.selection import is_selected
from shared.domain.template import expand

Json = dict[str, Any]
CASES = Path(__file__).parents[4] / "shared" / "conformance" / "cases.yaml"


def resolved(given: Json) -> Json:
    raw = {"spokeNamespace": given["namespace"], "selector": {}, "moduleSpec": given["moduleSpec"]}
    spec = parse_module(raw)
    try:
        answer = MappingIndex(spec).resolve(
            module_name=given["name"], spoke_namespace=given["namespace"], kernel=given["kernel"]
        )
    except NoMatchingKernel:
        return {"error": "no-match"}
    except InvalidResolution:
        return {"error": "invalid"}
    in_tree = answer.in_tree_modules_to_remove
    return {
        "image": answer.image,
        "build": build_json(answer.build),
        "sign": sign_json(answer.sign),
        "registryTLS": access_json(answer.tls),
        "inTreeModulesToRemove": None if in_tree is None else list(in_tree),
        "tolerationKeys": [toleration["key"] for toleration in worker_tolerations(spec)],
    }


def access_json(access: Access) -> Json:
    values = {"insecure": access.insecure, "insecureSkipTLSVerify": access.skip_tls_verify}
    return {name: value for name, value in values.items() if value}


def build_json(build: ResolvedBuild | None) -> Json | None:
    return build_fields(build) if build else None


def build_fields(build: ResolvedBuild) -> Json:
    return {
        "dockerfileConfigMap": {"name": build.dockerfile_config_map},
        "buildArgs": [{"name": name, "value": value} for name, value in build.user_args] or None,
        "secrets": [{"name": name} for name in build.secrets] or None,
        "baseImageRegistryTLS": access_json(build.base_image_tls),
    }


def sign_json(sign: ResolvedSign | None) -> Json | None:
    return sign_fields(sign) if sign else None


def sign_fields(sign: ResolvedSign) -> Json:
    return {
        "keySecret": {"name": sign.key_secret},
        "certSecret": {"name": sign.cert_secret},
        "unsignedImage": sign.unsigned_image,
        "unsignedImageRegistryTLS": access_json(sign.unsigned_tls),
        "filesToSign": list(sign.files),
    }


def variables(given: Json) -> Json:
    try:
        return dict(kernel_variables(given["kernel"]))
    except InvalidKernel:
        return {"error": "invalid"}


def expanded(given: Json) -> Json:
    return {"results": [expand(template, given["vars"]) for template in given["templates"]]}


def normalized(given: Json) -> Json:
    return {"normalized": normalize(given["version"]), "dnsSafe": dns_safe(given["version"])}


def claimed(given: Json) -> Json:
    """The cases state what is sent, line by line; `read_claim` then trims and merges, which test_claim.py covers."""
    value = find_claim(given["clusterClaims"])
    if value is None:
        return {"error": "no-claim"}
    read = read_claim(value)
    assert {entry.text for entry in read.invalid} <= {line.strip() for line in split_claim(value)}
    return {"kernels": list(split_claim(value))}


def written(given: Json) -> Json:
    return {"value": write_claim(given["nodeKernels"]), "claimName": CLAIM_NAME}


def selected(given: Json) -> Json:
    clusters = [cluster["metadata"] for cluster in given["clusters"]]
    return {"selected": [meta["name"] for meta in clusters if is_selected(given["selector"], meta["labels"])]}


def affected(given: Json) -> Json:
    modules = given["managedClusterModules"]
    labels = given["clusterLabels"]
    return {
        "enqueued": [
            mcm["metadata"]["name"] for mcm in modules if is_selected(mcm["spec"]["selector"], labels)
        ]
    }


def pinned(given: Json) -> Json:
    """Without an answer from the registry there is nothing to pin to: the reference stays as written."""
    image = ImageReference.parse(given["image"])
    calls = 0 if image.digest else 1
    text = str(image) if given.get("registryError") else image.pinned(given["registryDigest"])
    return {"image": text, "registryCalls": calls, "lookedUp": image.lookup}


DECISIONS = {
    "resolve": resolved,
    "template": expanded,
    "kernel-vars": variables,
    "normalize": normalized,
    "claims": claimed,
    "claim-writer": written,
    "select": selected,
    "affected-mcms": affected,
    "tag-to-digest": pinned,
}


def cases() -> list[Any]:
    if not CASES.is_file():
        skip = pytest.mark.skip(reason="the conformance cases are not beside this checkout")
        return [pytest.param({}, marks=skip, id="cases")]
    stored = yaml.safe_load(CASES.read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in stored if case["kind"] in DECISIONS]


@pytest.mark.parametrize("case", cases())
def test_case(case: Json) -> None:
    answer = DECISIONS[case["kind"]](case["input"])
    assert {name: answer.get(name) for name in case["expect"]} == case["expect"]
