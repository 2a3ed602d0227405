"""The embedded stores keep their data, stop in time, and never outlive or share their directory."""

import asyncio
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from streamproc import embedded, ports, postgres_dir, processes
from streamproc.errors import ConfigError, JobFailed
from tests.ports import free_port

pytestmark = pytest.mark.embedded
WAIT_S = 60.0


@pytest.fixture
def data_dir(public_dir: Path) -> Path:
    directory = Path(tempfile.mkdtemp(dir=public_dir))
    directory.chmod(0o711)
    return directory


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


async def test_stores_that_start_at_the_same_time_never_choose_one_port(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of two programs on a machine: neither listens yet when the other looks for a free one."""
    drawn = (port for each in iter(free_port, None) for port in (each, each))
    monkeypatch.setattr(ports.random, "randrange", lambda *_: next(drawn))

    async def port_of(home: Path, both: asyncio.Barrier) -> int:
        async with embedded.valkey(home) as store, Redis.from_url(store.url) as client:
            assert await client.ping()
            await both.wait()
            return urlsplit(store.url).port or 0

    async with asyncio.timeout(WAIT_S):
        both = asyncio.Barrier(2)
        found = await asyncio.gather(*(port_of(data_dir / name, both) for name in ("one", "other")))
    assert len({*found}) == 2


def mapped(process: asyncio.subprocess.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


async def test_valkey_takes_jemalloc_where_the_machine_has_it(data_dir: Path) -> None:
    jemalloc = embedded.allocator()
    if jemalloc is None:
        pytest.skip("this machine has no libjemalloc.so.2")
    async with embedded.valkey(data_dir) as store:
        assert str(jemalloc.resolve()) in mapped(store.process)


async def test_valkey_runs_with_libcs_allocator_where_there_is_no_other(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_JEMALLOC_IN", (str(data_dir),))
    assert embedded.allocator() is None
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        assert await client.ping()
        assert "jemalloc" not in mapped(store.process)


async def test_a_jemalloc_that_cannot_be_loaded_is_told_and_left_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = data_dir / "libjemalloc.so.2"
    found.write_bytes(b"no library")
    monkeypatch.setattr(embedded, "_JEMALLOC_IN", (str(data_dir),))
    assert embedded.allocator() is None
    assert f"does not run with {found}" in caplog.text
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        assert await client.ping()


async def test_what_was_written_to_valkey_is_there_after_a_restart(data_dir: Path) -> None:
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        await client.xadd("log", {"e": "[]"})
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        assert await client.xlen("log") == 1


async def test_what_was_written_to_valkey_is_there_after_it_was_killed(data_dir: Path) -> None:
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        await client.set("paid", "no")
        store.process.kill()
        await store.process.wait()
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        assert await client.get("paid") == b"no"


async def test_valkey_is_set_as_the_log_needs_it(data_dir: Path) -> None:
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
    }
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url, decode_responses=True) as client:
        assert {name: (await client.config_get(name))[name] for name in wanted} == wanted


async def test_valkey_asks_for_a_password_that_only_its_owner_can_read(data_dir: Path) -> None:
    async with embedded.valkey(data_dir) as store:
        password = urlsplit(store.url).password
        assert password
        for url in (store.url.replace(f":{password}@", ""), store.url.replace(password, f"{password}x")):
            async with Redis.from_url(url) as stranger:
                with pytest.raises(AuthenticationError):
                    await stranger.ping()
        assert password.encode() not in Path(f"/proc/{store.process.pid}/cmdline").read_bytes()
        assert password not in store.log.read_text()
        holding = [
            path for path in data_dir.rglob("*") if path.is_file() and password in path.read_text("latin-1")
        ]
        assert sorted(path.name for path in holding) == ["valkey.conf", "valkey.password"]
        assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}


async def test_what_a_server_says_is_for_its_owner_only(data_dir: Path) -> None:
    for log in (data_dir / "postgres.log", data_dir / "valkey" / "valkey.log"):
        log.parent.mkdir(exist_ok=True)
        log.touch(mode=0o644)  # as earlier versions left it
    async with embedded.postgres(data_dir) as postgres, embedded.valkey(data_dir) as valkey:
        for store in (postgres, valkey):
            assert store.log.read_text()
            assert store.log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b'pass"word\nport 1'])
async def test_valkeys_password_stays_and_a_damaged_one_is_none(data_dir: Path, damaged: bytes) -> None:
    async with embedded.valkey(data_dir) as store:
        kept = urlsplit(store.url).password
    async with embedded.valkey(data_dir) as store:
        assert urlsplit(store.url).password == kept
    (data_dir / "valkey.password").write_bytes(damaged)
    async with embedded.valkey(data_dir) as store, Redis.from_url(store.url) as client:
        assert await client.ping()
        assert urlsplit(store.url).password not in ("", kept)


async def test_what_was_committed_to_postgres_is_there_after_a_restart(data_dir: Path) -> None:
    async with embedded.postgres(data_dir) as store:
        connection = await asyncpg.connect(store.url)
        await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        await connection.close()
    async with embedded.postgres(data_dir) as store:
        connection = await asyncpg.connect(store.url)
        assert await connection.fetchval("SELECT n FROM kept") == 7
        await connection.close()


async def test_postgres_starts_again_after_it_was_killed_and_its_number_given_to_another(
    data_dir: Path,
) -> None:
    async with embedded.postgres(data_dir) as store:
        store.process.kill()
        await store.process.wait()
    (pid_file,) = data_dir.glob("postgres/postmaster.pid")
    lines = pid_file.read_text().splitlines()
    bystander = await processes.start(
        ["sleep", "600"],
        env={"PATH": os.defpath},
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.DEVNULL,
        account=postgres_dir.find_postgres(data_dir).account,
    )
    try:
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        async with embedded.postgres(data_dir) as store:
            await (await asyncpg.connect(store.url)).close()
    finally:
        await processes.stop(bystander, signal.SIGKILL, WAIT_S)


async def test_postgres_refuses_a_wrong_password(data_dir: Path) -> None:
    async with embedded.postgres(data_dir) as store:
        head, _, tail = store.url.rpartition("@")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(f"{head}x@{tail}")
    assert (data_dir / "postgres.password").stat().st_mode & 0o777 == 0o600


async def test_what_the_environment_asks_of_other_postgres_servers_is_not_asked_of_ours(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGSSLCERT", "/no/such/file")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    async with embedded.postgres(data_dir) as store:
        connection = await asyncpg.connect(store.url)
        assert await connection.fetchval("SELECT current_database()") == "streamproc"
        await connection.close()


async def test_an_interrupted_first_start_is_begun_anew(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    async with embedded.postgres(data_dir) as store:
        await (await asyncpg.connect(store.url)).close()


async def test_a_cluster_whose_password_is_lost_is_not_overwritten(data_dir: Path) -> None:
    async with embedded.postgres(data_dir):
        pass
    password = data_dir / "postgres.password"
    kept = password.read_text()
    for spoil in (
        password.unlink,
        lambda: password.write_bytes(b""),
        lambda: password.write_bytes(b"\xff\xfe"),
    ):
        spoil()
        with pytest.raises(ConfigError, match=r"postgres\.password is missing or damaged"):
            async with embedded.postgres(data_dir):
                pytest.fail("it started")
    assert (data_dir / "postgres" / "PG_VERSION").exists()
    password.write_text(f"{kept}\n")  # restored by hand
    async with embedded.postgres(data_dir) as store:
        await (await asyncpg.connect(store.url)).close()


async def test_a_directory_in_use_is_refused_by_name(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_WAIT_S", 0.1)
    async with embedded.valkey(data_dir):
        with pytest.raises(ConfigError, match=str(data_dir)):
            async with embedded.valkey(data_dir):
                pytest.fail("two servers write one file")


@pytest.mark.parametrize("name", ["valkey", "postgres"])
async def test_a_file_where_the_data_belong_is_refused_by_name(data_dir: Path, name: str) -> None:
    (data_dir / name).touch()
    started = embedded.valkey(data_dir) if name == "valkey" else embedded.postgres(data_dir)
    with pytest.raises(
        ConfigError, match=f"STREAMPROC_DATA_DIR {data_dir} cannot be used: {data_dir / name}"
    ):
        async with started:
            pass


@pytest.mark.parametrize(
    "name", ["valkey.lock", "valkey.password", "valkey/valkey.conf", "valkey/valkey.log"]
)
async def test_a_directory_where_valkeys_file_belongs_is_refused_by_name(data_dir: Path, name: str) -> None:
    (data_dir / name / "below").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"cannot be used: {data_dir / name}: Is a directory"):
        async with embedded.valkey(data_dir):
            pass


@pytest.mark.parametrize("name", ["postgres.lock", "postgres.log", "postgres.password", "postgres.pwfile"])
async def test_a_directory_where_postgres_file_belongs_is_refused_by_name(data_dir: Path, name: str) -> None:
    (data_dir / name / "below").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"cannot be used: {data_dir / name}: Is a directory"):
        async with embedded.postgres(data_dir):
            pass


async def test_a_port_in_use_is_refused_by_number(data_dir: Path) -> None:
    async with embedded.valkey(data_dir) as store:
        port = urlsplit(store.url).port
        assert port is not None
        for server in (embedded.valkey, embedded.postgres):
            with pytest.raises(ConfigError, match=str(port)):
                async with server(data_dir / "other", port=port):
                    pytest.fail("a stranger's server was taken for ours")


async def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    (data_dir / "valkey" / "appendonlydir" / "appendonly.aof.manifest").mkdir(parents=True)
    with pytest.raises(JobFailed, match=r"Valkey ended while starting: .*AOF"):
        async with embedded.valkey(data_dir):
            pytest.fail("it started on a damaged log")


@pytest.fixture
def private_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
async def test_a_user_without_a_name_is_told_what_to_do_before_postgres_is_made(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs as any uid: initdb gave up, and did not say what helps."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with monkeypatch.context() as there:
        there.setattr(pwd, "getpwuid", unknown)
        with pytest.raises(ConfigError, match=r"uid 12345, which has no user name.*STREAMPROC_POSTGRES_DSN"):
            async with embedded.postgres(data_dir):
                pytest.fail("it started")
    assert not (data_dir / "postgres.new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
async def test_root_puts_the_cluster_where_its_user_can_reach_it_and_says_where(
    private_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_dir, "ROOTS_HOME", data_dir)
    async with embedded.postgres(private_dir) as store:
        await (await asyncpg.connect(store.url)).close()
    placed = Path((private_dir / "postgres.is-in").read_text().strip())
    assert placed.is_relative_to(data_dir)
    assert placed.stat().st_uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
async def test_programs_that_the_user_cannot_reach_are_copied_and_run(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = data_dir / "copies"
    monkeypatch.setattr(postgres_dir, "ROOTS_HOME", copies)
    reaches = postgres_dir.reaches
    monkeypatch.setattr(
        postgres_dir, "reaches", lambda account, path: path.name != "bin" and reaches(account, path)
    )
    async with embedded.postgres(data_dir) as store:
        await (await asyncpg.connect(store.url)).close()
        assert Path(f"/proc/{store.process.pid}/exe").resolve().is_relative_to(copies)


PARENT = """
    import asyncio, sys
    from pathlib import Path
    from streamproc import embedded

    async def main() -> None:
        here = Path(sys.argv[1])
        async with embedded.valkey(here) as valkey, embedded.postgres(here) as postgres:
            print(valkey.process.pid, postgres.process.pid, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_the_servers_end_when_their_parent_is_killed_and_start_again(data_dir: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in (await asyncio.to_thread(parent.stdout.readline)).split()]
    parent.kill()
    parent.wait()
    # Started at once, while the old servers are perhaps still stopping.
    async with embedded.valkey(data_dir) as valkey, embedded.postgres(data_dir) as postgres:
        assert all(gone(pid) for pid in pids)
        async with Redis.from_url(valkey.url) as client:
            assert await client.ping()
        await (await asyncpg.connect(postgres.url)).close()
