"""RazorpayX: the name of a fund account's contact, by `GET /fund_accounts/{id}` and `GET /contacts/{id}`.

It can ask that and nothing else: who judges payouts has no way to move money. Whatever goes wrong, the answer has a
problem and no name.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient, OverHttp
from streamproc.clients.json_text import Unusable, read_answer
from streamproc.clients.ration import Ration, Take, Unlimited
from streamproc.clients.razorpay import without_version
from streamproc.clients.razorpay_entities import id_or_empty
from streamproc.domain.legal_entities import CONTACT_CHARS_MAX, ContactSeen, legal_name
from streamproc.errors import TryAgain
from streamproc.host_clock import host_clock_us

TIMEOUT_S = 2.0
"""For one call."""
WAIT_S = 1.0
"""How long the calls of a batch wait for their turns."""
LOOKUPS_S = WAIT_S + 2 * TIMEOUT_S
"""For all fund accounts of a batch together: its payouts wait for them."""
AT_ONCE_MAX = 4
"""Fund accounts that are asked about at once."""
FRESH_S = 3_600
"""How long a name is used: a contact can be renamed at the bank."""
BODY_BYTES_MAX = 256 * 1024
"""Both answers are about 1 kB."""


def open_contacts(
    base_url: str,
    *,
    key_id: str,
    key_secret: str,
    per_s: float,
    take: Take,
    now_us: Callable[[], int] = host_clock_us,
) -> "Contacts":
    """A client that leaves half of the bank's turns, `per_s` in a second, to calls that move money. `take` gives the
    turns of all processes together. Close it with `aclose`."""
    burst = max(1, int(per_s))
    http = OutboundClient(
        "razorpay-contacts",
        without_version(base_url),
        timeout_s=TIMEOUT_S,
        limiter=Unlimited(),
        breaker=Breaker(),
        body_bytes_max=BODY_BYTES_MAX,
    )
    key = base64.b64encode(f"{key_id}:{key_secret}".encode()).decode("ascii")
    ration = Ration(take)
    return Contacts(http, ration, f"Basic {key}", turns_kept=burst // 2, now_us=now_us)


class Contacts(OverHttp):
    """Looks up contacts. Each call of `http` is made in a turn of `ration`, while `turns_kept` more are free."""

    def __init__(
        self,
        http: OutboundClient,
        ration: Ration,
        authorization: str,
        *,
        turns_kept: int,
        now_us: Callable[[], int] = host_clock_us,
        lookups_s: float = LOOKUPS_S,
    ) -> None:
        super().__init__(http)
        self._ration = ration
        self._headers = {"authorization": authorization}
        self._turns_kept = turns_kept
        self._now_us = now_us
        self._lookups_s = lookups_s
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)

    async def lookup(self, fund_accounts: Sequence[str]) -> dict[str, ContactSeen]:
        """The contact of each fund account. Takes LOOKUPS_S at most, and never raises for the bank's failures. A
        problem is never fresh. Times count from before the call."""
        now_us, turns_by = self._now_us(), self._ration.patience(WAIT_S)
        late = _problem(f"no answer within {self._lookups_s:g} s", now_us)
        found = dict.fromkeys(fund_accounts, late)

        async def ask(fund_account: str) -> None:
            async with self._slots:
                found[fund_account] = await self._ask(fund_account, turns_by)

        try:
            async with asyncio.timeout(self._lookups_s), asyncio.TaskGroup() as tasks:
                for fund_account in found:
                    tasks.create_task(ask(fund_account))
        except TimeoutError:
            pass  # those without an answer have a problem
        return found

    async def _ask(self, fund_account: str, turns_by: float) -> ContactSeen:
        now_us = self._now_us()
        try:
            account = await self._get("fund_accounts", fund_account, turns_by)
            contact = await self._get("contacts", id_or_empty(account.get("contact_id")), turns_by)
            name = contact.get("name")
            if not isinstance(name, str) or len(name) > CONTACT_CHARS_MAX or not legal_name(name).words:
                raise Unusable("the contact has no usable name")
        except (TryAgain, Unusable) as problem:
            return _problem(str(problem), now_us)
        return ContactSeen(name=name, checked_at=now_us, fresh_until=now_us + FRESH_S * 1_000_000)

    async def _get(self, kind: str, name: str, turns_by: float) -> dict[str, object]:
        """The bank's object of this id. Raises TryAgain, and Unusable for anything else than that."""
        if not id_or_empty(name):
            raise Unusable(f"there is no usable id to ask for in {kind}")
        if not self._http.breaker.wait_s:  # else the call is not made, and needs no turn
            await self._ration.turn(turns_by, beside=self._turns_kept)
        answer = await self._http.call("GET", f"/v1/{kind}/{name}", headers=self._headers)
        shown = read_answer(answer.status, answer.body, "the bank")
        if not isinstance(shown, dict) or shown.get("id") != name:
            raise Unusable(f"the bank answered with something else than was asked for in {kind}")
        return shown


def _problem(text: str, now_us: int) -> ContactSeen:
    return ContactSeen(problem=text, checked_at=now_us, fresh_until=now_us)
