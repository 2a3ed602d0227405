"""Times: those that people type (ISO 8601, or a time ago), and datetimes as whole numbers since 1970."""

from datetime import UTC, datetime, timedelta

from streamproc.domain.duration import duration_s
from streamproc.errors import InputError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso_moment(text: str) -> datetime | None:
    """A time in UTC, which is also its zone if it names none; None if it is not ISO 8601 of the years 1 to 9999."""
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def moment(option: str, text: str, now: datetime | None = None) -> datetime:
    """A time: ISO 8601 (UTC if it names no zone), or a time ago such as 90m, 24h or 30d. Raises InputError for
    anything else."""
    at = iso_moment(text)
    if (ago_s := duration_s(text)) is not None:
        try:
            at = (now or datetime.now(UTC)) - timedelta(seconds=ago_s)
        except OverflowError:
            raise InputError(f"{option} {text!r} is before the year 1") from None
    if at is None:
        raise InputError(f"{option} {text!r} is no time: ISO 8601, or a time ago such as 90m, 24h or 30d")
    return at


def us_of(at: datetime) -> int:
    """An aware datetime as µs since 1970; exact, where seconds as a float would be rounded."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def ms_of(at: datetime) -> int:
    """An aware datetime as ms since 1970."""
    return us_of(at) // 1_000
