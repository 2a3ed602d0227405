"""Log lines: one JSON object a line for machines, and nothing that could hold a secret."""

import json
import os
import subprocess
import sys

import pytest

from streamproc.domain.traces import trace_id

PROGRAM = """
import logging
from streamproc.cli.logline import log_to_stderr
log_to_stderr(logging.{level})
logging.getLogger("streamproc.test").info("hello %s", "there")
logging.getLogger("httpx").info("GET https://example.com/?key=hunter2")
try:
    raise ValueError("boom\\n")
except ValueError:
    logging.getLogger("streamproc.test").exception("it failed")
"""


def lines(level: str) -> list[dict[str, str]]:
    program = PROGRAM.replace("{level}", level)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_role_logs_one_object_a_line_with_its_traceback_inside():
    hello, failed = lines("INFO")
    assert (hello["level"], hello["logger"], hello["message"]) == ("info", "streamproc.test", "hello there")
    assert hello["at"].endswith("Z")
    assert "ValueError: boom" in failed["exception"]


def test_every_line_is_spelt_alike_so_that_one_search_finds_it():
    first, _, aside, _ = said(terminal=False)
    for line, level in ((first, "info"), (aside, "error")):
        assert line.startswith('{"at":"')
        assert f'"level":"{level}","logger":"' in line


def test_a_text_that_is_no_utf_8_is_logged_with_escapes_and_not_lost():
    program = r"""
import logging
from streamproc.cli.logline import log_to_stderr
log_to_stderr(logging.INFO)
try:
    raise OSError("no file \udcff")
except OSError:
    logging.getLogger("t").exception("of %s: ₹", "\udcff")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert line["message"] == "of \\udcff: ₹"
    assert line["exception"].endswith("OSError: no file \\udcff")


def test_clients_that_log_whole_urls_are_silenced():
    assert "hunter2" not in json.dumps(lines("INFO"))


def test_an_operators_command_says_only_what_is_wrong():
    assert [line["message"] for line in lines("WARNING")] == ["it failed"]


DECIDED = """
import logging, sys
from streamproc.domain.traces import trace_id
from streamproc.cli.logline import log_to_stderr
from streamproc.telemetry import lines
sys.stderr.isatty = lambda: {terminal}
log_to_stderr(logging.INFO, ["hunter2-the-secret"])
lines.log_decisions([
    lines.DecisionLine("in short", 0, "1-0", "pout_1", trace_id("pout_1"), "APPROVED", "POLICY_OK", "bot", 250_000),
    lines.DecisionLine(
        "and so on", 0, "2-0", "pout_2", trace_id("pout_2"), "REJECTED", "REVIEW_REJECTED", "bot", 100, "asha"
    ),
])
logging.getLogger("t").error("set aside", extra={"payout": "pout_1"})
logging.getLogger("t").error(
    "redis://:pw-of-redis@host/0 said hunter2-the-secret to Bearer abcdefghijklmnopqrstuvwx"
    " and spt_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG at https://x/?key=AIzaSyGoogle"
)
"""


def said(terminal: bool, **env: str) -> list[str]:
    program = DECIDED.replace("{terminal}", str(terminal))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_each_decision_is_a_line_with_the_trace_of_its_payout():
    first, second, aside, _ = map(json.loads, said(terminal=False))
    assert (first["message"], second["message"]) == ("in short", "and so on")
    assert first["trace_id"] == aside["trace_id"] == trace_id("pout_1")
    assert (first["amount"], first["agent"], "by" in first) == (250_000, "bot", False)
    assert (second["decision"], second["by"], second["trace_id"]) == ("REJECTED", "asha", trace_id("pout_2"))


STRANGE = """
import logging
from streamproc.cli.logline import log_to_stderr
from streamproc.telemetry import lines
log_to_stderr(logging.INFO)
line = lines.DecisionLine("m", 0, "1-0", "pout_1", "t", "HELD", "X", {agent!r}, 100)
lines.log_decisions([line, line])
"""


@pytest.mark.parametrize("agent", ["a\n{b", 'a"}\n{"b', "a\\n{b", "ä\u2028{b"])
def test_an_agents_name_cannot_look_like_the_beginning_of_a_line(agent: str):
    done = subprocess.run(
        [sys.executable, "-c", STRANGE.format(agent=agent)], capture_output=True, text=True, check=True
    )
    said = [json.loads(line) for line in done.stderr.removesuffix("\n").split("\n")]
    assert [(one["logger"], one["message"], one["agent"]) for one in said] == 2 * [
        ("streamproc.decisions", "m", agent)
    ]


def test_under_an_up_on_a_terminal_lines_are_sentences_though_they_go_through_its_pipe():
    decided, *_ = said(terminal=False, UP_TERMINAL="1")
    assert decided.endswith("info    pout_1: APPROVED POLICY_OK, ₹2,500.00 of bot")
    assert json.loads(said(terminal=False, UP_TERMINAL="")[0])["payout"] == "pout_1"


FORGED = """
import logging, sys
from streamproc.cli.logline import log_to_stderr
from streamproc.telemetry import lines
sys.stderr.isatty = lambda: True
log_to_stderr(logging.INFO)
forged = "a\\n00:00:00.000 info    pout_9: APPROVED\\x1b[2J\\u202e"
lines.log_decisions([lines.DecisionLine("m", 0, "1-0", "pout_1", "t", "HELD", "X", forged, 100, forged)])
logging.getLogger("t").warning("said %s", forged)
try:
    raise ValueError(forged)
except ValueError:
    logging.getLogger("t").exception("it failed")
"""


def test_on_a_terminal_what_strangers_wrote_forges_no_line_and_nothing_is_obeyed():
    done = subprocess.run([sys.executable, "-c", FORGED], capture_output=True, text=True, check=True)
    decided, said, failed, *traceback = done.stderr.removesuffix("\n").split("\n")
    assert "pout_1: HELD X by a 00:00:00.000 info" in decided
    assert "said a 00:00:00.000 info" in said
    assert failed.endswith("it failed")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in traceback)
    assert "\x1b" not in done.stderr
    assert "\u202e" not in done.stderr


def test_on_a_terminal_a_decision_reads_as_a_sentence():
    first, second, *_ = said(terminal=True)
    assert first.endswith("info    pout_1: APPROVED POLICY_OK, ₹2,500.00 of bot")
    assert second.endswith("pout_2: REJECTED REVIEW_REJECTED by asha, ₹1.00 of bot")


@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_shows_a_secret(terminal: bool):
    line = said(terminal)[-1]
    for secret in ("hunter2", "pw-of-redis", "abcdefghijkl", "AIza"):
        assert secret not in line
    assert line.count("***") == 5


NAMES = """
import logging, sys
from streamproc.cli.logline import log_to_stderr
from streamproc.telemetry import lines
sys.stderr.isatty = lambda: {terminal}
log_to_stderr(logging.INFO, ["hunter2-the-secret"])
names = [
    ("of hunter2-the-secret", "spt_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"),
    ("at://us:pw-of-us@host", "Bearer abcdefghijklmnopqrstuvwx"),
    ("at://us", "asha@host"),
    ("bot", ""),
]
lines.log_decisions(
    [lines.DecisionLine("", 0, "1-0", "pout_1", "t", "HELD", "X", agent, 100, by) for agent, by in names]
)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_in_a_decisions_line_shows_a_secret(terminal: bool):
    program = NAMES.replace("{terminal}", str(terminal))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for secret in ("hunter2", "pw-of-us", "abcdefghijkl"):
        assert secret not in done.stderr
    wanted = [("of ***", "***"), ("at://***@host", "Bearer ***"), ("at://us", "asha@host"), ("bot", "")]
    lines = done.stderr.splitlines()
    if terminal:
        ends = [f" X{by and f' by {by}'}, ₹1.00 of {agent}" for agent, by in wanted]
        assert [line[line.index(" X") :] for line in lines] == ends
    else:
        assert [(one["agent"], one.get("by", "")) for one in map(json.loads, lines)] == wanted


def test_a_header_for_a_collector_that_is_written_wrongly_is_logged_without_its_key():
    program = """
from streamproc.cli.context import role_settings
from streamproc.errors import ConfigError
try:
    role_settings("worker")
except ConfigError:
    pass
from streamproc.telemetry.otlp_metrics import Exporter
Exporter("worker", "worker-1")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OTEL_EXPORTER_OTLP_HEADERS": "x-team: hunter2hunter2"},
    )
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert "x-team: ***" in line["message"]
    assert "hunter2" not in done.stderr
