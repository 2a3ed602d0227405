"""A fake of `python -m streamproc`: every role writes what it does to FAKE_DIR, and obeys files there.

events      one line per thing done: "start ROLE", "stop ROLE" (SIGTERM came), "env ROLE NAME=VALUE"
crash-ROLE  the role exits with the code in the file at once
lost-ROLE   the role says that its log is lost, as the roles do, and exits with 1
deaf-ROLE   the role ignores SIGTERM; what is in the file is the event after which it ends all the same
"""

import http.server
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from streamproc.errors import WHEN_LOST

HERE = Path(os.environ["FAKE_DIR"])
ROLE = sys.argv[1]


def note(text: str) -> None:
    with (HERE / "events").open("a") as events:
        events.write(text + "\n")


class Always200(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    # Before the note of the start, since its reader may send SIGTERM at once.
    stopped = threading.Event()
    if (HERE / f"deaf-{ROLE}").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    note(f"start {ROLE} {os.getpid()}")
    for name in (
        "STREAMPROC_REDIS_URL",
        "STREAMPROC_RAZORPAY_KEY_SECRET",
        "SANDBOX_KEY_SECRET",
        "SANDBOX_WEBHOOK_URL",
        "STREAMPROC_GLEIF_URL",
        "STREAMPROC_SLACK_BOT_TOKEN",
        "STREAMPROC_SLACK_SIGNING_SECRET",
        "STREAMPROC_SLACK_BASE_URL",
        "SANDBOX_SLACK_TOKEN",
        "SANDBOX_SLACK_SIGNING_SECRET",
        "SANDBOX_SLACK_WEBHOOK_URL",
        "UP_PROCESS",
    ):
        note(f"env {ROLE} {name}={os.environ.get(name, '')}")
    print(f"hello from {ROLE}", flush=True)
    crash = HERE / f"crash-{ROLE}"
    if crash.exists():
        print(f"{ROLE} cannot go on", flush=True)
        sys.exit(int(crash.read_text()))
    if (HERE / f"lost-{ROLE}").exists():
        print(f"streamproc: partition 0: its stream is gone; {WHEN_LOST}", flush=True)
        sys.exit(1)
    if ROLE == "migrate":
        return
    port = {"serve": "STREAMPROC_PORT", "sandbox": "SANDBOX_PORT"}.get(ROLE)
    if port:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ[port])), Always200)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    deaf = HERE / f"deaf-{ROLE}"
    until = deaf.read_text() if deaf.exists() else ""
    while until and until not in (HERE / "events").read_text().splitlines():
        time.sleep(0.02)
    if not until:
        stopped.wait()
    note(f"stop {ROLE}")


main()
