"""Until when a test waits for what must come."""

DEADLINE_S = 60.0
"""An end for what hangs, not a measure of what works: a machine that is busy with other things is ten times slower."""
