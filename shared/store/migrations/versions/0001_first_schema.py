"""first schema"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""

    op.create_table(
        "artifacts",
        sa.Column("key", sa.Text(), nullable=False, comment="sha256 of everything that decides the content"),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("kernel", sa.Text(), nullable=False),
        sa.Column(
            "request",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="shared.domain.artifact.ArtifactRequest",
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("announce_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("announced", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("source", sa.Text(), nullable=True, comment="name@digest of the image to sign or to ship"),
        sa.Column("source_is_adopted", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("digest", sa.Text(), nullable=True, comment="digest to ship, once ready"),
        sa.Column(
            "signed_by",
            sa.Text(),
            nullable=True,
            comment="SHA-256 fingerprint of the certificate whose signature was verified",
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("build_seconds", sa.Float(), nullable=True),
        sa.Column("sign_seconds", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state <> 'ready' OR digest IS NOT NULL", name=op.f("ck_artifacts_ready_has_digest")
        ),
        sa.CheckConstraint(
            "state IN ('wanted', 'building', 'built', 'signing', 'ready', 'failed', 'unwanted')",
            name=op.f("ck_artifacts_state_is_known"),
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_artifacts")),
    )
    op.create_index(
        "ix_artifacts_due",
        "artifacts",
        ["announce_after"],
        unique=False,
        postgresql_where=sa.text("state NOT IN ('ready', 'failed', 'unwanted')"),
    )
    op.create_table(
        "clusters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("kernels", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "invalid_kernels", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False
        ),
        sa.Column("claim_is_present", sa.Boolean(), nullable=False),
        sa.Column("claim_is_near_limit", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("is_deleting", sa.Boolean(), nullable=False),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_clusters")),
    )
    op.create_index("ix_clusters_kernels", "clusters", ["kernels"], unique=False, postgresql_using="gin")
    op.create_index(
        "ix_clusters_labels",
        "clusters",
        ["labels"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_table(
        "config_maps",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("dockerfile", sa.Text(), nullable=True),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_config_maps")),
    )
    op.create_table(
        "module_kernels",
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("kernel", sa.Text(), nullable=False),
        sa.Column("artifact_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("module", "kernel", name=op.f("pk_module_kernels")),
    )
    op.create_index("ix_module_kernels_artifact_key", "module_kernels", ["artifact_key"], unique=False)
    op.create_table(
        "modules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("finalizers", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("is_deleting", sa.Boolean(), nullable=False),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_modules")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("payload_sha256", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("died_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("queue", "subject", "payload_sha256", name=op.f("uq_dead_letters_queue")),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False, comment="a slow, salted hash of the content"),
        sa.Column(
            "keys", postgresql.ARRAY(sa.Text()), nullable=False, comment="names of the data keys, no values"
        ),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "syncs",
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.Column("synced_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("resource", name=op.f("pk_syncs")),
    )
    op.create_table(
        "works",
        sa.Column("cluster", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("module", sa.Text(), nullable=True, comment="our label; null on a work that is not ours"),
        sa.Column(
            "content_hash",
            sa.Text(),
            nullable=True,
            comment="our annotation: the hash of what we meant to post",
        ),
        sa.Column(
            "observed_hash",
            sa.Text(),
            nullable=False,
            comment="hash of spec, label and annotations as stored",
        ),
        sa.Column(
            "posted_hash", sa.Text(), nullable=True, comment="observed_hash right after our own last write"
        ),
        sa.Column(
            "served",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="literals of the shipped mappings, with their images",
        ),
        sa.Column("conditions", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("feedback", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "problem",
            sa.Text(),
            server_default="",
            nullable=False,
            comment="what the agent could not apply",
        ),
        sa.Column("is_deleting", sa.Boolean(), nullable=False),
        sa.Column("is_gone", sa.Boolean(), nullable=False),
        sa.Column("resource_version", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "name", name=op.f("pk_works")),
    )
    op.create_index("ix_works_module", "works", ["module"], unique=False)


def downgrade() -> None:
    """Take it back."""

    op.drop_index("ix_works_module", table_name="works")
    op.drop_table("works")
    op.drop_table("syncs")
    op.drop_table("secrets")
    op.drop_table("dead_letters")
    op.drop_table("outbox")
    op.drop_table("modules")
    op.drop_index("ix_module_kernels_artifact_key", table_name="module_kernels")
    op.drop_table("module_kernels")
    op.drop_table("config_maps")
    op.drop_index(
        "ix_clusters_labels",
        table_name="clusters",
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.drop_index("ix_clusters_kernels", table_name="clusters", postgresql_using="gin")
    op.drop_table("clusters")
    op.drop_index(
        "ix_artifacts_due",
        table_name="artifacts",
        postgresql_where=sa.text("state NOT IN ('ready', 'failed', 'unwanted')"),
    )
    op.drop_table("artifacts")
