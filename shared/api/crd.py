"""CustomResourceDefinitions made from the models and from the API server's own types of pods.

Pure functions: the same models and the same OpenAPI document give the same manifests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.api.hub_rules import HUB_REFINEMENTS
from shared.api.managed_cluster_module import ManagedClusterModule
from shared.api.module import Module
from shared.api.rules import Refinement, refined
from shared.api.structural import Schema, SchemaSource
from shared.domain.errors import PermanentError

INT_OR_STRING: Schema = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}
"""A port or percentage: Kubernetes' IntOrString."""

QUANTITY: Schema = INT_OR_STRING | {
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
}
"""An amount such as 500m or 1Gi; the pattern is that of apimachinery's `resource.Quantity`."""

REPLACED_TYPES: Mapping[str, Schema] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": QUANTITY,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    # A CRD may not describe embedded metadata; kernel-module-management's keeps none of it either.
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {"type": "object"},
}
"""Types whose OpenAPI form no structural schema can express, and the form that CRDs use."""

OMITTED_OF_CORE = frozenset({"description", "enum"})
"""What is left out of the types of pods: their descriptions are long, and their sets of values grow with the
versions of Kubernetes, so that an enum would refuse what a newer spoke understands (upstream has none either).
"""


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """A column that `kubectl get` prints.

    Attributes:
        name: the heading.
        type: OpenAPI type of the value, or `date`.
        path: JSONPath of the value in the object.
        priority: 0 is always printed, 1 only with `--output=wide`.
    """

    name: str
    type: Literal["integer", "string", "date"]
    path: str
    priority: int = 0

    def manifest(self) -> dict[str, Any]:
        """Return the column as JSON."""
        column = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return column | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a CRD says about a kind beside its schema.

    Attributes:
        model: the model of a whole object.
        group: the API group; the version is `v1beta1`.
        plural: the resource's name in URLs.
        scope: whether objects live in namespaces.
        short_names: abbreviations for kubectl.
        categories: groups of kinds that `kubectl get` lists together.
        columns: what `kubectl get` prints beside the name.
        refinements: what is refused beyond the types of the model.
    """

    model: type[BaseModel]
    group: str
    plural: str
    scope: Literal["Cluster", "Namespaced"]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[PrinterColumn, ...] = ()
    refinements: tuple[Refinement, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the manifest's file: `<group>_<plural>.yaml`, as kubebuilder names them."""
        return f"{self.group}_{self.plural}.yaml"


MANAGED_CLUSTER_MODULE = Kind(
    model=ManagedClusterModule,
    group="hub.kmm.sigs.x-k8s.io",
    plural="managedclustermodules",
    scope="Cluster",
    short_names=("mcm",),
    categories=("kmm",),
    columns=(
        PrinterColumn("Desired", "integer", ".status.numberDesired"),
        PrinterColumn("Applied", "integer", ".status.numberApplied"),
        PrinterColumn("Degraded", "integer", ".status.numberDegraded"),
        PrinterColumn("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp"),
    ),
    refinements=HUB_REFINEMENTS,
)
"""The kind that users write on the hub."""

MODULE = Kind(model=Module, group="kmm.sigs.x-k8s.io", plural="modules", scope="Namespaced")
"""The kind that the hub ships to the spokes."""

KINDS = (MANAGED_CLUSTER_MODULE, MODULE)
"""All kinds of which the project keeps a CRD."""


def crd_manifest(kind: Kind, openapi: Mapping[str, Any]) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind.

    Args:
        kind: the kind.
        openapi: the JSON document that an API server serves at `/openapi/v3/api/v1`.

    Raises:
        PermanentError: the document lacks a type that the models use, or has it in an unknown form.
    """
    name = kind.model.__name__
    names: dict[str, Any] = {
        "kind": name,
        "listKind": f"{name}List",
        "plural": kind.plural,
        "singular": name.lower(),
        "shortNames": list(kind.short_names),
        "categories": list(kind.categories),
    }
    version: dict[str, Any] = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.manifest() for column in kind.columns],
        "schema": {"openAPIV3Schema": refined(_object_schema(kind.model, openapi), kind.refinements)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": _without_empty(names),
            "scope": kind.scope,
            "versions": [_without_empty(version)],
        },
    }


def _without_empty(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value != []}


def _object_schema(model: type[BaseModel], openapi: Mapping[str, Any]) -> Schema:
    _, document = models_json_schema([(model, "validation")], by_alias=True)
    definitions: dict[str, Schema] = document["$defs"]
    source = SchemaSource(definitions=definitions, core=_core_types(openapi))
    schema = source.structural(definitions[model.__name__])
    # The API server owns these three: a CRD may name them but not constrain them.
    schema["properties"] |= {key: {"type": "string"} for key in ("apiVersion", "kind")}
    schema.pop("required", None)
    return schema


def _core_types(openapi: Mapping[str, Any]) -> SchemaSource:
    try:
        definitions = openapi["components"]["schemas"]
    except (KeyError, TypeError) as error:
        raise PermanentError(
            "This is no OpenAPI v3 document of a Kubernetes API server: it has no components.schemas. "
            "Fetch it from /openapi/v3/api/v1."
        ) from error
    return SchemaSource(definitions=definitions, replaced=REPLACED_TYPES, omitted=OMITTED_OF_CORE)
