"""`python -m streamproc`: the same commands as the installed `streamproc`, for children that know only their interpreter."""

from streamproc.cli import main

if __name__ == "__main__":
    main()
