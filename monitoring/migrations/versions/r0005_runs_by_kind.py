"""Schema version 5: runs by their kind, so that what people and trainings did is found among all the checks."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_runs_kind", "runs", ["kind", "id"])
    op.execute("update evergreen_meta set schema_version = 5")
