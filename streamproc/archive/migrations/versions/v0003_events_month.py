"""The one function with its owner's rights looks nothing up among its caller's own objects."""

from alembic import op

from streamproc.archive.sql import statements

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """One statement at a time: asyncpg prepares each, and a prepared statement holds only one."""
    for statement in statements("streamproc.archive.migrations", "v0003_events_month.sql").values():
        op.execute(statement)
