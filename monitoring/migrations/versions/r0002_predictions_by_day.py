"""Schema version 2: on PostgreSQL the predictions are partitioned by day, so that retention drops whole tables.

The rows are copied, so while it runs the database needs room for them twice. SQLite has no partitions: nothing changes.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _partition()
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
