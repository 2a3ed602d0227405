"""Arguments of the benchmark's processes. They are passed in the environment, since every user of the machine can read
a command line, where a store's password must not be."""

import json
import os

_VARIABLE = "BENCH_ARGUMENTS"


def environment(*arguments: str | int) -> dict[str, str]:
    """The environment for a process with these arguments.

    It has nothing of STREAMPROC_* or OTEL_*: the benchmark never touches a system that is in use.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("STREAMPROC_", "OTEL_"))
    }
    return kept | {_VARIABLE: json.dumps([str(argument) for argument in arguments])}


def given() -> list[str]:
    """The arguments of this process."""
    arguments: list[str] = json.loads(os.environ[_VARIABLE])
    return arguments
