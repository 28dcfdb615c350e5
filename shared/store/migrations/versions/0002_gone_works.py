"""an index for what is known of works that are gone, which is deleted after a while"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    op.create_index("ix_works_gone", "works", ["seen_at"], unique=False, postgresql_where=sa.text("is_gone"))


def downgrade() -> None:
    """Take it back."""
    op.drop_index("ix_works_gone", table_name="works", postgresql_where=sa.text("is_gone"))
