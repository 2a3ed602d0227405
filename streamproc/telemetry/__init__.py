"""Metrics and traces, and how they leave a process. Nothing here influences a decision."""
