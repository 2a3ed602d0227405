"""Producers: outside bytes become events and go through one door. Translation is pure."""
