"""Time zones by the names of the tz database, which mean the same on every machine."""

import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+/-]{0,63}")
_OF_ONE_MACHINE = re.compile(r"localtime|posixrules|Factory|(posix|right|SystemV)/.*")
"""What stands beside the zones on some machines. `localtime` is each machine's own: of two workers each would count
days of its own, and `right/` counts leap seconds. Other machines have none of them."""


def time_zone(name: str, *, is_in_force: bool = False) -> str:
    """The name of a zone. Raises ValueError for anything else, but where a policy that is in force has it what this
    machine has besides: an earlier version took that, and its agent's payouts would become dead letters."""
    # The pattern is checked first, since ZoneInfo opens a file of that name.
    if _NAME.fullmatch(name) and (is_in_force or not _OF_ONE_MACHINE.fullmatch(name)):
        try:
            return ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise ValueError("must be a time zone like Asia/Kolkata")
