"""What if: a log judged again under other policies, statefully. Pure; `retrial.Retrial` is the way in.

order       entries back in the order of the counters' numbers
trial       a recorded decision taken apart: what it saw, what it was answered
judge       the rules again, on counters that hold what the candidate let pass
fates       what becomes of a payout afterwards: reviewers, expiry, the bank
comparison  old and new outcomes, added up
"""
