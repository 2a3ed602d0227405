"""What operators ask of a running system, as functions: the command line shows the answers."""
