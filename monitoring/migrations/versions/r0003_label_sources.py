"""Schema version 3: each label keeps the name of the token it came with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("labels", sa.Column("source", sa.Text, nullable=False, server_default=""))
    op.execute("update evergreen_meta set schema_version = 3")
