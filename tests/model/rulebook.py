"""What must be in a log, by docs/governance.md and nothing else: sets and integers, no code of the product.

`wrong` walks a log from its beginning and knows at each entry which policies are in force, what was shown of each
payout, and what was decided. What the counters answered is then held, by their numbers, against plain sums.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from streamproc.domain import events as e
from tests.model.stepping import Row
from tests.words import ACCOUNT

OPEN = {"pending", "queued"}
MOVING = {"processing", "processed"}
BACK = {"cancelled", "rejected", "failed", "reversed"}
INDIA = timedelta(hours=5, minutes=30)
RATE_US = 60_000_000
HOLD_US = 3_600_000_000
REVIEWERS = ("asha", "ravi")


@dataclass(frozen=True)
class Terms:
    """One agent's policy; None is no limit. Paise. `rate` 0: no limit of the rate."""

    daily: int | None = None
    per_txn: int | None = None
    above: int | None = None
    """Approval is required above it."""
    dual: int | None = None
    rate: int = 0
    blocks: bool = False
    """Whether bad.example is blocked."""
    frozen: bool = False

    def line(self, agent: str) -> str:
        """As a policy file has it."""
        limits = {
            "daily_limit": self.daily,
            "per_txn_limit": self.per_txn,
            "require_approval_above": self.above,
        }
        limits["dual_approval_above"] = self.dual
        parts = [f"{name}: {value}" for name, value in limits.items() if value is not None]
        parts += [f"rate_limit: {{count: {self.rate}, window: 60}}", "hold_ttl: 1h"]
        parts += ["blocked_domains: [bad.example]"] if self.blocks else []
        parts += ["frozen: true"] if self.frozen else []
        return f"  {agent}: {{{', '.join(parts)}}}"


@dataclass(frozen=True)
class Policies:
    """All that is in force."""

    agents: Mapping[str, Terms]
    account_daily: int
    account_frozen: bool = False

    def text(self) -> str:
        """As a policy file."""
        frozen = ", frozen: true" if self.account_frozen else ""
        account = f"accounts:\n  {ACCOUNT}: {{daily_limit: {self.account_daily}{frozen}}}"
        lines = [terms.line(agent) for agent, terms in self.agents.items()]
        return "\n".join(["policies:", *lines, account, f"reviewers: [{', '.join(REVIEWERS)}]"])

    def with_terms(self, agent: str, terms: Terms) -> "Policies":
        """With another policy of one agent."""
        return replace(self, agents={**self.agents, agent: terms})


@dataclass(frozen=True)
class Facts:
    """What a payout is; its state apart, that never changes."""

    agent: str
    amount: int
    host: str = ""


@dataclass
class Known:
    """One payout, as far as the log was read."""

    facts: Facts
    since: int
    """The number of policies that had been in force when it was first shown."""
    at: set[int] = field(default_factory=set)
    """When it was shown while open (µs)."""
    shown: set[str] = field(default_factory=set)
    decided: list[str] = field(default_factory=list)
    approvers: set[str] = field(default_factory=set)
    hold_ends: int = 0
    bypassed: bool = False
    stopped: bool = False
    limited: bool = False
    """It found no slot."""
    exceeded: bool = False
    """It found no room."""
    settled: list[str] = field(default_factory=list)
    reserved: bool = False

    @property
    def is_held(self) -> bool:
        return self.decided == ["HELD"] and not self.bypassed and "released" not in self.settled


@dataclass(frozen=True)
class Numbered:
    """What the counters did under one number."""

    number: int
    order: int
    """A slot comes before the room that has the same number."""
    kind: str
    known: Known
    until: int
    """Policies that had been in force by then."""
    event: e.Event


class Rulebook:
    """Reads one log."""

    def __init__(self, versions: Sequence[Policies], facts: Mapping[str, Facts]) -> None:
        self.versions, self.facts = versions, facts
        self.payouts: dict[str, Known] = {}
        self.in_force = 0
        self.numbered: list[Numbered] = []
        self.answers: Counter[str] = Counter()
        """Of each entry, the reviews that nobody has answered."""
        self.money: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def wrong(self, log: Sequence[Row]) -> Iterator[str]:
        """Everything in the log that the rules do not say, and everything that they say and is not there."""
        for row in log:
            if any(isinstance(event, e.PolicyChanged) for event in row.events):
                self.in_force += 1
            for event in row.events:
                self.answers[row.id] += isinstance(event, e.ReviewSubmitted)
                self.answers[row.meta.cause] -= isinstance(event, e.ReviewCounted | e.ReviewRefused)
                payout = getattr(event, "payout", "")
                for problem in self._read(event, payout, row) if payout else ():
                    yield f"{row.id} {payout} {type(event).__name__}: {problem}"
        for payout, known in self.payouts.items():
            for problem in self._at_rest(known):
                yield f"at rest, {payout}: {problem}"
        yield from (f"review {entry} has no answer, or two" for entry, left in self.answers.items() if left)
        yield from self._counted()

    # ---- entry by entry -----------------------------------------------------------------

    def _read(self, event: e.Event, payout: str, row: Row) -> Iterator[str]:
        if isinstance(event, e.PayoutObserved):
            known = self.payouts.setdefault(payout, Known(self.facts[payout], self.in_force))
            known.shown.add(event.facts.status)
            known.at.add(event.at)
            return
        if payout not in self.payouts:
            if not isinstance(event, e.ReviewSubmitted | e.ReviewRefused):
                yield "the payout was never shown"
            return
        known = self.payouts[payout]
        match event:
            case e.PayoutDecided():
                self._count_of_decision(event, known)
                yield from self._decided(event, known)
            case e.VelocityChecked() if event.number:
                self._count(event.number, 0, "slot", known, event)
            case e.BudgetReserved():
                if known.reserved:
                    yield "it is reserved twice"
                known.reserved = True
                self._count(event.number, 1, "room", known, event)
            case e.PayoutSettled():
                known.settled.append(event.settlement)
                self._count(row.meta.settled, 1, event.settlement, known, event)
            case e.GovernanceBypassed():
                if known.bypassed or "APPROVED" in known.decided[-1:]:
                    yield f"it is bypassed, and was {known.decided}, bypassed: {known.bypassed}"
                if not known.shown & (MOVING | {"reversed"}):
                    yield f"it is bypassed, and was shown as {known.shown}"
                known.bypassed = True
            case e.PayoutStopped():
                known.stopped = True
                if not any(self._frozen(known, v) for v in self._since(known)):
                    yield "it is stopped, and nothing was frozen"
            case e.ReviewCounted() | e.ReviewRefused():
                yield from self._reviewed(event, known)

    def _reviewed(self, event: e.ReviewCounted | e.ReviewRefused, known: Known) -> Iterator[str]:
        counts = known.is_held and event.by in REVIEWERS
        counts = counts and not (event.action == "approve" and event.by in known.approvers)
        if isinstance(event, e.ReviewCounted):
            if not counts:
                yield f"{event.by}'s answer counts, and it is {known.decided}, approved by {known.approvers}"
            if event.action == "approve":
                known.approvers.add(event.by)
        elif counts and event.at < known.hold_ends:
            yield f"{event.by}'s answer to a hold is refused: {event.problem}"

    def _decided(self, event: e.PayoutDecided, known: Known) -> Iterator[str]:
        before, said = list(known.decided), (event.decision, event.reason)
        known.decided.append(event.decision)
        if event.agent != known.facts.agent or event.amount != known.facts.amount:
            yield f"{event.agent} {event.amount} is not what was shown, {known.facts}"
        if not before:
            wanted = self._by_the_rules(known)
            if said != wanted:
                yield f"{said}, by the rules {wanted} (slot refused: {known.limited}, room refused: {known.exceeded})"
            if event.decision == "HELD":
                known.hold_ends = event.at + HOLD_US
                if event.hold_expires_at != known.hold_ends:
                    yield f"it ends at {event.hold_expires_at}, and not an hour after {event.at}"
        elif before == ["HELD"]:
            yield from self._after_hold(event, known)
        elif before[-1] != "APPROVED" or not known.stopped or said != ("REJECTED", "FROZEN"):
            yield f"{said} after {before}"

    def _after_hold(self, event: e.PayoutDecided, known: Known) -> Iterator[str]:
        said = (event.decision, event.reason)
        if event.by:
            stands = self._screened(known)
            dual = self._terms(known, self.in_force)
            enough = 2 if dual and dual.dual is not None and known.facts.amount > dual.dual else 1
            if event.reason == "REVIEW_REJECTED":
                return
            if stands:
                if said != ("REJECTED", stands):
                    yield f"{said} by {event.by}, and {stands} stands against it"
            elif said != ("APPROVED", "REVIEW_APPROVED") or len(known.approvers) < enough:
                yield f"{said} by {known.approvers}, and {enough} must approve"
        elif said != ("REJECTED", "HOLD_EXPIRED") or event.at < known.hold_ends:
            yield f"{said} at {event.at} after a hold that ends at {known.hold_ends}"

    def _by_the_rules(self, known: Known) -> tuple[str, str]:
        """The rules in their order, under what is in force now."""
        if stands := self._screened(known):
            return "REJECTED", stands
        terms = self._terms(known, self.in_force)
        assert terms is not None
        if known.limited:
            return "REJECTED", "RATE_LIMITED"
        if known.facts.host.startswith("malware"):
            return "REJECTED", "RISK_HIGH"
        if known.exceeded:
            return "REJECTED", "LIMIT_EXCEEDED"
        if known.facts.host.startswith("unknown"):
            return "HELD", "REPUTATION_UNAVAILABLE"
        thresholds = [above for above in (terms.above, terms.dual) if above is not None]
        if thresholds and known.facts.amount > min(thresholds):
            return "HELD", "APPROVAL_REQUIRED"
        return "APPROVED", "POLICY_OK"

    def _screened(self, known: Known) -> str:
        terms = self._terms(known, self.in_force)
        if self._frozen(known, self.in_force):
            return "FROZEN"
        if terms is None:
            return "NO_POLICY"
        if terms.per_txn is not None and known.facts.amount > terms.per_txn:
            return "TXN_LIMIT_EXCEEDED"
        return "DOMAIN_BLOCKED" if terms.blocks and known.facts.host == "bad.example" else ""

    def _terms(self, known: Known, version: int) -> Terms | None:
        return self.versions[version - 1].agents.get(known.facts.agent) if version else None

    def _frozen(self, known: Known, version: int) -> bool:
        terms = self._terms(known, version)
        return bool(version) and (self.versions[version - 1].account_frozen or bool(terms and terms.frozen))

    def _since(self, known: Known) -> range:
        """The policies that were in force at some time since it was first shown."""
        return range(known.since, self.in_force + 1)

    # ---- when all is done ---------------------------------------------------------------

    def _at_rest(self, known: Known) -> Iterator[str]:
        if not known.decided and not known.bypassed and not known.shown & (MOVING | BACK):
            yield f"it is open and was never decided (shown as {known.shown})"
        if not known.bypassed and "APPROVED" not in known.decided and known.shown & (MOVING | {"reversed"}):
            yield f"it moved ({known.shown}) without an approval, and that is not on record"
        if known.settled not in ([], ["committed"], ["released"], ["committed", "released"]):
            yield f"it is settled {known.settled}"
        if not known.reserved:
            return
        wanted = "reserved"
        if known.shown & BACK:
            wanted = "released"
        elif "processed" in known.shown:
            wanted = "released" if "released" in known.settled and known.bypassed else "committed"
        elif known.decided[-1:] == ["REJECTED"] and not known.shown & MOVING:
            wanted = "released"
        is_now = known.settled[-1] if known.settled else "reserved"
        if is_now != wanted and not (known.bypassed and is_now == "released"):
            yield f"its reservation is {is_now}, decided {known.decided}, shown as {known.shown}"

    # ---- the counters, in the order of their numbers ------------------------------------

    def _count(self, number: int, order: int, kind: str, known: Known, event: e.Event) -> None:
        self.numbered.append(Numbered(number, order, kind, known, self.in_force, event))

    def _count_of_decision(self, event: e.PayoutDecided, known: Known) -> None:
        for finding in event.findings:
            number = finding.evidence.get("number")
            if finding.code == "RATE_LIMITED" and not known.decided:
                known.limited = True
                self._count(int(str(number)), 0, "no slot", known, event)
            elif finding.code == "LIMIT_EXCEEDED" and not known.decided:
                known.exceeded = True
                self._count(int(str(number)), 1, "no room", known, event)

    def _counted(self) -> Iterator[str]:
        numbers = {one.number for one in self.numbered}
        # "No room" is not on record where the payout is decided anew, since policies came meanwhile, and now something
        # that is looked at before says no. What had taken something would be missed in Redis's sums.
        if len(self.versions) == 1 and numbers != set(range(1, len(numbers) + 1)):
            yield f"numbers are missing: {sorted(numbers)}"
        slots: dict[str, list[int]] = defaultdict(list)
        for one in sorted(self.numbered, key=lambda one: (one.number, one.order)):
            for problem in self._counts(one, slots[one.known.facts.agent]):
                yield f"number {one.number}, {one.kind} of {one.known.facts}: {problem}"

    def _counts(self, one: Numbered, slots: list[int]) -> Iterator[str]:
        match one.kind:
            case "slot" | "no slot":
                yield from self._slot(one, slots)
            case "room":
                assert isinstance(one.event, e.BudgetReserved)
                yield from self._room(one, one.event)
            case "no room":
                yield from self._no_room(one)
            case _:
                assert isinstance(one.event, e.PayoutSettled)
                yield from self._settles(one, one.event)

    def _slot(self, one: Numbered, slots: list[int]) -> Iterator[str]:
        rates = {terms.rate for v in self._versions(one) if (terms := self._terms(one.known, v))}
        newest = slots[-1] if slots else 0
        for at in sorted(one.known.at):
            moment = max(at, newest)
            used = sum(taken > moment - RATE_US for taken in slots)
            if any(rate and (used < rate) == (one.kind == "slot") for rate in rates):
                if one.kind == "slot":
                    slots.append(moment)
                return
        yield f"it was shown at {sorted(one.known.at)}; slots were taken at {slots}, and there may be {rates}"

    def _room(self, one: Numbered, event: e.BudgetReserved) -> Iterator[str]:
        scopes = [use.scope for use in event.windows]
        if (
            scopes != [f"agent:{one.known.facts.agent}", f"account:{ACCOUNT}"]
            or event.amount != one.known.facts.amount
        ):
            yield f"{event.amount} is charged to {scopes}"
        for use in event.windows:
            if use.window not in {day_of(at) for at in one.known.at}:
                yield f"it is charged to {use.window}, and was shown at {one.known.at}"
            there = self.money[use.scope, use.window]
            if [use.reserved, use.committed] != there:
                yield f"it met {use.reserved} + {use.committed} in {use.scope}, and there were {there}"
            if use.limit not in self._limits(one, use.scope):
                yield f"no policy limits {use.scope} to {use.limit}"
            if use.limit is not None and sum(there) + event.amount > use.limit:
                yield f"{use.scope} holds {there} of {use.limit} already"
            there[0] += event.amount

    def _no_room(self, one: Numbered) -> Iterator[str]:
        assert isinstance(one.event, e.PayoutDecided)
        [evidence] = [f.evidence for f in one.event.findings if f.code == "LIMIT_EXCEEDED"]
        scope, limit = str(evidence["scope"]), int(str(evidence["limit"]))
        there = self.money[scope, str(evidence["window"])]
        if limit not in self._limits(one, scope) or sum(there) + one.known.facts.amount <= limit:
            yield f"{scope} holds {there}, its limits were {self._limits(one, scope)}"

    def _settles(self, one: Numbered, event: e.PayoutSettled) -> Iterator[str]:
        before = one.known.settled[: one.known.settled.index(event.settlement)]
        for scope, window in event.windows:
            self.money[scope, window][1 if before else 0] -= event.amount
            if event.settlement == "committed":
                self.money[scope, window][1] += event.amount
        if not one.number:
            yield "the settlement has no number"

    def _versions(self, one: Numbered) -> range:
        return range(max(1, one.known.since), one.until + 1)

    def _limits(self, one: Numbered, scope: str) -> set[int | None]:
        if scope.startswith("account:"):
            return {self.versions[v - 1].account_daily for v in self._versions(one)}
        return {terms.daily for v in self._versions(one) if (terms := self._terms(one.known, v))}


def day_of(at_us: int) -> str:
    """The calendar day in India."""
    return (datetime.fromtimestamp(at_us // 1_000_000, UTC) + INDIA).strftime("%Y-%m-%d")
