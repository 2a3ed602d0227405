"""What a log must contain according to docs/governance.md, in sets and integers and without code of the product.

`wrong` reads a log from its beginning, and at each entry knows which policies are in force and what was shown and
decided of each payout. Then it compares the answers of the counters, in the order of their numbers, with plain sums.
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
    """One agent's policy, in paise. None: no limit; `rate` 0: no rate limit."""

    daily: int | None = None
    per_txn: int | None = None
    above: int | None = None
    """Amounts above this need an approval."""
    dual: int | None = None
    rate: int = 0
    blocks: bool = False
    """Whether bad.example is blocked."""
    frozen: bool = False

    def line(self, agent: str) -> str:
        """The policy as a line of a policy file."""
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
    """All policies in force."""

    agents: Mapping[str, Terms]
    account_daily: int
    account_frozen: bool = False

    def text(self) -> str:
        """The policy file."""
        frozen = ", frozen: true" if self.account_frozen else ""
        account = f"accounts:\n  {ACCOUNT}: {{daily_limit: {self.account_daily}{frozen}}}"
        lines = [terms.line(agent) for agent, terms in self.agents.items()]
        return "\n".join(["policies:", *lines, account, f"reviewers: [{', '.join(REVIEWERS)}]"])

    def with_terms(self, agent: str, terms: Terms) -> "Policies":
        """The same policies with another one for this agent."""
        return replace(self, agents={**self.agents, agent: terms})


@dataclass(frozen=True)
class Facts:
    """The parts of a payout that never change."""

    agent: str
    amount: int
    host: str = ""


@dataclass
class Known:
    """What the log, as far as it was read, says of one payout."""

    facts: Facts
    since: int
    """The version of the policies in force when it was first shown."""
    at: set[int] = field(default_factory=set)
    """Times at which it was shown (µs)."""
    shown: set[str] = field(default_factory=set)
    decided: list[str] = field(default_factory=list)
    approvers: set[str] = field(default_factory=set)
    hold_ends: int = 0
    bypassed: bool = False
    stopped: bool = False
    limited: bool = False
    """Whether it found no free rate slot."""
    exceeded: bool = False
    """Whether it found no room in a budget."""
    settled: list[str] = field(default_factory=list)
    reserved: bool = False

    @property
    def is_held(self) -> bool:
        return self.decided == ["HELD"] and not self.bypassed and "released" not in self.settled


@dataclass(frozen=True)
class Numbered:
    """What the counters did under one of their numbers."""

    number: int
    order: int
    """0 for a slot, 1 for room: of the same number, the slot comes first."""
    kind: str
    known: Known
    until: int
    """The version of the policies in force by then."""
    event: e.Event


class Rulebook:
    """The rules, applied to one log."""

    def __init__(self, versions: Sequence[Policies], facts: Mapping[str, Facts]) -> None:
        self.versions, self.facts = versions, facts
        self.payouts: dict[str, Known] = {}
        self.in_force = 0
        self.numbered: list[Numbered] = []
        self.answers: Counter[str] = Counter()
        """For each entry, the number of its reviews that have no answer yet."""
        self.money: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])

    def wrong(self, log: Sequence[Row]) -> Iterator[str]:
        """All differences between the log and the rules."""
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
        before, decided = list(known.decided), (event.decision, event.reason)
        known.decided.append(event.decision)
        if event.agent != known.facts.agent or event.amount != known.facts.amount:
            yield f"{event.agent} {event.amount} is not what was shown, {known.facts}"
        if not before:
            expected = self._by_the_rules(known)
            if decided != expected:
                yield (
                    f"{decided}, by the rules {expected}"
                    f" (slot refused: {known.limited}, room refused: {known.exceeded})"
                )
            if event.decision == "HELD":
                known.hold_ends = event.at + HOLD_US
                if event.hold_expires_at != known.hold_ends:
                    yield f"it ends at {event.hold_expires_at}, and not an hour after {event.at}"
        elif before == ["HELD"]:
            yield from self._after_hold(event, known)
        elif before[-1] != "APPROVED" or not known.stopped or decided != ("REJECTED", "FROZEN"):
            yield f"{decided} after {before}"

    def _after_hold(self, event: e.PayoutDecided, known: Known) -> Iterator[str]:
        decided = (event.decision, event.reason)
        if event.by:
            objection = self._screened(known)
            dual = self._terms(known, self.in_force)
            enough = 2 if dual and dual.dual is not None and known.facts.amount > dual.dual else 1
            if event.reason == "REVIEW_REJECTED":
                return
            if objection:
                if decided != ("REJECTED", objection):
                    yield f"{decided} by {event.by}, and {objection} stands against it"
            elif decided != ("APPROVED", "REVIEW_APPROVED") or len(known.approvers) < enough:
                yield f"{decided} by {known.approvers}, and {enough} must approve"
        elif decided != ("REJECTED", "HOLD_EXPIRED") or event.at < known.hold_ends:
            yield f"{decided} at {event.at} after a hold that ends at {known.hold_ends}"

    def _by_the_rules(self, known: Known) -> tuple[str, str]:
        """The first decision by the rules in their order, under the policies in force now."""
        if objection := self._screened(known):
            return "REJECTED", objection
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
        """The versions of the policies that were in force at some time since it was first shown."""
        return range(known.since, self.in_force + 1)

    # ---- at rest -----------------------------------------------------------------------

    def _at_rest(self, known: Known) -> Iterator[str]:
        if not known.decided and not known.bypassed and not known.shown & (MOVING | BACK):
            yield f"it is open and was never decided (shown as {known.shown})"
        if not known.bypassed and "APPROVED" not in known.decided and known.shown & (MOVING | {"reversed"}):
            yield f"it moved ({known.shown}) without an approval, and that is not on record"
        if known.settled not in ([], ["committed"], ["released"], ["committed", "released"]):
            yield f"it is settled {known.settled}"
        if not known.reserved:
            return
        expected = "reserved"
        if known.shown & BACK:
            expected = "released"
        elif "processed" in known.shown:
            expected = "released" if "released" in known.settled and known.bypassed else "committed"
        elif known.decided[-1:] == ["REJECTED"] and not known.shown & MOVING:
            expected = "released"
        is_now = known.settled[-1] if known.settled else "reserved"
        if is_now != expected and not (known.bypassed and is_now == "released"):
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
        numbers = {item.number for item in self.numbered}
        # "No room" is not recorded if policies changed meanwhile, and the payout, decided anew, is rejected by an
        # earlier rule. A number that had reserved something would be missed in Redis's sums.
        if len(self.versions) == 1 and numbers != set(range(1, len(numbers) + 1)):
            yield f"numbers are missing: {sorted(numbers)}"
        slots: dict[str, list[int]] = defaultdict(list)
        for item in sorted(self.numbered, key=lambda item: (item.number, item.order)):
            for problem in self._counts(item, slots[item.known.facts.agent]):
                yield f"number {item.number}, {item.kind} of {item.known.facts}: {problem}"

    def _counts(self, item: Numbered, slots: list[int]) -> Iterator[str]:
        match item.kind:
            case "slot" | "no slot":
                yield from self._slot(item, slots)
            case "room":
                assert isinstance(item.event, e.BudgetReserved)
                yield from self._room(item, item.event)
            case "no room":
                yield from self._no_room(item)
            case _:
                assert isinstance(item.event, e.PayoutSettled)
                yield from self._settles(item, item.event)

    def _slot(self, item: Numbered, slots: list[int]) -> Iterator[str]:
        rates = {terms.rate for v in self._versions(item) if (terms := self._terms(item.known, v))}
        newest = slots[-1] if slots else 0
        for at in sorted(item.known.at):
            moment = max(at, newest)
            used = sum(taken > moment - RATE_US for taken in slots)
            if any(rate and (used < rate) == (item.kind == "slot") for rate in rates):
                if item.kind == "slot":
                    slots.append(moment)
                return
        yield f"it was shown at {sorted(item.known.at)}; slots were taken at {slots}, and there may be {rates}"

    def _room(self, item: Numbered, event: e.BudgetReserved) -> Iterator[str]:
        scopes = [use.scope for use in event.windows]
        if (
            scopes != [f"agent:{item.known.facts.agent}", f"account:{ACCOUNT}"]
            or event.amount != item.known.facts.amount
        ):
            yield f"{event.amount} is charged to {scopes}"
        for use in event.windows:
            if use.window not in {day_of(at) for at in item.known.at}:
                yield f"it is charged to {use.window}, and was shown at {item.known.at}"
            sums = self.money[use.scope, use.window]
            if [use.reserved, use.committed] != sums:
                yield f"it met {use.reserved} + {use.committed} in {use.scope}, and there were {sums}"
            if use.limit not in self._limits(item, use.scope):
                yield f"no policy limits {use.scope} to {use.limit}"
            if use.limit is not None and sum(sums) + event.amount > use.limit:
                yield f"{use.scope} holds {sums} of {use.limit} already"
            sums[0] += event.amount

    def _no_room(self, item: Numbered) -> Iterator[str]:
        assert isinstance(item.event, e.PayoutDecided)
        [evidence] = [f.evidence for f in item.event.findings if f.code == "LIMIT_EXCEEDED"]
        scope, limit = str(evidence["scope"]), int(str(evidence["limit"]))
        sums = self.money[scope, str(evidence["window"])]
        if limit not in self._limits(item, scope) or sum(sums) + item.known.facts.amount <= limit:
            yield f"{scope} holds {sums}, its limits were {self._limits(item, scope)}"

    def _settles(self, item: Numbered, event: e.PayoutSettled) -> Iterator[str]:
        before = item.known.settled[: item.known.settled.index(event.settlement)]
        for scope, window in event.windows:
            self.money[scope, window][1 if before else 0] -= event.amount
            if event.settlement == "committed":
                self.money[scope, window][1] += event.amount
        if not item.number:
            yield "the settlement has no number"

    def _versions(self, item: Numbered) -> range:
        return range(max(1, item.known.since), item.until + 1)

    def _limits(self, item: Numbered, scope: str) -> set[int | None]:
        if scope.startswith("account:"):
            return {self.versions[v - 1].account_daily for v in self._versions(item)}
        return {terms.daily for v in self._versions(item) if (terms := self._terms(item.known, v))}


def day_of(at_us: int) -> str:
    """The calendar day in India."""
    return (datetime.fromtimestamp(at_us // 1_000_000, UTC) + INDIA).strftime("%Y-%m-%d")
