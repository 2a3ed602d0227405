"""The archive, its checkpoint, and the first views."""

from alembic import op

from streamproc.archive.sql import statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    """One statement at a time: asyncpg prepares each, and a prepared statement holds only one."""
    for statement in statements("streamproc.archive.migrations", "v0001_archive_and_views.sql").values():
        op.execute(statement)
