"""Alembic's scripts. Each revision is a list of statements in a .sql file of the same name."""
