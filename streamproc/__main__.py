"""The installed command, and `python -m streamproc` for children that know only their interpreter. Imports next to
nothing before Ctrl-C is taken care of: the command line takes a third of a second to import."""

import os
import signal
import sys

STOPPED = 128 + signal.SIGINT
"""The exit code of what Ctrl-C ended, as a shell says it."""


def main() -> None:
    """Run the command line. Ctrl-C while that is being imported ends the process at once: nothing was begun."""
    # Else whoever started us has Ctrl-C ignored.
    ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ends:
        signal.signal(signal.SIGINT, lambda *_: os._exit(STOPPED))
    from streamproc.cli import main as run

    try:
        if ends:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # before the command line listens to it
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
