"""streamproc: payout governance between agents and the bank, from one event log."""

__version__ = "0.1.0"
