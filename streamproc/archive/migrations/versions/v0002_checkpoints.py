"""Signed checkpoints; the views are no longer the schema's but each projection's own."""

from alembic import op

from streamproc.archive.sql import statements

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """One statement at a time: asyncpg prepares each, and a prepared statement holds only one."""
    for statement in statements("streamproc.archive.migrations", "v0002_checkpoints.sql").values():
        op.execute(statement)
