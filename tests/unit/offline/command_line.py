"""Runs the commands as a person would, and makes the objects that they read."""

from dataclasses import dataclass
from typing import Any

import yaml
from typer.testing import CliRunner

from kmmhub.main import app

Json = dict[str, Any]
CLAIM = "kernel-versions.kmm.node.kubernetes.io"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(*arguments: str, documents: list[Json] | None = None, text: str = "") -> Ended:
    """`kmmhub` with these arguments, and documents (or a text) on standard input."""
    given = yaml.safe_dump_all(documents, allow_unicode=True) if documents is not None else text
    result = CliRunner().invoke(app, list(arguments), input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def module(spec: Json | None = None, **metadata: Any) -> Json:
    """A ManagedClusterModule with a spec."""
    return {
        "apiVersion": "hub.kmm.sigs.x-k8s.io/v1beta1",
        "kind": "ManagedClusterModule",
        "metadata": {"name": "m", **metadata},
        "spec": spec if spec is not None else spec_of(),
    }


def spec_of(*mappings: Json, selector: Json | None = None, **container: Any) -> Json:
    """The spec of a ManagedClusterModule with these kernel mappings."""
    loader = {
        "modprobe": {"moduleName": "kmod", "dirName": "/opt"},
        "kernelMappings": list(mappings) or [{"regexp": "^5", "containerImage": "r.example/k:${KERNEL_XYZ}"}],
        **container,
    }
    return {
        "spokeNamespace": "s",
        "selector": {"a": "b"} if selector is None else selector,
        "moduleSpec": {"selector": {"node": "gpu"}, "moduleLoader": {"container": loader}},
    }


def cluster(name: str, *kernels: str, labels: Json | None = None, has_claim: bool = True) -> Json:
    """A ManagedCluster that runs these kernels."""
    claims = [{"name": CLAIM, "value": "\n".join(kernels)}] if has_claim else []
    return {
        "apiVersion": "cluster.open-cluster-management.io/v1",
        "kind": "ManagedCluster",
        "metadata": {"name": name, "labels": {"a": "b"} if labels is None else labels},
        "status": {"clusterClaims": [{"name": "id.k8s.io", "value": "x"}, *claims]},
    }
