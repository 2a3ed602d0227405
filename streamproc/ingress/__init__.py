"""Producers: outside bytes become events, in one append. Translation is pure."""
