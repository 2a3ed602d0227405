"""What governance asks about payouts' contacts, by the settings: the register of legal entities, the bank for names."""

from contextlib import AsyncExitStack

from consumers.entities import ContactLookup, Entities
from streamproc.clients.breaker import Breaker
from streamproc.clients.gleif import CALLS_BURST, CALLS_PER_S, open_gleif
from streamproc.clients.razorpay_contacts import open_contacts
from streamproc.log.pace import Pace
from streamproc.operate.bank import PACE as BANK_PACE
from streamproc.settings import Settings

PACE = "gleif"
"""Name of the pace in Redis, which all processes keep together."""


def opened_entities(settings: Settings, stack: AsyncExitStack, breakers: dict[str, Breaker]) -> Entities:
    """The register that is set, and the bank if its key is; the stack closes them. Their breakers are added under
    `gleif` and `razorpay contacts`."""
    if not settings.gleif_url:
        return Entities()
    pace = Pace(settings.redis_url, name=PACE, per_s=CALLS_PER_S, burst=CALLS_BURST)
    stack.push_async_callback(pace.aclose)
    register = open_gleif(settings.gleif_url, pace.take)
    stack.push_async_callback(register.aclose)
    breakers["gleif"] = register.breaker
    return Entities(register.lookup, _contacts(settings, stack, breakers))


def _contacts(
    settings: Settings, stack: AsyncExitStack, breakers: dict[str, Breaker]
) -> ContactLookup | None:
    """None without a key of the bank."""
    secret = settings.razorpay_key_secret.reveal()
    if not (settings.razorpay_key_id and secret):
        return None
    per_s = settings.razorpay_calls_per_s
    pace = Pace(settings.redis_url, name=BANK_PACE, per_s=per_s, burst=per_s)
    stack.push_async_callback(pace.aclose)
    contacts = open_contacts(
        settings.razorpay_base_url,
        key_id=settings.razorpay_key_id,
        key_secret=secret,
        per_s=per_s,
        take=pace.take,
    )
    stack.push_async_callback(contacts.aclose)
    breakers["razorpay contacts"] = contacts.breaker
    return contacts.lookup
