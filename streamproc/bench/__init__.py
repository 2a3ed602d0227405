"""Benchmarks on servers that they start themselves: the engine beside a hand-written worker, and more."""
