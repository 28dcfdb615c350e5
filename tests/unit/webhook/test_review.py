"""What the webhook answers."""

from typing import Any

import pytest
from reviews import module, review

from services.admission.review import AdmissionReview, UnexpectedReview, answer

BAD_IMAGE = [{"literal": "6.1.0", "containerImage": "image"}]
AT = "spec.moduleSpec.moduleLoader.container"


def answered(*parts: Any) -> dict[str, Any]:
    reply = answer(AdmissionReview.model_validate(review(*parts)))
    assert (reply["apiVersion"], reply["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = reply["response"]
    assert response.pop("uid") == "705ab4f5-6393-11e8-b7cc-42010a800002"
    return response


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("CREATE", module()), id="good"),
        pytest.param(("UPDATE", module(version="2"), module()), id="another version"),
        pytest.param(("DELETE", None, module(kernelMappings=BAD_IMAGE)), id="deletion of a wrong one"),
        pytest.param(("CONNECT", None), id="no object at all"),
        pytest.param(
            ("UPDATE", module(kernelMappings=BAD_IMAGE), module(kernelMappings=BAD_IMAGE)),
            id="a wrong one that stays as it is",
        ),
    ],
)
def test_allowed(parts: tuple[Any, ...]) -> None:
    assert answered(*parts) == {"allowed": True}


def test_a_wrong_module_is_refused_with_every_cause() -> None:
    wrong = module(kernelMappings=BAD_IMAGE, modprobe={})

    response = answered("CREATE", wrong)

    assert response["allowed"] is False
    status = response["status"]
    assert (status["status"], status["code"], status["reason"]) == ("Failure", 422, "Invalid")
    fields = [cause["field"] for cause in status["details"]["causes"]]
    assert fields == [f"{AT}.kernelMappings[0].containerImage", f"{AT}.modprobe.moduleName"]
    assert status["details"]["name"] == "simple"
    assert {cause["reason"] for cause in status["details"]["causes"]} == {
        "FieldValueInvalid",
        "FieldValueRequired",
    }
    assert all(
        f"{cause['field']}: {cause['message']}" in status["message"] for cause in status["details"]["causes"]
    )


def test_the_message_of_many_violations_stays_readable() -> None:
    status = answered("CREATE", module(kernelMappings=BAD_IMAGE * 30))["status"]

    assert len(status["details"]["causes"]) == 30
    assert status["message"].endswith("; and 20 more")


def test_an_update_is_judged_by_what_was_before() -> None:
    without = module()
    del without["spec"]["moduleSpec"]["moduleLoader"]["container"]["version"]

    assert answered("CREATE", without) == {"allowed": True}
    response = answered("UPDATE", without, module())

    assert response["allowed"] is False
    assert [cause["field"] for cause in response["status"]["details"]["causes"]] == [f"{AT}.version"]


def test_what_will_not_work_is_a_warning_once() -> None:
    useless = module(kernelMappings=[{"literal": "6.1.0+", "containerImage": "r.example/simple:1"}] * 20)

    response = answered("CREATE", useless)

    assert response["allowed"] is True
    assert len(response["warnings"]) == 10
    assert response["warnings"][0].startswith(f"{AT}.kernelMappings[0].literal: ")
    assert max(map(len, response["warnings"])) <= 256
    assert answered("UPDATE", useless, module())["warnings"] == response["warnings"]
    assert answered("UPDATE", useless, useless) == {"allowed": True}


@pytest.mark.parametrize("field", ["group", "resource"])
def test_another_resource_is_a_mistake_of_the_configuration(field: str) -> None:
    other = review("CREATE", module())
    other["request"]["resource"][field] = "others"

    with pytest.raises(UnexpectedReview, match=r"others.*ValidatingWebhookConfiguration"):
        answer(AdmissionReview.model_validate(other))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (("CREATE", None), "CREATE brings no object"),
        (("UPDATE", None, module()), "UPDATE brings no object"),
        (("UPDATE", module()), "no oldObject"),
    ],
)
def test_a_review_without_its_objects_is_no_review(parts: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UnexpectedReview, match=says):
        answered(*parts)
