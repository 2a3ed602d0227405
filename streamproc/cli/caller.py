"""For commands that call our own API: the token, the API's address, and small files."""

from pathlib import Path

from streamproc.domain.tokens import SECRET
from streamproc.errors import ConfigError, InputError
from streamproc.secret import header_secret
from streamproc.setting_urls import http_url
from streamproc.settings import Settings

FILE_BYTES_MAX = 65_536
"""Largest file: a beneficiary's has some hundred bytes, a token's 48."""


def token_of(settings: Settings, file: Path | None) -> str:
    """The token in the file of --token, or in the settings. Raises ConfigError if there is none.

    Raises InputError, which never repeats a token, if the file cannot be read, or no header can hold what it has.
    """
    if file is not None and SECRET.fullmatch(str(file)):  # errors must not repeat it: MCP clients log them
        raise InputError(
            "--token names a file that holds the token: what was given is a token, and was not used"
        )
    secret = _token_in(file) if file is not None else settings.token.reveal()
    if not secret:
        raise ConfigError("no token: give --token FILE, STREAMPROC_TOKEN or STREAMPROC_TOKEN_FILE")
    return secret


def _token_in(file: Path) -> str:
    try:
        return header_secret(small_text(file, "--token").strip()).reveal()
    except ValueError as problem:
        raise InputError(f"the token in {file} {problem}") from None


def api_url(settings: Settings, given: str = "") -> str:
    """The API at --url, or else where `serve` listens. Raises InputError if the URL cannot be an API's."""
    if given:
        try:
            return http_url()(given)
        except ValueError as problem:  # does not repeat the URL, which may have a password in it
            raise InputError(f"--url {problem}") from None
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def small_text(path: Path, option: str) -> str:
    """A file's text. Raises InputError, naming the option, if it cannot be read or is too long."""
    try:
        with path.open("rb") as file:
            found = file.read(FILE_BYTES_MAX + 1)
        if len(found) > FILE_BYTES_MAX:
            raise InputError(f"{option} {path} is over {FILE_BYTES_MAX} bytes")
        return found.decode()
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "not UTF-8 text"
        raise InputError(f"{option} {path} cannot be read: {why}") from None
