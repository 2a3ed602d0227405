"""Settings of the sandbox: one frozen struct, read from `SANDBOX_*`; any wrong value refuses all."""

import re
import socket
import sys
from collections.abc import Mapping
from math import inf
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

ENV_PREFIX = "SANDBOX_"

MORE_ACCOUNTS = re.compile(r"(?:acc_[0-9A-Za-z]{14}=[0-9]{5,20}(?:,|$))*")
Workflow: TypeAlias = Literal["all", "dashboard", "off"]
"""Which payouts wait for approval: all, only those made in the dashboard (not by API), or none."""


class SandboxConfig(Struct, frozen=True, kw_only=True):
    """All settings at start. Amounts in paise, `_s` in seconds."""

    host: str = "127.0.0.1"
    port: int = 8090
    key_id: str = "rzp_test_sandbox"
    key_secret: str = "sandbox_key_secret"  # noqa: S105 - public default of a simulator
    oauth_token: str = "sandbox_oauth_token"  # noqa: S105 - public default of a simulator
    oauth_scope: str = "rx_partner_read_write"
    oauth_client_id: str = "sandbox_client"
    oauth_client_secret: str = "sandbox_client_secret"  # noqa: S105 - public default of a simulator
    oauth_refresh_token: str = "sandbox_refresh_token"  # noqa: S105 - public default of a simulator
    oauth_expires_s: int = 7_862_400
    """The life that is named for an access token from a refresh token; only `expire_token` ends it."""
    webhook_secret: str = "sandbox_webhook_secret"  # noqa: S105 - public default of a simulator
    webhook_url: str = ""
    """Where events are posted; empty: nowhere."""
    account_id: str = "acc_Sandbox0000001"
    account_number: str = "7878780080316316"
    more_accounts: str = ""
    """`acc_…=number,acc_…=number`: accounts that the same keys reach; only outsiders pay from them."""
    balance: int = 100_000_000_00
    """Paise on the account at the first start: ten crore rupees."""
    seed: int = 0
    """Seed of ids, UTRs and fault rates; 0: a new one at each start."""
    data_file: str = ""
    """SQLite file that keeps the state across restarts; empty: memory only."""
    workflow: Workflow = "all"
    processing_s: float = 0.2
    """From `processing` to the bank's answer."""
    utr_s: float = 0.1
    """NEFT and RTGS: from `processed` to the UTR, which comes as `payout.updated`."""
    webhook_timeout_s: float = 5.0
    webhook_retry_base_s: float = 5.8
    """The first gap of the retry ladder; every later gap about doubles."""
    webhook_give_up_s: float = 86_400.0
    """After this the event is given up, and the webhook disabled."""
    control_from: Literal["loopback", "anywhere"] = "loopback"
    """Who may use `/_control`, which has no authentication."""
    safebrowsing_key: str = ""
    """The only key that is valid; empty: any key."""
    slack_token: str = ""
    """The only valid bot token; empty: any token."""
    slack_webhook_url: str = ""
    """Where clicks are posted (Slack calls it the request URL); empty: nowhere."""
    slack_signing_secret: str = "sandbox_signing_secret"  # noqa: S105 - public default of a simulator

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "SandboxConfig":
        """Read `SANDBOX_<FIELD>`. SystemExit names what is wrong; unknown names are reported and ignored.

        They may belong to the host, since other things too are called sandbox.
        """
        given = {
            name.removeprefix(ENV_PREFIX).lower(): value
            for name, value in env.items()
            if name.startswith(ENV_PREFIX) and value != ""
        }
        for name in sorted(set(given) - set(cls.__struct_fields__)):
            sys.stderr.write(f"sandbox: {ENV_PREFIX}{name.upper()} is not a setting of the sandbox\n")
        try:
            config = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            what, _, field = str(error).rpartition(" - at `$.")
            raise refused(f"{ENV_PREFIX}{field.rstrip('`').upper()} is wrong: {what}") from error
        return config.checked()

    def accounts(self) -> dict[str, str]:
        """Account ids by number; an empty id for the one that API calls are about."""
        more = [pair.split("=") for pair in self.more_accounts.split(",") if pair]
        return {self.account_number: ""} | {number: account for account, number in more}

    def bound(self) -> socket.socket:
        """A socket bound to the port. SystemExit if that is not possible."""
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            return socket.create_server((self.host, self.port), family=family)
        except (OSError, UnicodeError) as problem:
            why = getattr(problem, "strerror", None) or "no host name"
            raise refused(f"{ENV_PREFIX}HOST {self.host}, {ENV_PREFIX}PORT {self.port}: {why}") from problem

    def checked(self) -> "SandboxConfig":
        """The same config; SystemExit with the first impossible value."""
        if not 0 <= self.port <= 65535:
            raise refused(f"{ENV_PREFIX}PORT {self.port} is not a port")
        if len(self.account_id) != 18 or not self.account_id.startswith("acc_"):
            raise refused(f"{ENV_PREFIX}ACCOUNT_ID must be acc_ and 14 characters")
        if not MORE_ACCOUNTS.fullmatch(self.more_accounts):
            raise refused(
                f"{ENV_PREFIX}MORE_ACCOUNTS must be acc_ and 14 characters, =, 5 to 20 digits; commas between"
            )
        if self.balance < 0:
            raise refused(f"{ENV_PREFIX}BALANCE is below 0 paise")
        for name in (name for name in self.__struct_fields__ if name.endswith("_s")):
            if not 0 <= getattr(self, name) < inf:
                raise refused(f"{ENV_PREFIX}{name.upper()} must be a number of seconds, 0 or more")
        for name in ("webhook_url", "slack_webhook_url"):
            if not re.fullmatch(r"(https?://[^\s/]+\S*)?", getattr(self, name)):
                raise refused(f"{ENV_PREFIX}{name.upper()} must be an http:// or https:// URL")
        if min(self.webhook_retry_base_s, self.webhook_timeout_s) <= 0:
            raise refused(f"{ENV_PREFIX}WEBHOOK_RETRY_BASE_S and _TIMEOUT_S must be above 0")
        return self


def refused(why: str) -> SystemExit:
    """SystemExit with one line on stderr and exit status 2."""
    sys.stderr.write(f"sandbox: {why}\n")
    return SystemExit(2)
