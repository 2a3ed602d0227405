"""What commands start with: the settings and, for operators' commands, where the running system is."""

import logging
import os
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from streamproc.cli import output
from streamproc.cli.logline import log_to_stderr
from streamproc.errors import ConfigError
from streamproc.run_file import RUN_FILE, discover, holder, is_held
from streamproc.settings import PREFIX, Role, Settings, load, require, secrets_of

if TYPE_CHECKING:
    from streamproc.operate.site import Site

T = TypeVar("T")


def role_settings(role: Role) -> Settings:
    """The settings of a process that runs one role. Raises ConfigError naming what is missing."""
    # A role logs what it does; an operator's command only what is wrong.
    settings = settings_with_logging(logging.INFO)
    require(settings, role)
    return settings


def settings_with_logging(level: int) -> Settings:
    """The settings; from here on their secrets are masked in log lines."""
    log_to_stderr(level)
    settings = load(os.environ)
    log_to_stderr(level, [*secrets_of(settings), *_otlp_keys(os.environ)])
    return settings


def _otlp_keys(env: Mapping[str, str]) -> Iterator[str]:
    """The values of OTEL_EXPORTER_OTLP_HEADERS and the like: OpenTelemetry logs a header that it cannot read."""
    for name, raw in env.items():
        if name.startswith("OTEL_EXPORTER_OTLP_") and name.endswith("HEADERS"):
            for header in raw.split(","):
                value = re.split("[=:]", header, maxsplit=1)[-1].strip()
                yield from {value, unquote(value)}


def operator_settings() -> Settings:
    """The settings, completed from the `up` that runs on the same DATA_DIR. Raises ConfigError without a log."""
    settings = discover(load(os.environ))
    if not settings.redis_url:
        raise ConfigError(no_system(settings, f"{PREFIX}REDIS_URL"))
    return settings


def ask_site(
    question: "Callable[[Site], Coroutine[Any, Any, T]]",
    settings: Settings | None = None,
    *,
    run: Callable[[Coroutine[Any, Any, T]], T] = output.run,
) -> T:
    """Ask the running system one question, over connections of its own, and return the answer.

    `settings` None: those of `operator_settings`. `run` runs the coroutine to its end.
    """
    chosen = settings or operator_settings()
    from streamproc.operate.site import opened

    async def answer() -> T:
        async with opened(chosen) as site:
            return await question(site)

    return run(answer())


def archive_settings() -> Settings:
    """The settings of a command that reads the archive and needs no log. Raises ConfigError without an archive."""
    settings = discover(load(os.environ))
    if not settings.postgres_dsn:
        raise ConfigError(no_system(settings, f"{PREFIX}POSTGRES_DSN"))
    return settings


def no_system(settings: Settings, *variables: str) -> str:
    """Why no system was found: none runs, it is not there yet (its run file is written when it is ready), or its store
    was named to it alone. `variables`: those that would name the store."""
    where = settings.data_dir
    if not is_held(where):
        return f"no `streamproc up` runs on {where}; start one, or set {' or '.join((*variables, f'{PREFIX}DATA_DIR'))}"
    if variables and (where / RUN_FILE).exists():
        # It has only the stores that `up` started itself: the operator's own may be a secret.
        return f"the streamproc{holder(where)} on {where} has its own {' and '.join(variables)}: set that here too"
    return f"a streamproc{holder(where)} on {where} starts or stops; try again when it says that it is up"
