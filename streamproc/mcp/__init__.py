"""`streamproc mcp`: agents ask for payouts over the Model Context Protocol. It is only a client of our own HTTP API.

It has no store and no bank key. The caller's token may do here what it may do over HTTP, and the API decides that (ADR
31). Nothing here approves, rejects, or changes a policy or a token: a model's click is not a person's approval.
"""
