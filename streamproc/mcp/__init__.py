"""`streamproc mcp`: agents ask for payouts over the Model Context Protocol. A client of our own HTTP API, and no more.

It holds no store and no bank's key. What the caller's token may do over HTTP it may do here, and the API decides
(ADR 31). Nothing here approves, rejects, or changes a policy or a token: what a model clicks is no person's approval.
"""
