"""Answers to AdmissionReviews. Pure: a review in, its answer out.

Format: Kubernetes' `admission.k8s.io/v1`, as "Dynamic Admission Control" describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from shared.domain.admission import Violation, validate, validate_update, warnings
from shared.domain.admission.fields import Object
from shared.domain.errors import PermanentError

API_VERSION: Literal["admission.k8s.io/v1"] = "admission.k8s.io/v1"
GROUP, PLURAL = "hub.kmm.sigs.x-k8s.io", "managedclustermodules"

MAX_SHOWN = 10
"""How many violations the message spells out; the causes have them all."""

MAX_WARNING = 256
"""Characters of one warning that the API server passes on."""


class UnexpectedReview(PermanentError):
    """A review of something else than ManagedClusterModules, or one without the object."""

    reason = "UnexpectedReview"


class ReviewedResource(BaseModel):
    """Which resource a request is about."""

    group: str
    version: str
    resource: str


class AdmissionRequest(BaseModel):
    """What somebody asks of the API server."""

    uid: str = Field(min_length=1)
    resource: ReviewedResource
    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = Field(default=None, alias="oldObject")


class AdmissionReview(BaseModel):
    """An API server's question."""

    api_version: Literal["admission.k8s.io/v1"] = Field(alias="apiVersion")
    kind: Literal["AdmissionReview"]
    request: AdmissionRequest


def answer(review: AdmissionReview) -> dict[str, Any]:
    """Return the AdmissionReview that answers; requests but CREATE and UPDATE are allowed.

    Raises UnexpectedReview if the webhook's configuration sends what is not for it.
    """
    request = review.request
    violations = _violations(request)
    response: dict[str, Any] = {"uid": request.uid, "allowed": not violations}
    if violations:
        response["status"] = _status(request, violations)
    elif advice := _advice(request):
        response["warnings"] = advice
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _violations(request: AdmissionRequest) -> Sequence[Violation]:
    if (request.resource.group, request.resource.resource) != (GROUP, PLURAL):
        raise UnexpectedReview(
            f"This webhook judges {PLURAL}.{GROUP}, not {request.resource.resource}.{request.resource.group}: "
            "mend the rules of the ValidatingWebhookConfiguration."
        )
    if request.operation not in {"CREATE", "UPDATE"}:
        return ()
    if request.object is None:
        raise UnexpectedReview(f"The {request.operation} brings no object.")
    if request.operation == "CREATE":
        return validate(request.object)
    if request.old_object is None:
        raise UnexpectedReview("The UPDATE brings no oldObject.")
    return validate_update(request.object, request.old_object)


def _advice(request: AdmissionRequest) -> list[str]:
    """Warnings, unless the spec is as it was: nobody who sets a label wants to read them."""
    if request.object is None or request.object.get("spec") == (request.old_object or {}).get("spec"):
        return []
    return [_shown(warning)[:MAX_WARNING] for warning in warnings(request.object)[:MAX_SHOWN]]


def _status(request: AdmissionRequest, violations: Sequence[Violation]) -> dict[str, Any]:
    texts = [_shown(violation) for violation in violations[:MAX_SHOWN]]
    if len(violations) > MAX_SHOWN:
        texts.append(f"and {len(violations) - MAX_SHOWN} more")
    return {
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": "; ".join(texts),
        "details": {
            "name": Object(request.object).child("metadata").text("name"),
            "group": GROUP,
            "kind": "ManagedClusterModule",
            "causes": [
                {"reason": one.reason, "field": one.path, "message": one.message} for one in violations
            ],
        },
    }


def _shown(violation: Violation) -> str:
    return f"{violation.path}: {violation.message}"
