"""Schema version 7: tokens, keys, and the homes of the deployment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tokens",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("home", sa.Text, nullable=False, server_default=""),
        sa.Column("revoked_at", sa.Double),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("mark", sa.Text, nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("wrapped_by", sa.Text, nullable=False, server_default=""),
    )
    op.create_table(
        "homes",
        sa.Column("home", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("release", sa.Text, nullable=False),
        sa.Column("serving", sa.Integer),
        sa.Column("why_not_ready", sa.Text, nullable=False),
        sa.Column("spool_bytes", sa.BigInteger, nullable=False),
        sa.Column("lag_s", sa.Double, nullable=False),
        sa.Column("ahead_s", sa.Double, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("gone_at", sa.Double),
    )
    op.execute("update evergreen_meta set schema_version = 7")
