"""Schema version 3: each label keeps the name of the token it came with; on SQLite the index of windows holds it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("labels", sa.Column("source", sa.Text, nullable=False, server_default=""))
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_labels_id_label", "labels")
        op.create_index("ix_labels_id_label", "labels", ["id", "observed_at", "received_at", "label", "source"])
    op.execute("update evergreen_meta set schema_version = 3")
