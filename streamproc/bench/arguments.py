"""Arguments of the bench's processes, by their environment: a command line, which every user of the machine can read,
is no place for a store's password."""

import json
import os
from collections.abc import Sequence

_VARIABLE = "BENCH_ARGUMENTS"


def handed(arguments: Sequence[str | int]) -> dict[str, str]:
    """The environment's part that hands them over."""
    return {_VARIABLE: json.dumps([str(argument) for argument in arguments])}


def given() -> list[str]:
    """Those of this process."""
    arguments: list[str] = json.loads(os.environ[_VARIABLE])
    return arguments
