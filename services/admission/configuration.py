"""The ValidatingWebhookConfiguration that sends reviews to the webhook."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Literal

import yaml

from services.admission.app import PATH
from services.admission.review import GROUP, PLURAL
from shared.domain.errors import PermanentError

NAME = f"validate.{GROUP}"


def webhook_configuration(
    target: str, authority: bytes, *, failure_policy: Literal["Fail", "Ignore"] = "Fail"
) -> dict[str, Any]:
    """Return the manifest.

    Updates that leave the spec alone are not sent: labels, finalizers and deletion work while the webhook is down.

    Args:
        target: `https://host:port`, or `namespace/name` of a Service on the hub that has port 443.
        authority: certificates, PEM, that the webhook's certificate is checked by.
        failure_policy: what happens to a module while the webhook is down: `Fail` refuses it.

    Raises:
        PermanentError: the target is neither.
    """
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": NAME,
                "admissionReviewVersions": ["v1"],
                "clientConfig": _client(target) | {"caBundle": base64.b64encode(authority).decode()},
                "rules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": ["v1beta1"],
                        "resources": [PLURAL],
                        "operations": ["CREATE", "UPDATE"],
                        "scope": "Cluster",
                    }
                ],
                "matchConditions": [
                    {
                        "name": "spec-changes",
                        "expression": "request.operation == 'CREATE' || !has(object.spec) || !has(oldObject.spec) "
                        "|| object.spec != oldObject.spec",
                    }
                ],
                "matchPolicy": "Equivalent",
                "sideEffects": "None",
                "failurePolicy": failure_policy,
                "timeoutSeconds": 10,
            }
        ],
    }


def configuration_text(target: str, authority: Path | None) -> str:
    """Return the manifest as YAML.

    Args:
        target: as above.
        authority: file with the certificates, PEM.

    Raises:
        PermanentError: no file is given, it cannot be read, or the target is wrong.
    """
    if authority is None:
        raise PermanentError("--ca-file is missing: write the file of the webhook's certificate authority.")
    try:
        certificates = authority.read_bytes()
    except OSError as error:
        raise PermanentError(f"The certificates cannot be read: {error}") from error
    if b"-----BEGIN CERTIFICATE-----" not in certificates:
        raise PermanentError(f"{authority} has no certificate in PEM.")
    return yaml.safe_dump(webhook_configuration(target, certificates), sort_keys=False)


def _client(target: str) -> dict[str, Any]:
    if target.startswith("https://"):
        return {"url": target.rstrip("/") + PATH}
    namespace, slash, name = target.partition("/")
    if not (namespace and slash and name) or "/" in name or ":" in target:
        raise PermanentError(
            f"{target!r} names no webhook: write https://host:port, or namespace/name of a Service."
        )
    return {"service": {"namespace": namespace, "name": name, "path": PATH, "port": 443}}
