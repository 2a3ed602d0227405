"""What if: judges a log again under other policies, statefully. Pure; start at `retrial.Retrial`.

order       puts entries into the order of the counters' numbers
trial       takes a recorded decision apart: what it saw, and what the counters answered
judge       applies the rules again, on counters that hold what the candidate let pass
fates       follows a payout afterwards: reviewers, expiry, the bank
comparison  adds up old and new outcomes
"""
