"""Schema version 2: predictions by day on PostgreSQL, labels by a covering index on SQLite, how far segments have come.

Retention then drops whole tables, and reading a window looks a label up in the index alone. On PostgreSQL the rows are
copied, so while it runs the database needs room for the predictions twice.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _partition()
    else:
        op.create_index("ix_labels_id_label", "labels", ["id", "observed_at", "received_at", "label"])
        op.drop_index("ix_labels_id", "labels")
    op.create_table(
        "drained",
        sa.Column("segment", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("reached", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute("update evergreen_meta set schema_version = 2")


def _partition() -> None:
    for statement in (
        "lock table predictions in access exclusive mode",
        "alter table predictions rename to predictions_whole",
        "alter table predictions_whole rename constraint predictions_pkey to predictions_whole_pkey",
        "drop index ix_predictions_id",
        "drop index ix_predictions_at",
        "create table predictions (like predictions_whole) partition by range (day)",
    ):
        op.execute(statement)
    for (day,) in op.get_bind().exec_driver_sql("select distinct day from predictions_whole").all():
        op.execute(
            f"create table predictions_{int(day)} partition of predictions for values from ({day}) to ({day + 1})"
        )
    for statement in (
        "insert into predictions select * from predictions_whole",
        "drop table predictions_whole",
        "alter table predictions add primary key (day, segment, position)",
        "create index ix_predictions_id on predictions (id)",
        "create index ix_predictions_at on predictions (at)",
    ):
        op.execute(statement)
