"""The verifiable bundle: archived entries, proofs that each is under a signed checkpoint, and a program for that."""
