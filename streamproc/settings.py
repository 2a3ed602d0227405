"""The environment, read once, checked whole, and frozen.

Every variable starts with `STREAMPROC_`. A secret may instead be named by a file: `STREAMPROC_X_FILE` holds the path
of a file whose content is the value of `STREAMPROC_X`. An empty variable counts as absent, because compose files
and CI systems write absent values that way. All problems are reported together, by variable name and never with the
value: a wrong one may be a secret pasted into the wrong place.
"""

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlunsplit

import msgspec

from streamproc.domain.duration import exact_duration_s
from streamproc.domain.plain import is_text
from streamproc.domain.time_zone import time_zone
from streamproc.errors import ConfigError
from streamproc.secret import Secret as Secret
from streamproc.secret import header_secret, seed_of
from streamproc.setting_urls import (
    dsn,
    file_or_url,
    host_names,
    http_url,
    origins,
    parts_of,
    redis_url,
    words,
)

PREFIX = "STREAMPROC_"
MAXMEMORY_MIN = 32 << 20  # an empty log with its scripts takes 2 MB, a payout 3 kB
PARTITIONS_MAX = 64  # no more were run; each is a connection to Postgres and three consumers in each worker
WORKERS_MAX = 64  # processes on one machine; beyond it the machine, not the setting, is the limit
CHECKPOINT_ENTRIES_MAX = 10_000_000  # entries; a notary that is killed hashes as many again
CLAIM_IDLE_MIN_S = 1.0  # seconds; a live worker renews its claims up to five times a second
CALLS_PER_S_MAX = 1000  # calls a second; the bank advises 5 to 10, a simulator takes more
API_RATE_MAX = 60_000  # requests a minute; each takes some 10 bytes in Redis, in the token's list of times
BODY_LIMIT_MAX = 16 * 1024 * 1024  # bytes; a webhook is held in memory as a whole to check its signature
METRICS_AGENTS_MAX = 100  # budget windows; each is two series
METRICS_TOKEN_CHARS_MIN = 16  # /metrics has no rate limit: so many random ones are not guessed

ExecuteAfter = Literal["archived", "replicated", "synced"]
Role = Literal["serve", "worker", "poller", "projector", "migrate"]

log = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that may differ between two installations. Names ending in `_s` are seconds.

    `.env.example` says in one line what each variable means; it has the same order.
    """

    redis_url: str = ""
    postgres_dsn: Secret = Secret()
    partitions: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path = Path("./data")
    razorpay_key_id: str = ""
    razorpay_key_secret: Secret = Secret()
    razorpay_oauth_token: Secret = Secret()
    razorpay_oauth_client_id: str = ""
    razorpay_oauth_client_secret: Secret = Secret()
    razorpay_oauth_refresh_token: Secret = Secret()
    razorpay_auth_url: str = "https://auth.razorpay.com"
    razorpay_webhook_secrets: tuple[Secret, ...] = ()
    razorpay_account_number: str = ""
    razorpay_account_id: str = ""
    razorpay_base_url: str = "https://api.razorpay.com/v1"
    razorpay_calls_per_s: int = 8
    poll_interval_s: float = 10.0
    reconcile_interval_s: float = 86_400.0
    execute_after: ExecuteAfter = "archived"
    safe_browsing_key: Secret = Secret()
    safe_browsing_url: str = "https://safebrowsing.googleapis.com/v4/threatMatches:find"
    gleif_url: str = ""
    slack_bot_token: Secret = Secret()
    slack_signing_secret: Secret = Secret()
    slack_channel_id: str = ""
    slack_base_url: str = "https://slack.com/api"
    ntfy_url: str = "https://ntfy.sh"
    ntfy_topic: str = ""
    ntfy_token: Secret = Secret()
    public_url: str = ""
    timezone: str = "Asia/Kolkata"
    retention_s: float = 30 * 86_400.0
    trim_interval_s: float = 300.0
    signing_key: Secret = Secret()
    checkpoint_keys: tuple[str, ...] = ()
    checkpoint_to: str = ""
    checkpoint_token: Secret = Secret()
    checkpoint_entries: int = 10_000
    checkpoint_interval_s: float = 60.0
    claim_idle_s: float = 60.0
    drain_s: float = 20.0
    workers: int = 2
    redis_maxmemory: int | None = None
    sandbox_port: int = 8090
    body_limit: int = 262_144
    api_rate: int = 600
    cors_origins: tuple[str, ...] = ()
    token: Secret = Secret()
    metrics_token: Secret = Secret()
    metrics_port: int = 0
    metrics_agents: int = 0
    mcp_port: int = 8081
    mcp_hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The settings as they may be shown: secrets as set or empty, the Redis URL without its password."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return list((shown | {"redis_url": _without_password(self.redis_url)}).items())


def _without_password(url: str) -> str:
    parts = parts_of(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


# --- one parser per kind of value: returns the value, or raises ValueError that says what is allowed ---


def _text(raw: str) -> str:
    return raw


def _secrets(raw: str) -> tuple[Secret, ...]:
    return tuple(Secret(part.strip()) for part in raw.replace("\n", ",").split(",") if part.strip())


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", raw) or not low <= int(raw) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(raw)

    return parse


def _duration(low_s: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        seconds = exact_duration_s(raw)
        if seconds is None or seconds < low_s:
            raise ValueError(f"must be a duration such as 10s, 5m, 24h or 30d, at least {low_s:g} s")
        return seconds

    return parse


def _maxmemory(raw: str) -> int:
    """Bytes, in the units of redis.conf."""
    found = re.fullmatch(r"([0-9]{1,12})(|mb|gb)", raw.lower())
    size = int(found[1]) * {"": 1, "mb": 1 << 20, "gb": 1 << 30}[found[2]] if found else -1
    if size != 0 and size < MAXMEMORY_MIN:
        raise ValueError("must be a size such as 512mb or 4gb, at least 32mb, or 0 for no limit")
    return size


def _execute_after(raw: str) -> str:
    if raw not in ("archived", "replicated", "synced"):
        raise ValueError("must be archived, replicated or synced")
    return raw


def _account_id(raw: str) -> str:
    # The bank's pages show it without acc_. Then what the poller finds would be of another account than what webhooks
    # report, and the account's freezes and limits would not hold for it.
    if not re.fullmatch(r"acc_[A-Za-z0-9]{1,60}", raw):
        raise ValueError("must be acc_ and letters or digits, as in the account's webhooks")
    return raw


def _signing_key(raw: str) -> Secret:
    seed_of(raw)
    return Secret(raw)


def _metrics_token(raw: str) -> Secret:
    if len(raw) < METRICS_TOKEN_CHARS_MIN:
        raise ValueError(f"must have at least {METRICS_TOKEN_CHARS_MIN} characters")
    return Secret(raw)


class Variable(NamedTuple):
    """One environment variable: its name without the prefix, the field it fills, how it is read."""

    name: str
    field: str
    parse: Callable[[str], object]
    secret: bool = False


VARIABLES: tuple[Variable, ...] = (
    Variable("REDIS_URL", "redis_url", redis_url, secret=True),
    Variable("POSTGRES_DSN", "postgres_dsn", dsn, secret=True),
    Variable("PARTITIONS", "partitions", _whole(1, PARTITIONS_MAX)),
    Variable("HOST", "host", _text),
    Variable("PORT", "port", _whole(1, 65_535)),
    Variable("DATA_DIR", "data_dir", Path),
    Variable("RAZORPAY_KEY_ID", "razorpay_key_id", _text),
    Variable("RAZORPAY_KEY_SECRET", "razorpay_key_secret", Secret, secret=True),
    Variable("RAZORPAY_OAUTH_TOKEN", "razorpay_oauth_token", header_secret, secret=True),
    Variable("RAZORPAY_OAUTH_CLIENT_ID", "razorpay_oauth_client_id", _text),
    Variable("RAZORPAY_OAUTH_CLIENT_SECRET", "razorpay_oauth_client_secret", Secret, secret=True),
    Variable("RAZORPAY_OAUTH_REFRESH_TOKEN", "razorpay_oauth_refresh_token", Secret, secret=True),
    Variable("RAZORPAY_AUTH_URL", "razorpay_auth_url", http_url()),
    Variable("RAZORPAY_WEBHOOK_SECRETS", "razorpay_webhook_secrets", _secrets, secret=True),
    Variable("RAZORPAY_ACCOUNT_NUMBER", "razorpay_account_number", _text),
    Variable("RAZORPAY_ACCOUNT_ID", "razorpay_account_id", _account_id),
    Variable("RAZORPAY_BASE_URL", "razorpay_base_url", http_url("/v1")),
    Variable("RAZORPAY_CALLS_PER_S", "razorpay_calls_per_s", _whole(1, CALLS_PER_S_MAX)),
    Variable("POLL_INTERVAL", "poll_interval_s", _duration(0.1)),
    Variable("RECONCILE_INTERVAL", "reconcile_interval_s", _duration(1.0)),
    Variable("EXECUTE_AFTER", "execute_after", _execute_after),
    Variable("SAFE_BROWSING_KEY", "safe_browsing_key", Secret, secret=True),
    Variable("SAFE_BROWSING_URL", "safe_browsing_url", http_url("/v4/threatMatches:find")),
    Variable("GLEIF_URL", "gleif_url", http_url("/api/v1")),
    Variable("SLACK_BOT_TOKEN", "slack_bot_token", header_secret, secret=True),
    Variable("SLACK_SIGNING_SECRET", "slack_signing_secret", Secret, secret=True),
    Variable("SLACK_CHANNEL_ID", "slack_channel_id", _text),
    Variable("SLACK_BASE_URL", "slack_base_url", http_url()),
    Variable("NTFY_URL", "ntfy_url", http_url()),
    Variable("NTFY_TOPIC", "ntfy_topic", _text),
    Variable("NTFY_TOKEN", "ntfy_token", header_secret, secret=True),
    Variable("PUBLIC_URL", "public_url", http_url()),
    Variable("TIMEZONE", "timezone", time_zone),
    Variable("RETENTION", "retention_s", _duration(60.0)),
    Variable("TRIM_INTERVAL", "trim_interval_s", _duration(0.1)),
    Variable("SIGNING_KEY", "signing_key", _signing_key, secret=True),
    Variable("CHECKPOINT_KEYS", "checkpoint_keys", words),
    Variable("CHECKPOINT_TO", "checkpoint_to", file_or_url),
    Variable("CHECKPOINT_TOKEN", "checkpoint_token", header_secret, secret=True),
    Variable("CHECKPOINT_ENTRIES", "checkpoint_entries", _whole(1, CHECKPOINT_ENTRIES_MAX)),
    Variable("CHECKPOINT_INTERVAL", "checkpoint_interval_s", _duration(0.1)),
    Variable("CLAIM_IDLE", "claim_idle_s", _duration(CLAIM_IDLE_MIN_S)),
    Variable("DRAIN", "drain_s", _duration(0.1)),
    Variable("WORKERS", "workers", _whole(1, WORKERS_MAX)),
    Variable("REDIS_MAXMEMORY", "redis_maxmemory", _maxmemory),
    Variable("SANDBOX_PORT", "sandbox_port", _whole(1, 65_535)),
    Variable("BODY_LIMIT", "body_limit", _whole(1024, BODY_LIMIT_MAX)),
    Variable("API_RATE", "api_rate", _whole(0, API_RATE_MAX)),
    Variable("CORS_ORIGINS", "cors_origins", origins),
    Variable("TOKEN", "token", header_secret, secret=True),
    Variable("METRICS_TOKEN", "metrics_token", _metrics_token, secret=True),
    Variable("METRICS_PORT", "metrics_port", _whole(0, 65_535)),
    Variable("METRICS_AGENTS", "metrics_agents", _whole(0, METRICS_AGENTS_MAX)),
    Variable("MCP_PORT", "mcp_port", _whole(1, 65_535)),
    Variable("MCP_HOSTS", "mcp_hosts", host_names),
)


def load(env: Mapping[str, str]) -> Settings:
    """Read *env*; raise ConfigError with one line per wrong variable.

    An unknown `STREAMPROC_` variable gives only a warning: the file may be for a newer version.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for variable in VARIABLES:
        try:
            raw = _raw(variable, env)
            if raw:
                values[variable.field] = variable.parse(raw)
        except ValueError as problem:
            problems.append(f"{PREFIX}{variable.name} {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    _warn_of_unknown(env)
    return Settings(**values)


def secrets_of(settings: Settings) -> list[str]:
    """Every value that must be masked, the Redis URL's password too."""
    found = [
        parts_of(settings.redis_url).password or "",
        parts_of(settings.postgres_dsn.reveal()).password or "",
    ]
    for value in (getattr(settings, name) for name in settings.__struct_fields__):
        found += [
            one.reveal()
            for one in (value if isinstance(value, tuple) else (value,))
            if isinstance(one, Secret)
        ]
    return [secret for secret in found if secret]


def _raw(variable: Variable, env: Mapping[str, str]) -> str:
    raw = env.get(PREFIX + variable.name, "").strip()
    if not is_text(raw):
        raise ValueError("is not UTF-8 text")
    file = env.get(f"{PREFIX}{variable.name}_FILE", "").strip() if variable.secret else ""
    if not file:
        return raw
    if raw:
        raise ValueError(f"is set, and {PREFIX}{variable.name}_FILE too: keep one of them")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "not UTF-8 text"
        raise ValueError(f"cannot be read from the file in {PREFIX}{variable.name}_FILE: {why}") from problem


def _warn_of_unknown(env: Mapping[str, str]) -> None:
    known = {PREFIX + v.name for v in VARIABLES} | {f"{PREFIX}{v.name}_FILE" for v in VARIABLES if v.secret}
    for name in sorted(name for name in env if name.startswith(PREFIX) and name not in known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        log.warning("%s is not a setting of this version and is ignored%s", name, hint)


# --- what each role cannot start without, and why some fields are needed only sometimes ---

_NEEDS: dict[Role, tuple[str, ...]] = {
    "serve": ("redis_url", "razorpay_webhook_secrets"),
    "worker": ("redis_url", "razorpay_key_id", "razorpay_key_secret", "safe_browsing_key"),
    "poller": ("redis_url", "razorpay_key_id", "razorpay_key_secret", "razorpay_account_number"),
    "projector": ("redis_url", "postgres_dsn"),
    "migrate": ("postgres_dsn",),
}


def require(settings: Settings, role: Role) -> None:
    """Raise ConfigError naming every variable that *role* needs and does not have."""
    needed = list(_NEEDS[role])
    if role == "worker" and settings.execute_after == "archived":
        needed.append("postgres_dsn")  # the barrier asks the archive before money moves
    if role == "poller":
        # Without it, payouts from poller and webhook would be of different accounts, with other limits and freezes.
        needed.append("razorpay_account_id")
    if role == "worker" and settings.razorpay_oauth_refresh_token:
        # Renewing the token takes both.
        needed += [
            "razorpay_oauth_client_id",
            "razorpay_oauth_client_secret",
        ]
    if role == "worker" and settings.slack_bot_token:
        needed.append("slack_channel_id")
    if role == "serve" and (settings.slack_signing_secret or settings.slack_bot_token):
        # Else buttons that nobody listens to, or rejections whose reason cannot be asked for.
        needed += ["slack_bot_token", "slack_signing_secret"]
    missing = [f"{PREFIX}{v.name}" for v in VARIABLES if v.field in needed and not getattr(settings, v.field)]
    if missing:
        raise ConfigError(f"`{role}` needs {', '.join(missing)}; .env.example says what each one is")
