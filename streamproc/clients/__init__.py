"""Outside systems, one file each; the only package that imports httpx."""
