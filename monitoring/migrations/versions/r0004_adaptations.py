"""Schema version 4: the adaptations of each version, and the number of the one in force beside each prediction."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("predictions", sa.Column("adaptation", sa.Integer))
    op.create_table(
        "adaptations",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("digest", sa.Text),
        sa.Column("served", sa.LargeBinary),
        sa.Column("whole", sa.LargeBinary),
        sa.Column("record", sa.Text, nullable=False, server_default="{}"),
    )
    op.execute("update evergreen_meta set schema_version = 4")
