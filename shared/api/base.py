"""What the API models share: naming, metadata, references, conditions, and the marker for pod types."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

CORE_TYPE_KEYWORD = "x-kmmhub-core-type"
"""JSON schema keyword by which `CoreV1` names a definition of the API server's own document."""


def json_name(field: str) -> str:
    """Return a field's name on the wire: camelCase, with `TLS` in capitals as in `registryTLS`."""
    return to_camel(field).replace("Tls", "TLS")


class ApiModel(BaseModel):
    """A part of an API object, read as the API server reads it.

    Unknown fields are dropped, a null is a field left out, and a default that is not None is a default of the
    CRD, so that a model and the CRD made from it agree. Attribute docstrings become the CRD's descriptions.
    """

    model_config = ConfigDict(
        alias_generator=json_name,
        populate_by_name=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return _without_nulls(value)

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Self:
        """Read the JSON form. Raises pydantic.ValidationError if the CRD would refuse it."""
        return cls.model_validate(manifest, by_alias=True, by_name=False)

    def to_manifest(self) -> dict[str, Any]:
        """Return the JSON form: camelCase keys, defaults spelled out, fields that are None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _without_nulls(value: Any) -> Any:
    """Drop null entries of an object, as the API server does with every null that a schema does not allow."""
    if not isinstance(value, dict):
        return value
    return {key: child for key, child in value.items() if child is not None}


@dataclass(frozen=True, slots=True)
class CoreV1:
    """Marks a field that holds a type of Kubernetes' `v1` API, as opaque JSON in Python.

    Attributes:
        kind: the type's name in the group `v1`, such as `Volume`.
    """

    kind: str

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {CORE_TYPE_KEYWORD: f"io.k8s.api.core.v1.{self.kind}"}


@dataclass(frozen=True, slots=True)
class SchemaIs:
    """Marks a field whose schema in the CRD is given here instead of being derived from its Python type.

    Attributes:
        schema: the whole structural schema of the field, without its description.
    """

    schema: dict[str, Any]

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


Bool = Annotated[bool, Field(strict=True)]
"""A JSON boolean; text and numbers are refused, as by the API server."""

Int = Annotated[int, Field(strict=True)]
"""A JSON integer of Go's type `int`, which has no format."""

Int32 = Annotated[int, Field(strict=True, json_schema_extra={"format": "int32"})]
"""A JSON integer of 32 bits."""

Int64 = Annotated[int, Field(strict=True, json_schema_extra={"format": "int64"})]
"""A JSON integer of 64 bits."""

Labels = Annotated[dict[str, str], BeforeValidator(_without_nulls)]
"""Label keys and values that must all be present (equality, joined by AND); empty selects everything."""


class ObjectMeta(ApiModel):
    """The parts of `metadata` that a hub reads; the others are kept as they came."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    """Name of the object."""
    namespace: str | None = None
    """Namespace of the object; none for cluster-scoped kinds."""
    uid: str | None = None
    """Identity of this object, different after a re-creation under the same name."""
    resource_version: str | None = None
    """Opaque version for optimistic locking."""
    generation: Int64 | None = None
    """Counts the changes of `spec`."""
    deletion_timestamp: datetime | None = None
    """Set once deletion was asked for; the object stays until its finalizers are gone."""
    labels: dict[str, str] | None = None
    """Labels of the object."""
    annotations: dict[str, str] | None = None
    """Annotations of the object."""
    finalizers: tuple[str, ...] | None = None
    """What must be done before the object may vanish."""


Metadata = Annotated[ObjectMeta, SchemaIs({"type": "object"})]
"""An object's `metadata`; the API server brings the schema of it."""


class LocalObjectReference(ApiModel):
    """Names an object of the same namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: str = ""
    """Name of the object."""


class Condition(ApiModel):
    """One aspect of the observed state, in the form of Kubernetes' `meta/v1` Condition (KEP-1623)."""

    type: Annotated[
        str,
        Field(
            max_length=316,
            pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
            r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
        ),
    ]
    """Name of the aspect, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether the aspect holds."""
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    """Why, as one CamelCase word for programs."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, in words for people."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: Annotated[Int64, Field(ge=0)] | None = None
    """The `metadata.generation` that this was decided from."""
