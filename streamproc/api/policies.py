"""`/v1/policies`, `/v1/freezes`, `/v1/agents/{agent}/budget`: what agents may do, and who changes it: an admin.

200 in force    202 it loosens a rule and waits for a second person    404 no such policy, or another agent's
412 another version is in force    422 each wrong field with its problem    409 the proposal is over, and by whom
"""

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from msgspec import Struct
from starlette.responses import Response

from streamproc.api import policy_shapes as shapes
from streamproc.api.answers import Refusal, json_answer, wrong_field, wrong_fields
from streamproc.api.operations import Call, Number, Operation, Says, Text
from streamproc.domain.attribution import WHY_CHARS_MAX, Attribution
from streamproc.domain.plain import clean
from streamproc.domain.policy_changes import NONE_YET, NoPolicy, Overtaken, Stale, is_scope
from streamproc.domain.policy_fields import IDENTIFIER
from streamproc.domain.policy_report import WrongFields
from streamproc.domain.proposals import ID, NotThere, Refused, SamePerson
from streamproc.domain.shown import for_its_agent
from streamproc.errors import InputError

PAGE_MAX = 500
"""Changes in one answer: each may have a list of domains before and after."""
PAGE = 100
PROPOSALS_PAGE_MAX = 20
"""Proposals in one answer: each may have 256 KiB."""
HISTORY_MAX = 1_000_000

AGENT = Text("agent", "an agent's id", IDENTIFIER.pattern, where="path")
SCOPE = Text(
    "scope",
    "agent:<id>, account:<id> or team:<id>",
    f"(agent|account|team):{IDENTIFIER.pattern}",
    where="path",
)
AGENT_OR_SCOPE = Text(
    "agent",
    "an agent's id; where the token shows all, also account:<id>, team:<id>, freeze: and one of these, defaults,"
    " reviewers, agents or changes",
    f"((freeze:)?(agent|account|team):)?{IDENTIFIER.pattern}",
    where="path",
)
PROPOSAL = Text("proposal", "a proposal's id", ID.pattern, where="path")
WHY = Text("why", f"1 to {WHY_CHARS_MAX} characters", rf"[\s\S]{{1,{WHY_CHARS_MAX}}}")
IF_MATCH = Text(
    "If-Match",
    'the ETag of the version that is to be changed, like "3"',
    r'\*|"[1-9][0-9]{0,8}"',
    where="header",
)
IF_NONE_MATCH = Text("If-None-Match", "*: only where the agent has no policy", r"\*", where="header")
ACCOUNT = Text(
    "account", "an account's id; by default the one that this installation pays from", IDENTIFIER.pattern
)


FULL = Says("It would wait for a second person, and too many changes do so already")


class Made(Struct, frozen=True):
    """The result of a change: what is in force now, or the proposal that waits."""

    version: int = 0
    changes: list[dict[str, Any]] = []
    left: list[str] = []
    proposal: dict[str, Any] | None = None


NEWER = Says("It was frozen anew meanwhile, by whom; or too many proposals wait")


class PolicyService(Protocol):
    """What these routes need (operate/policy_service.py). Raises InputError, JobFailed and LogUnavailable."""

    async def policy(self, agent: str) -> dict[str, Any] | None:
        """An agent's policy; None: it has none."""
        ...

    async def change(
        self,
        agent: str,
        fields: Mapping[str, Any],
        attribution: Attribution,
        *,
        replaces: bool,
        version: int | None,
    ) -> Made:
        """Put fields in force, instead of an agent's own (`replaces`) or merged into them. `version` must be the one in
        force; None: any or none; 0: any; NONE_YET: none."""
        ...

    async def history(self, name: str, *, of_agent: bool) -> tuple[list[dict[str, Any]], str] | None:
        """The changes of an agent or, without `of_agent`, of a scope, the oldest first, and what may be missing; None:
        there are none."""
        ...

    async def proposals(self) -> list[dict[str, Any]]:
        """The proposals that are kept, the newest first."""
        ...

    async def confirm(self, proposal: str, attribution: Attribution) -> Made:
        """Put a proposal in force, as its second person."""
        ...

    async def withdraw(self, proposal: str, attribution: Attribution) -> dict[str, Any]:
        """Withdraw a proposal."""
        ...

    async def freezes(self) -> list[dict[str, Any]]:
        """The freezes in force."""
        ...

    async def freeze(
        self, scope: str, attribution: Attribution, *, frozen: bool
    ) -> tuple[dict[str, Any], Made]:
        """Freeze a scope or lift its freeze; what is in force now, and the proposal if it waits."""
        ...

    async def budget(self, agent: str, account: str) -> list[dict[str, Any]] | None:
        """The windows that limit the agent now; None: it has no policy. InputError if an account must be named."""
        ...


def policy_operations(service: PolicyService) -> list[Operation]:
    """The routes of policies and of what waits for a second person."""
    it = _Policies(service)
    changed = {
        200: Says("In force", shapes.Changes, {"ETag": "The version that is in force"}),
        202: Says("It loosens something: nothing is in force until somebody else confirms it", shapes.Waits,
                  {"Location": "Where it is listed"}),
        409: FULL,
        412: Says("Another version than If-Match names, and not as asked for; or one where If-None-Match wants none"),
    }  # fmt: skip
    page = (Number("limit", "how many", 1, PAGE_MAX, PAGE),
            Number("after", "the `next` of another answer", 0, HISTORY_MAX, 0))  # fmt: skip
    over = {409: Says("It is over, by whom and when; or no longer fits what is in force")}
    return [
        Operation(
            method="GET", path="/v1/policies/{agent:path}", name="showPolicy", summary="An agent's policy in force",
            action="read own", reads=(AGENT,), handle=it.show,
            says={200: Says("The policy", shapes.PolicyShown, {"ETag": "Its version"})},
        ),
        Operation(
            method="PUT", path="/v1/policies/{agent:path}", name="replacePolicy",
            summary="Replace an agent's own fields, or give it a policy", action="administer",
            reads=(AGENT, IF_MATCH, IF_NONE_MATCH), body=shapes.POLICY, handle=it.put, says=changed,
        ),
        Operation(
            method="PATCH", path="/v1/policies/{agent:path}", name="changePolicy",
            summary="Change the fields that are named and no others; null takes one away", action="administer",
            reads=(AGENT, IF_MATCH), body=shapes.POLICY, handle=it.patch, says=changed,
        ),
        Operation(
            method="GET", path="/v1/policies/{agent:path}/history", name="listPolicyChanges",
            summary="Every change of an agent's policy, or of a scope, and its freezes: what, who, why",
            action="read own", reads=(AGENT_OR_SCOPE, *page), handle=it.history,
            says={200: Says("A page", shapes.History)},
        ),
        Operation(
            method="GET", path="/v1/policies/proposals", name="listProposals",
            summary="Changes that wait for a second person, or did in the last week", action="read all",
            reads=(Number("limit", "how many", 1, PROPOSALS_PAGE_MAX, PROPOSALS_PAGE_MAX),
                   Text("after", "the `next` of another answer", ID.pattern)),
            handle=it.proposals, says={200: Says("A page, the newest first", shapes.Proposals)},
        ),
        Operation(
            method="POST", path="/v1/policies/proposals/{proposal}/confirm", name="confirmProposal",
            summary="Put a proposed change in force, as its second person", action="administer", reads=(PROPOSAL,),
            handle=it.confirm, says=over | {
                200: Says("In force", shapes.Changes, {"ETag": "The agent's version in force, if one agent's changed"}),
                403: Says("Not this token, or not this person: who proposed it cannot confirm it"),
            },
        ),
        Operation(
            method="DELETE", path="/v1/policies/proposals/{proposal}", name="withdrawProposal",
            summary="End a proposed change that waits", action="administer", reads=(PROPOSAL, WHY),
            handle=it.withdraw, says=over | {200: Says("Withdrawn", shapes.ProposalShown)},
        ),
    ]  # fmt: skip


def freeze_operations(service: PolicyService) -> list[Operation]:
    """The routes of freezes and budgets."""
    it = _Policies(service)
    waits = Says("Lifting it waits for a second person", shapes.Waits, {"Location": "Where it is listed"})
    return [
        Operation(
            method="GET", path="/v1/freezes", name="listFreezes", summary="Every freeze that is in force",
            action="read all", handle=it.freezes, says={200: Says("All of them", shapes.Freezes)},
        ),
        Operation(
            method="PUT", path="/v1/freezes/{scope:path}", name="freeze",
            summary="Stop every payout of an agent, an account or a team, now", action="administer",
            reads=(SCOPE,), body=shapes.Freeze, handle=it.freeze, says={200: Says("Frozen", shapes.Frozen)},
        ),
        Operation(
            method="DELETE", path="/v1/freezes/{scope:path}", name="unfreeze", summary="Lift a freeze",
            action="administer", reads=(SCOPE, Text(WHY.name, WHY.means, WHY.pattern, required=True)),
            handle=it.unfreeze, says={200: Says("What is in force", shapes.Frozen), 202: waits, 409: NEWER},
        ),
        Operation(
            method="GET", path="/v1/agents/{agent:path}/budget", name="showBudget",
            summary="What an agent may still spend, now", action="read own", reads=(AGENT, ACCOUNT),
            handle=it.budget, says={200: Says("Its windows", shapes.Budget)},
        ),
    ]  # fmt: skip


class _Policies:
    """The handlers."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service

    async def show(self, call: Call) -> Response:
        agent = _own_or_all(call)
        found = await self._service.policy(agent)
        if found is None:
            _no_policy(agent)
        return json_answer(200, found, {"etag": f'"{found["version"]}"'})

    async def put(self, call: Call) -> Response:
        return await self._change(call, replaces=True)

    async def patch(self, call: Call) -> Response:
        return await self._change(call, replaces=False)

    async def _change(self, call: Call, *, replaces: bool) -> Response:
        fields = dict(call.body)
        why = _why(fields.pop("why", ""))
        agent = call.text("agent")
        try:
            made = await self._service.change(
                agent, fields, call.token.attribution(why), replaces=replaces, version=_version_wanted(call)
            )
        except NoPolicy:
            _no_policy(agent)
        except Stale as stale:
            raise Refusal(412, str(stale)) from stale
        except Refused as full:
            raise Refusal(409, str(full)) from full
        except InputError as problem:
            raise _by_field(problem, f"policies.{agent}.") from problem
        return _made(made)

    async def history(self, call: Call) -> Response:
        name = _own_or_all(call)
        # An agent may be called `reviewers`: its token shows the agent's history all the same, and not the scope's.
        is_agent = not call.token.may("read all")
        found = await self._service.history(name, of_agent=is_agent)
        if found is None:
            _no_policy(name)
        changes, note = found
        first, last = call.number("after"), call.number("after") + call.number("limit")
        more = last if last < len(changes) else None
        items = [for_its_agent(change) if is_agent else change for change in changes[first:last]]
        return json_answer(200, {"items": items, "next": more, "notes": [note] if note else []})

    async def proposals(self, call: Call) -> Response:
        found, after = await self._service.proposals(), call.text("after")
        ids = [one["id"] for one in found]
        if after and after not in ids:
            raise wrong_field("after", "is not a proposal that is kept: ask again without it")
        first = ids.index(after) + 1 if after else 0
        last = first + call.number("limit")
        more = ids[last - 1] if last < len(ids) else None
        return json_answer(200, {"items": found[first:last], "next": more})

    async def confirm(self, call: Call) -> Response:
        try:
            done = await self._service.confirm(call.text("proposal"), call.token.attribution())
        except (NotThere, Refused, InputError) as problem:
            raise _not_now(problem) from problem
        return _made(done)

    async def withdraw(self, call: Call) -> Response:
        why = clean(call.text("why"), WHY_CHARS_MAX)
        try:
            ended = await self._service.withdraw(call.text("proposal"), call.token.attribution(why))
        except (NotThere, Refused) as problem:
            raise _not_now(problem) from problem
        return json_answer(200, ended)

    async def freezes(self, _call: Call) -> Response:
        return json_answer(200, {"items": await self._service.freezes()})

    async def freeze(self, call: Call) -> Response:
        return await self._freeze(call, call.body.why, frozen=True)

    async def unfreeze(self, call: Call) -> Response:
        return await self._freeze(call, call.text("why"), frozen=False)

    async def _freeze(self, call: Call, why: str, *, frozen: bool) -> Response:
        why = clean(why.strip(), WHY_CHARS_MAX)
        if not why:
            raise wrong_field("why", "must say why, for the audit")
        try:
            shown, made = await self._service.freeze(
                call.text("scope"), call.token.attribution(why), frozen=frozen
            )
        except Refused as full:
            raise Refusal(409, str(full)) from full
        except Overtaken as newer:
            if frozen:  # a freeze may be asked for again by any program
                raise
            raise Refusal(409, str(newer)) from newer
        except InputError as problem:
            raise wrong_field("scope", str(problem)) from problem
        return _made(made) if made.proposal is not None else json_answer(200, shown)

    async def budget(self, call: Call) -> Response:
        agent, account = _own_or_all(call), call.text("account")
        if not call.token.may("read all"):
            if account not in ("", call.token.account):
                _no_policy(agent)
            account = call.token.account
        try:
            windows = await self._service.budget(agent, account)
        except InputError as problem:
            raise wrong_field("account", str(problem)) from problem
        if windows is None:
            _no_policy(agent)
        return json_answer(200, {"agent": agent, "windows": windows})


def _own_or_all(call: Call) -> str:
    """The path's agent, if this token may see it."""
    agent, token = call.text("agent"), call.token
    if not token.may("read all") and agent != token.agent:
        _no_policy(agent)
    return agent


def _no_policy(agent: str) -> NoReturn:
    raise Refusal(404, f"there is no policy of {'' if is_scope(agent) else 'agent '}{agent}")


def _version_wanted(call: Call) -> int | None:
    match = call.text("If-Match")
    if call.text("If-None-Match"):
        if match:
            raise wrong_field("If-None-Match", "contradicts If-Match")
        return NONE_YET
    return None if not match else 0 if match == "*" else int(match.strip('"'))


def _why(given: object) -> str:
    if not isinstance(given, str) or len(given) > WHY_CHARS_MAX:
        raise wrong_field("why", f"must be text of at most {WHY_CHARS_MAX} characters")
    return clean(given.strip(), WHY_CHARS_MAX)


def _by_field(problem: InputError, prefix: str) -> Refusal:
    errors = problem.errors if isinstance(problem, WrongFields) else [("", str(problem))]
    shown = [
        {"field": _safe(path.removeprefix(prefix)) or "agent", "problem": _safe(text)}
        for path, text in errors
    ]
    return wrong_fields(list({(one["field"], one["problem"]): one for one in shown}.values()))


def _safe(text: str) -> str:
    """A name from a request, without characters that no answer may hold."""
    return clean(text, 500)


def _not_now(problem: Exception) -> Refusal:
    if isinstance(problem, NotThere):
        return Refusal(404, "there is no such proposal")
    return Refusal(403 if isinstance(problem, SamePerson) else 409, str(problem))


def _made(made: Made) -> Response:
    if made.proposal is not None:
        return json_answer(202, {"proposal": made.proposal}, {"location": "/v1/policies/proposals"})
    headers = {"etag": f'"{made.version}"'} if made.version else {}
    return json_answer(
        200, {"changed": bool(made.changes), "changes": made.changes, "left": made.left}, headers
    )
