"""How long a test waits for what must come."""

DEADLINE_S = 60.0
"""A limit for what hangs, not a measure of what works: a busy machine is ten times slower."""
