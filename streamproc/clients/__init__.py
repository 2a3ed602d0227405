"""Outside systems, one file each; the only package that imports httpx."""

from streamproc.absent import absent

with absent("httpx._main"):  # its command line
    import httpx  # noqa: F401  # before all modules here, which then find it imported
