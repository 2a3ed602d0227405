"""The demo: policies, and scenarios that are played against a running system. `streamproc up --demo` runs them."""
