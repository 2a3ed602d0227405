"""Names of all keys in Redis. All keys of a partition share one hash tag, so one script may use them all."""

from binascii import crc_hqx
from functools import lru_cache

PREFIX = "sp"
META = f"{PREFIX}:meta"
"""Hash: `partitions`, written at the first start; with another setting later we refuse to start. `made:<p>`: the
partition was made, and is not made again. `recovering`: `streamproc recover` is under way. `unreconciled`: the
bank was not asked yet since it began, but about the accounts that an `asked:<account>` names."""
UNRECONCILED = "unreconciled"

SHARED_PARTITION = 0
"""The partition whose keys hold what belongs to no account: tokens, proposals, and what processes share. Any would do,
and the first always exists."""

LATE = "late"
"""Mark of a group that began at the end of an existing log: what was held then has not been looked for yet."""

Note = tuple[str, str, int, bool]
"""Key of a beneficiaries' hash, name to note in it, when (µs), and whether the hash must name nobody else."""


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
        self.terms = f"{self.base}:terms"
        self.breakers = f"{self.base}:words"
        self.untold = f"{self.base}:untold"
        self.digests = f"{self.base}:digests"
        self.server = f"{self.base}:server"

    def seen(self, key: str) -> str:
        """The entry of a producer's delivery, by idempotency key."""
        return f"{self.base}:seen:{key}"

    def payout(self, payout: str) -> str:
        """Version, record and admission of one payout."""
        return f"{self.base}:payout:{payout}"

    def budget(self, scope: str, window: str) -> str:
        """Reserved (`r`) and committed (`c`) paise of a window."""
        return f"{self.base}:budget:{scope}:{window}"

    def rate(self, agent: str) -> str:
        """Rate slots: members are payout ids, scores µs."""
        return f"{self.base}:rate:{agent}"

    def reputation(self, digest: str) -> str:
        """A cached Safe Browsing answer, by the digest of the canonical URL."""
        return f"{self.base}:reputation:{digest}"

    def paid_for(self, account: str, fund_account: str) -> str:
        """Hosts that payouts to a fund account were approved for: host -> when last noted (µs)."""
        return f"{self.base}:paid:{account}:f:{fund_account}"

    def paid_at(self, account: str, vendor: str) -> str:
        """Fund accounts that payouts for a host were approved to: fund account -> when last noted (µs)."""
        return f"{self.base}:paid:{account}:v:{vendor}"

    def retries(self, group: str) -> str:
        """Entries of a group that wait for their next attempt; score: due (µs), by the retry clock."""
        return f"{self.base}:retries:{group}"

    def retry_clock(self, group: str) -> str:
        """The clock of a group's retries (retry_clock.lua): when it put off something last, and by how much it is ahead
        of Redis's (µs)."""
        return f"{self.base}:retry_clock:{group}"

    def tries(self, group: str) -> str:
        """How often entries were deferred: `<id>` by failed attempts, `<id>:waits` by waits. `<id>:lane`: it waited in
        a slow lane, 1 where it overtakes others. `<id>:unsent`: nothing was sent outside for it, as of its last
        deferral (defer.lua); empty: that cannot be known any more."""
        return f"{self.base}:tries:{group}"

    def own(self, group: str) -> str:
        """Runs of a group's own outputs that it has not passed over yet: `FIRST LAST` (ids); score: ms of LAST."""
        return f"{self.base}:own:{group}"

    def cursor(self, producer: str) -> str:
        """How far a polling producer has read."""
        return f"{self.base}:cursor:{producer}"

    def watch_list(self, account: str) -> str:
        """The payouts of an account that its poller looks at again."""
        return f"{self.base}:watched:{account}"

    def lease(self, job: str) -> str:
        """Which process does a job that is for one process at a time."""
        return f"{self.base}:lease:{job}"

    def vault(self, name: str) -> str:
        """A sealed text that processes share."""
        return f"{self.base}:vault:{name}"

    def digest(self, name: str) -> str:
        """A digest of alerts that are alike."""
        return f"{self.base}:digest:{name}"

    def digested(self, name: str) -> str:
        """Ids that the digest has counted."""
        return f"{self.base}:digest:{name}:seen"

    def once(self, key: str) -> str:
        """A mark that something was done which is to be done only once within some time."""
        return f"{self.base}:once:{key}"

    def asked(self, token: str, *, reads: bool = False) -> str:
        """Times (µs) of a token's latest requests that may change something, or that only read."""
        return f"{self.base}:{'read' if reads else 'asked'}:{token}"

    def pace(self, system: str) -> str:
        """When the next call to an outside system may be made, by any process."""
        return f"{self.base}:pace:{system}"

    def paced(self, system: str) -> str:
        """When the last turn of calls to an outside system was asked for."""
        return f"{self.base}:paced:{system}"

    def pause(self, system: str) -> str:
        """When the pause ends that an outside system asked for; it expires then."""
        return f"{self.base}:pause:{system}"


@lru_cache(maxsize=4096)
def partition_of(account: str, partitions: int) -> int:
    """The partition of an account: CRC16 (XMODEM, as Redis Cluster uses) modulo the partition count."""
    return crc_hqx(account.encode(), 0) % partitions
