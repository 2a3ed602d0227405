"""All wrong settings are refused at once, by variable name; secrets are never shown; `.env.example` is true."""

import fcntl
import itertools
import logging
import re
from contextlib import AsyncExitStack
from io import StringIO
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import msgspec
import pytest
from rich.console import Console

from streamproc import embedded, setting_urls, supervisor
from streamproc.archive.hosts import single_hosts
from streamproc.errors import ConfigError, JobFailed
from streamproc.log.nodes import Cluster
from streamproc.operate.stores import reachable
from streamproc.run_file import discover, is_held, write_run_file
from streamproc.setting_urls import SOCKET_PATH_MAX
from streamproc.settings import (
    PREFIX,
    VARIABLES,
    Role,
    Secret,
    Settings,
    load,
    require,
    secrets_of,
)

EXAMPLE = Path(__file__).parents[1] / ".env.example"


def given(**variables: str) -> Settings:
    return load({PREFIX + name: value for name, value in variables.items()})


def problems(**variables: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        given(**variables)
    return str(caught.value).splitlines()


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load({}) == Settings()


def test_an_empty_variable_counts_as_absent() -> None:
    assert given(PORT="", REDIS_URL=" ", TIMEZONE="") == Settings()


def test_every_wrong_variable_is_named_at_once_and_no_value_is_shown() -> None:
    found = problems(PORT="hunter2", POLL_INTERVAL="soon", TIMEZONE="Mars/Base", EXECUTE_AFTER="never")
    assert [line.split()[0] for line in found] == [
        f"{PREFIX}{name}" for name in ("PORT", "POLL_INTERVAL", "EXECUTE_AFTER", "TIMEZONE")
    ]
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("5m", 300.0),
        ("24h", 86_400.0),
        ("30d", 2_592_000.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("7", 7.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert given(POLL_INTERVAL=text).poll_interval_s == seconds


@pytest.mark.parametrize("text", ["0", "-1s", "10 s", "1w", "1e3", "nan", "inf", "١٠s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    assert problems(POLL_INTERVAL=text)[0].startswith("STREAMPROC_POLL_INTERVAL must be a duration")


def test_a_claim_time_in_which_a_worker_cannot_say_that_it_lives_is_refused() -> None:
    (problem,) = problems(CLAIM_IDLE="999ms")
    assert problem.startswith("STREAMPROC_CLAIM_IDLE must be")
    assert problem.endswith("at least 1 s")


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), ("0", 0), ("32mb", 32 << 20), ("4gb", 4 << 30), ("4GB", 4 << 30), ("33554432", 32 << 20)],
)
def test_the_limit_of_memory_is_in_the_units_of_redis_conf(text: str, size: int | None) -> None:
    assert given(REDIS_MAXMEMORY=text).redis_maxmemory == size


@pytest.mark.parametrize("text", ["31mb", "1", "-1", "4g", "4 gb", "50%", "1e9", "4tb", "١gb"])
def test_a_limit_of_memory_that_is_none_or_too_small_is_refused(text: str) -> None:
    (problem,) = problems(REDIS_MAXMEMORY=text)
    assert problem == (
        "STREAMPROC_REDIS_MAXMEMORY must be a size such as 512mb or 4gb, at least 32mb, or 0 for no limit"
    )


@pytest.mark.parametrize(
    ("count", "allowed"),
    [("0", False), ("1", True), ("64", True), ("65", False), ("1024", False), ("١", False)],
)
def test_partitions_are_1_to_64(count: str, allowed: bool) -> None:
    if allowed:
        assert given(PARTITIONS=count).partitions == int(count)
    else:
        assert problems(PARTITIONS=count) == ["STREAMPROC_PARTITIONS must be a whole number from 1 to 64"]


@pytest.mark.parametrize(
    ("name", "field", "text", "url"),
    [
        ("RAZORPAY_BASE_URL", "razorpay_base_url", "http://127.0.0.1:8090", "http://127.0.0.1:8090/v1"),
        ("RAZORPAY_BASE_URL", "razorpay_base_url", "http://127.0.0.1:8090/", "http://127.0.0.1:8090/v1"),
        ("RAZORPAY_BASE_URL", "razorpay_base_url", "https://bank.example/v2/", "https://bank.example/v2"),
        (
            "SAFE_BROWSING_URL",
            "safe_browsing_url",
            "https://a.example",
            "https://a.example/v4/threatMatches:find",
        ),
        ("GLEIF_URL", "gleif_url", "https://api.gleif.org", "https://api.gleif.org/api/v1"),
        ("NTFY_URL", "ntfy_url", "https://ntfy.example/", "https://ntfy.example"),
    ],
)
def test_a_url_without_a_path_gets_the_systems_own(name: str, field: str, text: str, url: str) -> None:
    assert getattr(given(**{name: text}), field) == url


@pytest.mark.parametrize(
    "text", ["bank.example", "ftp://bank.example", "https://", "https://u:p@bank.example", "https://a/?k=1"]
)
def test_what_is_no_plain_http_url_is_refused(text: str) -> None:
    assert problems(RAZORPAY_BASE_URL=text)[0].startswith("STREAMPROC_RAZORPAY_BASE_URL must")


@pytest.mark.parametrize(
    "text",
    [
        "redis://h:port",
        "redis://h:65536",
        "redis://h/name",
        "redis://h?db=0&colour=blue",
        "unix:///tmp/s?password=hunter2",
        f"unix:///{'s' * SOCKET_PATH_MAX}",
        "unix:///" + "%C3%BC" * (SOCKET_PATH_MAX // 2 + 1),
        "http://h",
    ],
)
def test_what_is_no_redis_url_is_refused_and_not_shown(text: str) -> None:
    (problem,) = problems(REDIS_URL=text)
    assert problem.startswith("STREAMPROC_REDIS_URL must") or "STREAMPROC_REDIS_URL may have" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("name", ["REDIS_URL", "POSTGRES_DSN", "GLEIF_URL", "CORS_ORIGINS"])
def test_what_cannot_even_be_taken_apart_is_not_shown(name: str) -> None:
    assert problems(**{name: "https://u:hunter\u2100@h/d"}) == [f"STREAMPROC_{name} is no URL"]


@pytest.mark.parametrize(
    "text",
    [
        "redis://h",
        "rediss://u:p@h:6380/15?ssl_ca_certs=/ca.pem",
        "unix:///tmp/s?db=1",
        f"unix:///{'s' * (SOCKET_PATH_MAX - 1)}",
        "redis://[::1]:6379/0",
    ],
)
def test_a_redis_url_may_have_a_database_and_certificates(text: str) -> None:
    assert given(REDIS_URL=text).redis_url == text


@pytest.mark.parametrize("text", ["postgres://u:hunter2@h:port/d", "postgres://u:hunter2@h:5432:1/d"])
def test_a_postgres_port_that_is_none_is_refused_and_not_shown(text: str) -> None:
    assert problems(POSTGRES_DSN=text) == [
        "STREAMPROC_POSTGRES_DSN must name its server as host:port, the port a number"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:///d?host=/tmp",
        "postgresql://u@%2Ftmp/d",
        "postgres://a:1,b:2/d",
        "postgres://u:p@[::1]/d",
        "postgres://u:p@[::1],b:2,[::2]:3/d",
    ],
)
def test_postgres_may_be_several_servers_or_a_socket(text: str) -> None:
    assert given(POSTGRES_DSN=text).postgres_dsn.reveal() == text


def test_any_of_several_hosts_may_be_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """`urlsplit` of Pythons since 2025, and of Debian 12, refuses it for all but the first one."""

    def strictly(url: str) -> SplitResult:
        found = urlsplit(url)
        before, bracket, _ = found.netloc.rpartition("@")[2].partition("[")
        if before and bracket:
            raise ValueError("Invalid IPv6 URL")
        return found

    monkeypatch.setattr(setting_urls, "urlsplit", strictly)
    nodes, servers = (
        "redis+cluster://u:hunter2@a:1,[::2]:2/0?protocol=3",
        "postgresql://u:hunter3@a:1,[::2]:2/d?k=v",
    )
    settings = given(REDIS_URL=nodes, POSTGRES_DSN=servers)
    assert {"hunter2", "hunter3"} <= {*secrets_of(settings)}
    assert "***@a:1,[::2]:2/0" in repr(settings)
    assert Cluster(settings.redis_url).seeds == (("a", 1), ("::2", 2))
    assert single_hosts(servers) == [
        "postgresql://u:hunter3@a:1/d?k=v",
        "postgresql://u:hunter3@[::2]:2/d?k=v",
    ]


def test_a_value_that_is_no_text_is_refused() -> None:
    assert problems(DATA_DIR="/tmp/\udcff") == ["STREAMPROC_DATA_DIR is not UTF-8 text"]


@pytest.mark.parametrize("text", ["c2VjcmV0", "hunter2", 43 * "A", 44 * "A" + "===="])
def test_a_signing_key_that_is_none_is_refused_and_not_shown(text: str) -> None:
    [problem] = problems(SIGNING_KEY=text)
    assert problem.startswith("STREAMPROC_SIGNING_KEY must be the base64 of 32 bytes")
    assert text not in problem


@pytest.mark.parametrize(
    "name", ["RAZORPAY_OAUTH_TOKEN", "SLACK_BOT_TOKEN", "NTFY_TOKEN", "CHECKPOINT_TOKEN", "TOKEN"]
)
@pytest.mark.parametrize("text", ["\u201chunter2\u201d", "hunter2\nhunter3", "hunt\x00er2"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(name: str, text: str) -> None:
    assert problems(**{name: text}) == [
        f"STREAMPROC_{name} must be one line of ASCII characters, because it is sent in a header"
    ]


@pytest.mark.parametrize("text", ["Sandbox0000001", "7878780080316316", "acc_", "acc_a b", "acc_\u0661"])
def test_an_account_that_is_not_named_as_in_its_webhooks_is_refused(text: str) -> None:
    assert problems(RAZORPAY_ACCOUNT_ID=text) == [
        "STREAMPROC_RAZORPAY_ACCOUNT_ID must be acc_ and letters or digits, as in the account's webhooks"
    ]


def test_a_token_of_metrics_that_could_be_guessed_is_refused_and_not_shown() -> None:
    assert problems(METRICS_TOKEN="fifteen-letters") == [
        "STREAMPROC_METRICS_TOKEN must have at least 16 characters"
    ]
    assert given(METRICS_TOKEN="sixteen-letters-").metrics_token.reveal() == "sixteen-letters-"


def test_checkpoints_go_to_a_file_or_a_plain_url() -> None:
    assert given(CHECKPOINT_TO="/var/log/notes.txt").checkpoint_to == "/var/log/notes.txt"
    assert (
        given(CHECKPOINT_TO="https://notary.example/notes/").checkpoint_to == "https://notary.example/notes"
    )
    for wrong in ("ftp://notary.example", "https://u:hunter2@notary.example"):
        [problem] = problems(CHECKPOINT_TO=wrong)
        assert problem.startswith("STREAMPROC_CHECKPOINT_TO must")
        assert "hunter2" not in problem


def test_earlier_public_keys_are_a_list_for_rotation() -> None:
    assert given(CHECKPOINT_KEYS="a+1+b, c+2+d,\n").checkpoint_keys == ("a+1+b", "c+2+d")


@pytest.mark.parametrize("text", ["https://mcp.example.com", "mcp.example.com/mcp", "a b", "h:port"])
def test_hosts_of_mcp_are_names_and_no_urls(text: str) -> None:
    assert given(MCP_HOSTS="mcp.example.com, [::1]:8081").mcp_hosts == ("mcp.example.com", "[::1]:8081")
    assert problems(MCP_HOSTS=text)[0].startswith("STREAMPROC_MCP_HOSTS must be hosts")


def test_webhook_secrets_are_a_list_for_rotation() -> None:
    assert given(RAZORPAY_WEBHOOK_SECRETS="new, old,").razorpay_webhook_secrets == (
        Secret("new"),
        Secret("old"),
    )


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    assert given(RAZORPAY_KEY_SECRET_FILE=str(tmp_path / "key")).razorpay_key_secret.reveal() == "s3cret"


def test_a_secret_given_twice_or_by_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "keep one" in problems(RAZORPAY_KEY_SECRET="a", RAZORPAY_KEY_SECRET_FILE="b")[0]
    missing = problems(SLACK_BOT_TOKEN_FILE=str(tmp_path / "none"))
    assert missing == [
        "STREAMPROC_SLACK_BOT_TOKEN cannot be read from the file in STREAMPROC_SLACK_BOT_TOKEN_FILE: "
        "No such file or directory"
    ]


def test_no_way_of_printing_settings_shows_a_secret() -> None:
    secrets = {variable.name: f"hunter{n}" for n, variable in enumerate(VARIABLES) if variable.secret}
    secrets["REDIS_URL"] = "redis://user:hunter2@127.0.0.1:6379/0"
    secrets["POSTGRES_DSN"] = "postgresql://user:hunter3@127.0.0.1/x"
    secrets["SIGNING_KEY"] = "hunter" + 37 * "A" + "="
    secrets["METRICS_TOKEN"] = "hunter of metrics"
    settings = given(**secrets)
    printed = StringIO()
    Console(file=printed, width=2000).print(settings)
    for text in (repr(settings), str(settings), f"{settings}", printed.getvalue()):
        assert "hunter" not in text
        assert "redis://***@127.0.0.1:6379/0" in text
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)


def test_an_unknown_variable_is_warned_of_with_the_one_that_was_meant(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        given(REDIS_ULR="redis://h")
    assert "STREAMPROC_REDIS_ULR" in caplog.text
    assert "STREAMPROC_REDIS_URL" in caplog.text


COMPLETE = {
    "REDIS_URL": "redis://h",
    "POSTGRES_DSN": "postgresql://h/x",
    "RAZORPAY_KEY_ID": "k",
    "RAZORPAY_KEY_SECRET": "s",
    "RAZORPAY_WEBHOOK_SECRETS": "w",
    "RAZORPAY_ACCOUNT_NUMBER": "1",
    "RAZORPAY_ACCOUNT_ID": "acc_1",
    "SAFE_BROWSING_KEY": "g",
}


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("serve", {"REDIS_URL", "RAZORPAY_WEBHOOK_SECRETS"}),
        (
            "worker",
            {"REDIS_URL", "POSTGRES_DSN", "RAZORPAY_KEY_ID", "RAZORPAY_KEY_SECRET", "SAFE_BROWSING_KEY"},
        ),
        (
            "poller",
            {
                "REDIS_URL",
                "RAZORPAY_KEY_ID",
                "RAZORPAY_KEY_SECRET",
                "RAZORPAY_ACCOUNT_NUMBER",
                "RAZORPAY_ACCOUNT_ID",
            },
        ),
        ("projector", {"REDIS_URL", "POSTGRES_DSN"}),
        ("migrate", {"POSTGRES_DSN"}),
    ],
)
def test_a_role_names_all_it_misses_and_nothing_else(role: Role, names: set[str]) -> None:
    require(given(**COMPLETE), role)
    with pytest.raises(ConfigError) as caught:
        require(Settings(), role)
    assert set(re.findall(r"STREAMPROC_(\w+)", str(caught.value))) == names


def test_a_worker_needs_postgres_only_for_the_barrier_that_asks_it() -> None:
    without = {name: value for name, value in COMPLETE.items() if name != "POSTGRES_DSN"}
    require(given(**without, EXECUTE_AFTER="synced"), "worker")
    with pytest.raises(ConfigError, match="STREAMPROC_POSTGRES_DSN"):
        require(given(**without, EXECUTE_AFTER="archived"), "worker")


@pytest.mark.parametrize(
    ("given_one", "missing"),
    [("SLACK_BOT_TOKEN", "SLACK_SIGNING_SECRET"), ("SLACK_SIGNING_SECRET", "SLACK_BOT_TOKEN")],
)
def test_slack_is_configured_whole_where_clicks_come_in_or_not_at_all(given_one: str, missing: str) -> None:
    without = {name: value for name, value in COMPLETE.items() if not name.startswith("SLACK_")}
    require(given(**without), "serve")
    require(given(**without, **{given_one: "x", missing: "y"}), "serve")
    with pytest.raises(ConfigError, match=f"STREAMPROC_{missing}"):
        require(given(**without, **{given_one: "x"}), "serve")


def test_a_running_system_is_found_but_what_was_set_stays(tmp_path: Path) -> None:
    settings = given(DATA_DIR=str(tmp_path), POSTGRES_DSN="postgresql://mine/x")
    write_run_file(
        settings, {f"{PREFIX}REDIS_URL": "redis://127.0.0.1:1", f"{PREFIX}POSTGRES_DSN": "postgresql://up/x"}
    )
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = discover(settings)
    assert (found.redis_url, found.postgres_dsn.reveal()) == ("redis://127.0.0.1:1", "postgresql://mine/x")
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_locked_once", [True, False], ids=["killed", "no lock"])
def test_the_run_file_of_a_dead_system_is_ignored_whoever_has_its_pid_now(
    tmp_path: Path, is_locked_once: bool
) -> None:
    settings = given(DATA_DIR=str(tmp_path))
    write_run_file(settings, {f"{PREFIX}REDIS_URL": "redis://127.0.0.1:1"})  # with the pid of this process
    if is_locked_once:
        (tmp_path / "up.lock").touch()
    assert discover(settings) == settings


async def test_who_locks_the_directory_is_not_taken_for_the_up_that_was_killed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starting `up`, and a command that starts the stores, as `recover` does."""
    settings = given(DATA_DIR=str(tmp_path))
    found = []

    def start(*_: object) -> None:
        found.append(discover(settings))
        raise JobFailed("no store is started here")

    monkeypatch.setattr(supervisor, "_refuse_busy_ports", lambda _: None)
    monkeypatch.setattr(supervisor, "_stores", start)
    monkeypatch.setattr(embedded, "valkey", start)
    for begin in (
        supervisor.up(settings, demo=False, env={}),
        AsyncExitStack().enter_async_context(reachable(settings)),
    ):
        write_run_file(settings, {f"{PREFIX}REDIS_URL": "redis://127.0.0.1:1"})
        with pytest.raises(JobFailed, match="no store is started here"):
            await begin
    assert found == [settings, settings]


def test_a_lock_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    """As another user's, on the same machine."""
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/data cannot be used: .*up\.lock: Not a directory"):
        is_held(tmp_path / "data")
    assert not is_held(tmp_path)


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        discover(given(DATA_DIR=str(tmp_path)))


def test_the_example_names_every_variable_in_order_with_its_default_and_one_line() -> None:
    lines = EXAMPLE.read_text().splitlines()
    found = [line.partition("=")[::2] for line in lines if line.startswith(PREFIX)]
    names, wanted = [name for name, _ in found], [PREFIX + variable.name for variable in VARIABLES]
    assert names == wanted, (
        f"other in .env.example than in settings.py: {sorted(set(names) ^ set(wanted)) or 'order'}"
    )
    assert load(dict(found)) == Settings()
    filled = {name for name, value in found if value}
    assert filled == {PREFIX + v.name for v in VARIABLES if getattr(Settings(), v.field)}
    for at, line in enumerate(lines):
        if line.startswith(PREFIX):
            assert lines[at - 1].startswith("# "), line
            assert not lines[at - 2].startswith("# "), line


def test_the_example_marks_exactly_the_secrets() -> None:
    lines = EXAMPLE.read_text().splitlines()
    marked = {
        line.partition("=")[0] for above, line in itertools.pairwise(lines) if above.endswith("(secret)")
    }
    assert marked == {PREFIX + variable.name for variable in VARIABLES if variable.secret}


def test_the_variables_fill_every_field_in_order() -> None:
    assert tuple(variable.field for variable in VARIABLES) == Settings.__struct_fields__


@pytest.mark.parametrize(
    "text", ["*", "console.example.com", "https://a.example/", "https://a.example/x", "ftp://a"]
)
def test_other_sites_are_named_by_their_exact_origin(text: str) -> None:
    with pytest.raises(ConfigError, match="STREAMPROC_CORS_ORIGINS must be origins"):
        given(CORS_ORIGINS=f"https://good.example,{text}")
    assert given(CORS_ORIGINS="https://a.example, http://localhost:3000").cors_origins == (
        "https://a.example",
        "http://localhost:3000",
    )
