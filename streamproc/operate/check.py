"""What `doctor` says of one thing."""

from typing import Literal, TypeAlias

from msgspec import Struct

Status: TypeAlias = Literal["ok", "bad", "note"]


class Check(Struct, frozen=True):
    """One line. `note` is a choice that an operator may make and should know of; `todo` says what to do."""

    name: str
    status: Status
    detail: str
    todo: str = ""
