"""Manifests with the shape of KMM's rendered Helm chart: one of each kind that it has, and nothing that runs."""

from __future__ import annotations

from typing import Any

import yaml

from kmmhub.crds import CRD_DIRECTORY

NAMESPACE = "kmm-operator-system"

Json = dict[str, Any]


def kmm_manifests() -> list[Json]:
    """KMM's CRD of Modules, its operator and webhook with their accounts and rights, and cert-manager's part."""
    crd: Json = yaml.safe_load((CRD_DIRECTORY / "kmm.sigs.x-k8s.io_modules.yaml").read_text())
    account = _named("v1", "ServiceAccount", "kmm-operator-controller")
    role: Json = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "kmm-operator-manager-role"},
        "rules": [
            {"apiGroups": ["kmm.sigs.x-k8s.io"], "resources": ["modules"], "verbs": ["get", "list", "watch"]}
        ],
    }
    environment = [{"name": "OPERATOR_NAMESPACE", "value": NAMESPACE}]
    return [
        crd,
        account,
        role,
        _named("cert-manager.io/v1", "Issuer", "kmm-operator-selfsigned-issuer", spec={"selfSigned": {}}),
        _service(),
        _webhook(),
        _deployment("kmm-operator-controller", "manager", environment),
        _deployment("kmm-operator-webhook", "webhook-server", environment),
    ]


def issuer_crd() -> Json:
    """The kind of cert-manager's that the manifests need."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": "Issuer", "plural": "issuers", "singular": "issuer", "listKind": "IssuerList"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "issuers.cert-manager.io"},
        "spec": {"group": "cert-manager.io", "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _named(api: str, kind: str, name: str, **rest: Any) -> Json:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, **rest}


def _deployment(name: str, container: str, environment: list[Json]) -> Json:
    labels = {"control-plane": container}
    pod = {
        "serviceAccountName": "kmm-operator-controller",
        "containers": [{"name": container, "image": "registry.example/kmm:2", "env": list(environment)}],
    }
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    return _named("apps/v1", "Deployment", name, spec=spec)


def _service() -> Json:
    ports = [{"port": 443, "targetPort": 9443}]
    return _named("v1", "Service", "kmm-operator-webhook-service", spec={"ports": ports})


def _webhook() -> Json:
    service = {"name": "kmm-operator-webhook-service", "namespace": NAMESPACE, "path": "/validate"}
    rule = {
        "apiGroups": ["kmm.sigs.x-k8s.io"],
        "apiVersions": ["v1beta1"],
        "operations": ["CREATE"],
        "resources": ["preflightvalidations"],
    }
    webhook = {
        "name": "vpreflight.kb.io",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": service},
        "rules": [rule],
        "sideEffects": "None",
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "kmm-operator-validating-webhook"},
        "webhooks": [webhook],
    }
