"""Postgres is restored from a backup that lacks what was archived last, as docs/reliability.md says ("Backups")."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from streamproc import embedded
from streamproc.postgres_dir import find_postgres
from tests.bank import free_port, until
from tests.databases import copy_of
from tests.journeys.system import System, answers, kinds, running_system
from tests.journeys.test_gateway import ask, ask_once, of_reference, token
from tests.journeys.truth import assert_budgets_agree, assert_one_story, assert_records_agree
from tests.projections.histories import fetch
from tests.restartable import restartable

pytestmark = pytest.mark.timeout(400)
TOOL_MAX_S = 120.0
ROLES = "CREATE ROLE streamproc_reader NOLOGIN; CREATE ROLE streamproc_projector NOLOGIN"
POLICIES = """
policies:
  bot: {daily_limit: 1_000_000}
"""


@asynccontextmanager
async def paid_after_a_backup(redis_url: str, dsn: str, home: Path) -> AsyncIterator[tuple[System, str, str]]:
    """A stopped system, whose Postgres is the restored one; the secret of its agent; and an intent that was asked for
    (key `after`), paid, archived and signed after the backup."""
    home.mkdir()
    home.chmod(0o711)
    async with (
        embedded.postgres(home, port=free_port(), durable=False) as other,
        running_system(redis_url, dsn, checkpoint_interval="200ms") as system,
    ):
        await system.apply(POLICIES)
        secret = await token(system, "bot")
        await system.reaches((await ask(system, secret, "before"))["payout"], "processed")
        await _tool(home, "pg_dump", "--format=custom", f"--file={home / 'archive.dump'}", dsn)
        late = (await ask(system, secret, "after"))["payout"]
        await system.reaches(late, "processed")
        await system.settled()
        await until(lambda: _signed(dsn), what="all that is archived is signed")
        assert not any((await system.stop()).values())
        await _tool(home, "psql", other.url, "-c", ROLES)
        await _tool(
            home, "pg_restore", "--exit-on-error", f"--dbname={other.url}", str(home / "archive.dump")
        )
        assert await _seq(other.url) < await _seq(dsn)
        system.env["STREAMPROC_POSTGRES_DSN"] = other.url
        system.pool.terminate()
        system.pool = await asyncpg.create_pool(
            other.url, min_size=0, max_size=4, timeout=3.0, command_timeout=10.0
        )
        yield system, secret, late


async def test_a_restored_archive_gets_from_the_log_what_the_backup_lacks(
    redis_url: str, postgres: str, public_dir: Path
) -> None:
    async with paid_after_a_backup(redis_url, postgres, public_dir / "restored") as (system, secret, late):
        await _start(system, "serve", "projector", "worker-1")
        assert (await _asked(system, secret, "after"))["state"] == "processed"
        await system.reaches((await _asked(system, secret, "again"))["payout"], "processed")
        await system.settled()
        assert (await system.reaches(late, "processed")).decision == "APPROVED"
        assert len(await of_reference(system, late)) == 1
        assert await system.dead() == 0
        await assert_one_story(system)
        await assert_records_agree(system)
        await assert_budgets_agree(system)
        await until(lambda: _verified(system), what="what was signed is what is archived")
        status, said, problem = await system.cli("replay", "--verify")
        assert status == 0, said + problem


async def test_where_redis_is_lost_too_nothing_is_paid_again_and_the_loss_stays_visible(
    redis_url: str, postgres: str, public_dir: Path
) -> None:
    home = public_dir / "restored-alone"
    async with paid_after_a_backup(redis_url, postgres, home) as (system, secret, late):
        await system.redis.flushall()
        status, _, problem = await system.cli("recover", "--yes")
        assert status == 0, problem
        assert "what people decided and wrote after that" in problem
        await _start(system, "serve", "projector", "worker-1", "poller")

        await system.settled()

        # The agent asks again: the bank has paid this, it is not paid a second time, nor is another key proposed.
        refused = await ask_once(system, secret, "after")
        assert (refused.status_code, "A person must look at it" in refused.text) == (409, True)
        assert len(await of_reference(system, late)) == 1
        assert kinds(await system.story(late))["governance.bypassed"] == 1
        await system.reaches((await _asked(system, secret, "new"))["payout"], "processed")

        # Signed statements of what is lost are outside: nobody can pass the shorter history off as the whole one.
        async def contradicted() -> bool:
            status, _, said = await system.cli("audit", "verify")
            return status == 1 and "BROKEN" in said

        await until(contradicted, what="the checkpoints outside contradict the archive")
        assert await system.drain("projector") == 0
        system.env["STREAMPROC_CHECKPOINT_TO"] = str(home / "checkpoints-after.txt")
        await system.start("projector")
        await until(lambda: _verified(system), what="what is archived is signed to a file of its own")


async def test_where_both_are_set_back_to_one_moment_nothing_is_paid_again(
    public_dir: Path, postgres_server: str, postgres: str
) -> None:
    """A snapshot of the machine is restored: log and archive agree. Only the bank knows more."""
    home, port = public_dir / "set-back", free_port()
    home.mkdir()
    async with (
        restartable(lambda: embedded.valkey(home, port=port)) as redis,
        running_system(await redis.up(), postgres, roles=("serve", "projector", "poller")) as system,
    ):
        await system.apply(POLICIES)
        secret = await token(system, "bot")
        await system.reaches((await ask(system, secret, "before"))["payout"], "processed")
        await system.settled()
        assert not any((await system.stop()).values())
        system.pool.terminate()
        await redis.down()
        shutil.copytree(home, home.with_name("snapshot"))
        async with copy_of(postgres_server, postgres.rpartition("/")[2]) as snapshot:
            await redis.up()
            await _start(system, "serve", "projector", "worker-1")
            late = (await ask(system, secret, "after"))["payout"]
            [paid] = await until(lambda: _moved(system, late), what="it is paid") or []
            assert not any((await system.stop()).values())
            await redis.down()
            shutil.rmtree(home)
            shutil.copytree(home.with_name("snapshot"), home)
            await redis.up()
            system.env["STREAMPROC_POSTGRES_DSN"] = snapshot
            system.pool = await asyncpg.create_pool(snapshot, min_size=0, max_size=4)
            status, _, said = await system.cli("recover", "--yes")
            assert (status, "there is nothing to recover" in said) == (1, True)

            await _start(system, "serve", "projector", "worker-1")
            assert (await ask(system, secret, "after"))["payout"] == late
            await system.redis.aclose()  # it connects anew
            await until(system.dead, what="a person is to look at it")
            await _start(system, "poller")
            await system.reaches((await _asked(system, secret, "new"))["payout"], "processed")
            await system.settled()
            assert [shown["id"] for shown in await of_reference(system, late)] == [paid]
            assert await system.dead() == 1
            await assert_records_agree(system)
            assert not any((await system.stop()).values())


async def _moved(system: System, payout: str) -> list[str]:
    return [shown["id"] for shown in await of_reference(system, payout) if shown["status"] == "processed"]


async def _tool(home: Path, program: str, *arguments: str) -> None:
    """Run a program of Postgres."""
    command = [str(find_postgres(home).programs / program), *arguments]
    env = {"PATH": os.defpath, "LC_ALL": "C"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=TOOL_MAX_S, check=False
    )
    assert done.returncode == 0, done.stderr


async def _start(system: System, *roles: str) -> None:
    for role in roles:
        await system.start(role)
    await until(lambda: answers(system), what="the API is ready")


async def _asked(system: System, secret: str, key: str) -> dict[str, Any]:
    """The answer to an agent that asks again for as long as it gets 503: until the views show what is archived."""

    async def answered() -> dict[str, Any] | None:
        answer = await ask_once(system, secret, key)
        assert answer.status_code in (202, 503), answer.text
        return answer.json() if answer.status_code == 202 else None

    shown = await until(answered, what=f"{key} is accepted")
    assert shown is not None
    return shown


async def _verified(system: System) -> bool:
    status, said, _ = await system.cli("audit", "verify")
    return status == 0 and f"signed up to seq {await _seq(system.env['STREAMPROC_POSTGRES_DSN'])}," in said


async def _signed(dsn: str) -> bool:
    ((signed,),) = await fetch(dsn, "SELECT max(size) FROM checkpoints")
    return bool(signed == await _seq(dsn))


async def _seq(dsn: str) -> int:
    ((seq,),) = await fetch(dsn, "SELECT seq FROM heads")
    return int(seq)
