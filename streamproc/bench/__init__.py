"""Benchmarks on servers of their own: how far the engine is from a hand-written worker that does the same job."""
