"""One line of `doctor`."""

from typing import Literal, TypeAlias

from msgspec import Struct

Status: TypeAlias = Literal["ok", "bad", "note"]


ITS_OWN_TROUBLE = (
    "it does not answer, or with an error of its own: see its status page, and the URL in our settings; work waits"
    " and goes on by itself"
)
"""What to do about a system that did not say that our keys are wrong."""


class Check(Struct, frozen=True):
    """What was found of one thing. `note`: a choice that an operator may make and should know of; `todo`: what to
    do."""

    name: str
    status: Status
    detail: str
    todo: str = ""


def missing(name: str, variable: str) -> list[Check]:
    """The line of a dependency whose setting is absent."""
    return [Check(name, "bad", f"{variable} is not set", f"set {variable}")]
