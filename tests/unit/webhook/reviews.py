"""AdmissionReviews as an API server sends them."""

from copy import deepcopy
from typing import Any

MODULE: dict[str, Any] = {
    "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
    "kind": "ManagedClusterModule",
    "metadata": {"name": "simple", "uid": "1"},
    "spec": {
        "selector": {},
        "spokeNamespace": "kmm",
        "moduleSpec": {
            "selector": {},
            "moduleLoader": {
                "container": {
                    "version": "1",
                    "modprobe": {"moduleName": "simple", "dirName": "/opt"},
                    "kernelMappings": [{"literal": "6.1.0", "containerImage": "r.example/simple:1"}],
                }
            },
        },
    },
}


def module(**container: Any) -> dict[str, Any]:
    """A module with some fields of its container set."""
    manifest = deepcopy(MODULE)
    manifest["spec"]["moduleSpec"]["moduleLoader"]["container"] |= container
    return manifest


def review(operation: str, new: dict[str, Any] | None, old: dict[str, Any] | None = None) -> dict[str, Any]:
    """A review of the API server for ManagedClusterModules."""
    kind = {"group": "hub.kmm.sigs.x-k8s.io", "version": "v1beta1"}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind | {"kind": "ManagedClusterModule"},
            "resource": kind | {"resource": "managedclustermodules"},
            "name": "simple",
            "operation": operation,
            "userInfo": {"username": "admin"},
            "object": new,
            "oldObject": old,
            "dryRun": False,
            "options": None,
        },
    }
