"""The tables, as SQLAlchemy Core sees them. The one writer of each is named; everyone may read.

| table | written by | holds |
| --- | --- | --- |
| clusters | watcher | ManagedClusters with their labels and the kernels of their claim |
| modules | watcher | ManagedClusterModules as last seen |
| config_maps, secrets | watcher | the Dockerfile text of ConfigMaps, the version of Secrets (never their content) |
| works | watcher, dispatcher | ManifestWorks: the newest resourceVersion wins, whoever saw it |
| syncs | watcher | which resources were listed completely at least once |
| artifacts | dispatcher (wants), builder, signer (results, under a lease) | images that some cluster needs |
| module_kernels | dispatcher | which artifact each module wants for each kernel |
| outbox | whoever commits a fact | announcements that commit with the fact |
| dead_letters | whoever consumes a queue | messages that cannot be handled, until a person decides |
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_now = sa.func.now()


def _timestamp(name: str, *, nullable: bool = False, default: bool = True) -> sa.Column[object]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=nullable, server_default=_now if default else None
    )


clusters = sa.Table(
    "clusters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("kernels", ARRAY(sa.Text), nullable=False),
    sa.Column("invalid_kernels", JSONB, nullable=False, server_default="[]"),
    sa.Column("claim_is_present", sa.Boolean, nullable=False),
    sa.Column("claim_is_near_limit", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("is_deleting", sa.Boolean, nullable=False),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
    sa.Index("ix_clusters_kernels", "kernels", postgresql_using="gin"),
    sa.Index(
        "ix_clusters_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    ),
)

modules = sa.Table(
    "modules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("status", JSONB, nullable=False),
    sa.Column("finalizers", ARRAY(sa.Text), nullable=False),
    sa.Column("is_deleting", sa.Boolean, nullable=False),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
)

config_maps = sa.Table(
    "config_maps",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("dockerfile", sa.Text),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False, comment="a slow, salted hash of the content"),
    sa.Column("keys", ARRAY(sa.Text), nullable=False, comment="names of the data keys, no values"),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
)

works = sa.Table(
    "works",
    metadata,
    sa.Column("cluster", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False),
    sa.Column("module", sa.Text, comment="our label; null on a work that is not ours"),
    sa.Column("content_hash", sa.Text, comment="our annotation: the hash of what we meant to post"),
    sa.Column(
        "observed_hash", sa.Text, nullable=False, comment="hash of spec, label and annotations as stored"
    ),
    sa.Column("posted_hash", sa.Text, comment="observed_hash right after our own last write"),
    sa.Column("served", JSONB, nullable=False, comment="literals of the shipped mappings, with their images"),
    sa.Column("conditions", JSONB, nullable=False),
    sa.Column("feedback", JSONB, nullable=False),
    sa.Column(
        "problem", sa.Text, nullable=False, server_default="", comment="what the agent could not apply"
    ),
    sa.Column("is_deleting", sa.Boolean, nullable=False),
    sa.Column("is_gone", sa.Boolean, nullable=False),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
    _timestamp("seen_at"),
    sa.Index("ix_works_module", "module"),
    sa.Index("ix_works_gone", "seen_at", postgresql_where=sa.text("is_gone")),
)

syncs = sa.Table(
    "syncs",
    metadata,
    sa.Column("resource", sa.Text, primary_key=True),
    sa.Column("resource_version", sa.BigInteger, nullable=False),
    _timestamp("synced_at"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("key", sa.Text, primary_key=True, comment="sha256 of everything that decides the content"),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("kernel", sa.Text, nullable=False),
    sa.Column("request", JSONB, nullable=False, comment="shared.domain.artifact.ArtifactRequest"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("lease_owner", sa.Text),
    sa.Column("not_before", sa.DateTime(timezone=True), nullable=False, server_default=_now),
    sa.Column("announce_after", sa.DateTime(timezone=True), nullable=False),
    sa.Column("announced", sa.Integer, nullable=False, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("source", sa.Text, comment="name@digest of the image to sign or to ship"),
    sa.Column("source_is_adopted", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("digest", sa.Text, comment="digest to ship, once ready"),
    sa.Column(
        "signed_by", sa.Text, comment="SHA-256 fingerprint of the certificate whose signature was verified"
    ),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("log_tail", sa.Text),
    sa.Column("build_seconds", sa.Float),
    sa.Column("sign_seconds", sa.Float),
    _timestamp("created_at"),
    _timestamp("changed_at"),
    sa.CheckConstraint(
        "state IN ('wanted', 'building', 'built', 'signing', 'ready', 'failed', 'unwanted')",
        name="state_is_known",
    ),
    sa.CheckConstraint("state <> 'ready' OR digest IS NOT NULL", name="ready_has_digest"),
    sa.Index(
        "ix_artifacts_due",
        "announce_after",
        postgresql_where=sa.text("state NOT IN ('ready', 'failed', 'unwanted')"),
    ),
)

FIXED_ARTIFACT_COLUMNS = frozenset({"key", "target", "kernel", "request", "created_at"})
"""What is to be built and signed. Nobody changes it once it is stored: the key is its hash."""

module_kernels = sa.Table(
    "module_kernels",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("kernel", sa.Text, primary_key=True),
    sa.Column("artifact_key", sa.Text, nullable=False),
    sa.Index("ix_module_kernels_artifact_key", "artifact_key"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    _timestamp("created_at"),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("payload_sha256", sa.Text, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("deliveries", sa.Integer, nullable=False),
    _timestamp("died_at"),
    sa.UniqueConstraint("queue", "subject", "payload_sha256"),
)
