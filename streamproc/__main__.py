"""`python -m streamproc`: the installed command, for children that know only their interpreter."""

from streamproc.cli import main

if __name__ == "__main__":
    main()
