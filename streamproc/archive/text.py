"""Text from outside as Postgres can hold it. Pure."""

KEY_CHARS_MAX = 512
"""Ids come from outside; four bytes each still fit into a Postgres index row (2,704 bytes)."""


def text(value: str) -> str:
    """`value` without U+0000, which Postgres refuses: one such byte from outside must not stop the log."""
    return value.replace("\0", "\ufffd") if "\0" in value else value


def text_key(value: str) -> str:
    """`text`, short enough to be indexed."""
    return text(value[:KEY_CHARS_MAX])
