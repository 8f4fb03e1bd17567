"""Schema version 6: the caller's trace beside each prediction."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("predictions", sa.Column("trace_id", sa.Text))
    op.execute("update evergreen_meta set schema_version = 6")
