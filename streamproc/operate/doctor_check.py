"""One line of `doctor`."""

from typing import Literal, TypeAlias

from msgspec import Struct

Status: TypeAlias = Literal["ok", "bad", "note"]


class Check(Struct, frozen=True):
    """What was found of one thing. `note`: a choice that an operator may make and should know of; `todo`: what to
    do."""

    name: str
    status: Status
    detail: str
    todo: str = ""
