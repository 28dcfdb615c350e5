"""Objects of any form before the admission rules: judged, and answered in JSON."""

import json
from typing import Any

from hostile_budget import budget
from hostile_values import JSON, mutated
from hypothesis import example, given
from test_hostile_modules import SPEC

from services.admission.review import AdmissionReview, answer
from shared.domain.admission import validate, validate_update, warnings
from shared.domain.canonical import storable

MODULE: dict[str, Any] = {"metadata": {"name": "m", "labels": {}}, "spec": SPEC}


@budget(300)
@given(new=mutated(MODULE) | JSON, old=mutated(MODULE) | JSON)
@example(new={"metadata": "x", "spec": {"spokeNamespace": ""}}, old={})
@example(new={"metadata": {"name": {}}, "spec": []}, old={"spec": {"moduleSpec": 5}})
def test_any_object_is_judged_and_answered(new: Any, old: Any) -> None:
    new, old = (storable(one) if isinstance(one, dict) else {"spec": storable(one)} for one in (new, old))
    for found in (validate(new), validate_update(new, old), warnings(new)):
        assert all(one.path and one.message and one.reason.isalpha() for one in found)
        assert all(len(one.message) < 2000 for one in found)
    review = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "resource": {
                "group": "hub.kmm.sigs.x-k8s.io",
                "version": "v1beta1",
                "resource": "managedclustermodules",
            },
            "operation": "UPDATE",
            "object": new,
            "oldObject": old,
        },
    }
    reply = answer(AdmissionReview.model_validate_json(json.dumps(review)))["response"]
    json.dumps(reply)
    assert reply["allowed"] is not bool(validate_update(new, old))
    assert reply["allowed"] or reply["status"]["message"]


def test_a_long_loading_order_is_judged_in_linear_time() -> None:
    order = [f"m{number}" for number in range(100_000)]
    modprobe = {"moduleName": "m0", "dirName": "/opt", "modulesLoadingOrder": order}
    loader = {
        "container": {"modprobe": modprobe, "kernelMappings": [{"literal": "x", "containerImage": "r/x:1"}]}
    }
    assert (
        validate(
            {
                "metadata": {"name": "m"},
                "spec": {"spokeNamespace": "s", "moduleSpec": {"moduleLoader": loader}},
            }
        )
        == ()
    )
