"""HTTP routes: they append and query, never process."""
