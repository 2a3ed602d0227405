"""Log lines: one JSON object a line for machines, and nothing that could hold a secret."""

import json
import subprocess
import sys

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


def test_clients_that_log_whole_urls_are_silenced():
    assert "hunter2" not in json.dumps(lines("INFO"))


def test_an_operators_command_says_only_what_is_wrong():
    assert [line["message"] for line in lines("WARNING")] == ["it failed"]
