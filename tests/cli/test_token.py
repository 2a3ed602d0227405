"""`streamproc token create`: the secret is somewhere where only its owner sees it, or its loss is told."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from streamproc.cli import run
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from tests.signals import heard

DEADLINE_S = 60.0
CREATE = ("token", "create", "asha-laptop", "--scope", "approver", "--reviewer", "asha")


@pytest.fixture
def system(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The environment of an operator whose log is empty."""
    import asyncio

    async def make() -> None:
        async with connected(redis_url) as client:
            await open_log(client, partitions=1, groups=["governance"])

    asyncio.run(make())
    monkeypatch.setenv("STREAMPROC_REDIS_URL", redis_url)
    monkeypatch.setenv("STREAMPROC_DATA_DIR", str(tmp_path))
    return redis_url


def names(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(["token", "list", "--json"]) == 0
    return [one["name"] for one in json.loads(capsys.readouterr().out)["items"]]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_token_is_written_to_a_file_that_only_its_owner_can_read_and_is_not_printed(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    file = tmp_path / "asha.token"
    old = os.umask(0)
    try:
        assert run([*CREATE, "--out", str(file), *(["--json"] if as_json else [])]) == 0
    finally:
        os.umask(old)
    secret, said = file.read_text().strip(), capsys.readouterr()
    assert len(secret) > 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret not in said.out + said.err
    assert str(file) in (said.out if as_json else said.err)
    if as_json:
        assert json.loads(said.out)["name"] == "asha-laptop"


def test_a_file_that_cannot_be_made_is_refused_before_a_token_is(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    for file, why in ((there, "not overwritten"), (tmp_path / "no" / "token", "cannot be written")):
        assert run([*CREATE, "--out", str(file)]) == 2
        assert why in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert names(capsys) == []


def test_a_token_that_is_not_made_leaves_no_file(system: str, tmp_path: Path) -> None:
    assert run([*CREATE[:-1], "no name", "--out", str(tmp_path / "token")]) == 2
    assert not (tmp_path / "token").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_who_stops_it_while_redis_hangs_finds_no_file(tmp_path: Path, how: signal.Signals) -> None:
    """The next try would refuse to overwrite it."""

    with socket.create_server(("127.0.0.1", 0)) as hangs:
        url = f"redis://127.0.0.1:{hangs.getsockname()[1]}/0"
        with subprocess.Popen(
            [sys.executable, "-m", "streamproc", *CREATE, "--out", str(tmp_path / "token")],
            env={**os.environ, "STREAMPROC_REDIS_URL": url, "STREAMPROC_DATA_DIR": str(tmp_path / "data")},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        ) as create:
            hangs.settimeout(DEADLINE_S)
            with hangs.accept()[0]:
                assert (tmp_path / "token").exists()
                create.send_signal(how)
                _, said = create.communicate(timeout=DEADLINE_S)
    assert (create.returncode, said) == (1, "streamproc: stopped by the user\n")
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_could_not_be_written_names_the_token_to_revoke(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert run([*CREATE, "--out", str(tmp_path / "token")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left" in line
    assert "streamproc token revoke asha-laptop" in line
    assert not (tmp_path / "token").exists()
    assert names(capsys) == ["asha-laptop"]


@pytest.mark.parametrize("how", ["full", "full, as JSON", "nobody reads"])
def test_a_secret_that_could_not_be_printed_names_the_token_to_revoke(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "streamproc", *CREATE, *(["--json"] if "JSON" in how else [])]
    with os.fdopen(pipe, "w") as broken, Path("/dev/full").open("w") as full:
        out = broken if how == "nobody reads" else full
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "its secret is lost" in line
    assert "streamproc token revoke asha-laptop" in line
    assert names(capsys) == ["asha-laptop"]


def test_a_revocation_says_in_json_whether_it_changed_anything(
    system: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(CREATE) == 0
    for changed in (True, False):
        capsys.readouterr()
        assert run(["token", "revoke", "asha-laptop", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"name": "asha-laptop", "state": "revoked", "changed": changed}


def test_where_there_is_no_stdout_no_token_is_made(
    system: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert run(CREATE) == 2
    assert "--out FILE" in capsys.readouterr().err
    assert names(capsys) == []
