"""Names of everything in Redis. All keys of a partition share one hash tag, so one script may touch them all."""

from binascii import crc_hqx
from functools import lru_cache

PREFIX = "sp"
META = f"{PREFIX}:meta"
"""Hash: `partitions`, written at first start; another setting later refuses to start. `made:<p>` once a partition was
made, so that it is not made again. `recovering` while `streamproc recover` is under way, `unreconciled` until the bank
was asked after it."""


LATE = "late"
"""The mark of a group that began at the end of a log that was there: nobody has looked yet at what was held then."""


Note = tuple[str, str, int, bool]
"""Key of a beneficiary, name to note there, when (µs), and whether nobody may be there by then: nobody was."""


class Names:
    """Keys of one partition. Ids in keys are validated where they enter (policy ids, bank ids)."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.base = f"{PREFIX}:{{{partition}}}"
        self.log = f"{self.base}:log"
        self.policy = f"{self.base}:policy"
        self.tokens = f"{self.base}:tokens"
        self.proposals = f"{self.base}:proposals"
        self.timers = f"{self.base}:timers"
        self.dead = f"{self.base}:dead"
        self.number = f"{self.base}:number"
        self.groups = f"{self.base}:groups"
        self.recovery = f"{self.base}:recovery"
        self.staged = f"{self.base}:staged"
        self.rescued = f"{self.base}:rescued"
        self.watched = f"{self.base}:watched"
        self.terms = f"{self.base}:terms"
        self.words = f"{self.base}:words"
        self.untold = f"{self.base}:untold"
        self.digests = f"{self.base}:digests"

    def seen(self, key: str) -> str:
        """Idempotency of one producer delivery."""
        return f"{self.base}:seen:{key}"

    def payout(self, payout: str) -> str:
        """State, version, reservation of one payout."""
        return f"{self.base}:payout:{payout}"

    def budget(self, scope: str, window: str) -> str:
        """Reserved (`r`) and committed (`c`) paise."""
        return f"{self.base}:budget:{scope}:{window}"

    def rate(self, agent: str) -> str:
        """Rate slots: members are payout ids, scores µs."""
        return f"{self.base}:rate:{agent}"

    def reputation(self, digest: str) -> str:
        """A cached Safe Browsing answer, by the hash of the canonical URL."""
        return f"{self.base}:reputation:{digest}"

    def paid_for(self, account: str, fund_account: str) -> str:
        """Hosts that payouts to a fund account of an account were approved for: host -> when last noted (µs)."""
        return f"{self.base}:paid:{account}:f:{fund_account}"

    def paid_at(self, account: str, vendor: str) -> str:
        """Fund accounts of an account that payouts for a host were approved to, likewise."""
        return f"{self.base}:paid:{account}:v:{vendor}"

    def retries(self, group: str) -> str:
        """Entries of a group that wait for their next attempt: score µs."""
        return f"{self.base}:retries:{group}"

    def tries(self, group: str) -> str:
        """Attempts that counted, by entry."""
        return f"{self.base}:tries:{group}"

    def own(self, group: str) -> str:
        """What a group wrote itself and has not passed over: `FIRST LAST`, ids of neighbours; score ms."""
        return f"{self.base}:own:{group}"

    def cursor(self, producer: str) -> str:
        """Where a polling producer is."""
        return f"{self.base}:cursor:{producer}"

    def lease(self, job: str) -> str:
        """Who does a job that one process at a time does."""
        return f"{self.base}:lease:{job}"

    def vault(self, name: str) -> str:
        """A sealed text that processes share."""
        return f"{self.base}:vault:{name}"

    def digest(self, name: str) -> str:
        """What alerts of one kind have in common, counted."""
        return f"{self.base}:digest:{name}"

    def digested(self, name: str) -> str:
        """What was counted already."""
        return f"{self.base}:digest:{name}:seen"

    def once(self, key: str) -> str:
        """That something was done which may be done once within some time."""
        return f"{self.base}:once:{key}"

    def asked(self, token: str) -> str:
        """When a token's latest requests were taken (µs)."""
        return f"{self.base}:asked:{token}"

    def pace(self, system: str) -> str:
        """When the next call to an outside system may be made, by whichever process."""
        return f"{self.base}:pace:{system}"


@lru_cache(maxsize=4096)
def partition_of(account: str, partitions: int) -> int:
    """The partition of an account: CRC16 (XMODEM, as Redis Cluster uses) modulo the partition count."""
    return crc_hqx(account.encode(), 0) % partitions
