"""HTTP routes: they append to the log and query it; workers do the rest."""
