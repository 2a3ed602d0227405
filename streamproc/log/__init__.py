"""The log: one Redis stream per partition, its scripts, and the loop that consumes it."""
