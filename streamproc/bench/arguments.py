"""Arguments of the benchmark's processes. They are passed in the environment, since every user of the machine can read
a command line, where a store's password must not be."""

import json
import os
from collections.abc import Sequence

_VARIABLE = "BENCH_ARGUMENTS"


def handed(arguments: Sequence[str | int]) -> dict[str, str]:
    """The environment variable that passes these arguments on."""
    return {_VARIABLE: json.dumps([str(argument) for argument in arguments])}


def given() -> list[str]:
    """The arguments of this process."""
    arguments: list[str] = json.loads(os.environ[_VARIABLE])
    return arguments
