"""A batch is decided as its payouts would be one by one, in the order of the decisions.

The fast path, which uses what a worker remembers of Redis and of similar payouts, is compared with the chain, which
looks at each payout as a whole. Of several payouts to a new beneficiary in one batch, each sees what was known before
the batch; so all beneficiaries here were paid before.
"""

import asyncio
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from consumers.plans import BookPlans
from streamproc.bench.pure import NoCache
from streamproc.domain.events import PayoutObserved, PayoutRequested
from streamproc.log import remembered
from tests.model.playing import Crew, counters, stories
from tests.model.stepping import START, Row, World, governance, the_tests_clock, vendors
from tests.words import ACCOUNT, observed, requested

pytestmark = pytest.mark.timeout(600)  # seconds, on a busy machine; alone each test takes a few

BEFORE = START - 100_000_000
POLICIES = f"""
defaults: {{rate_limit: {{count: 3, window: 60}}, blocked_domains: [bad.example], hold_ttl: 1h}}
policies:
  bot: {{daily_limit: 1000, weekly_limit: 1500, require_approval_above: 400, queued_hold: cancel}}
  free: {{rate_limit: {{count: 0}}, count_fees: true, vendor_daily_limit: 700, per_txn_limit: 500}}
  wary: {{on_rate_limit: hold, team: ops, require_approval_above: 300, per_txn_limit: 600}}
  night: {{hours: "00:00-00:01", require_verified_identity: true, per_txn_limit: 300, team: ops}}
  easy: {{rate_limit: {{count: 0}}}}
  ice: {{frozen: true}}
accounts:
  {ACCOUNT}: {{daily_limit: 2500}}
teams:
  ops: {{daily_limit: 900}}
"""
SHOPS, ACCOUNTS = ("https://shop.example/100%25?%d", "https://other.example/"), ("fa_1", "fa_2")
URLS = (*SHOPS, *SHOPS[:1] * 8, "https://bad.example/", "not a url")
payouts = st.builds(
    observed,
    st.integers(0, 60).map("pout_{}".format),
    st.sampled_from([10, 20, 100, 300, 301, 400, 401, 501]),
    agent=st.sampled_from(["bot", "free", "easy", "wary", "night"] * 3 + ["ice", "stranger"]),
    url=st.sampled_from(URLS),
    status=st.sampled_from(["pending"] * 9 + ["queued", "processing"]),
    fund_account=st.sampled_from([*ACCOUNTS, *ACCOUNTS[:1] * 4]),
    at=st.integers(0, 90).map(lambda s: BEFORE + s * 1_000_000),
)
intents = st.builds(
    requested,
    st.sampled_from([100, 301, 401]),
    key=st.sampled_from(["k1", "k2", "k3"]),
    agent=st.sampled_from(["bot", "free", "wary", "ice"]),
    url=st.sampled_from([SHOPS[0], "https://bad.example/"]),
    at=st.just(BEFORE),
)
batches = st.lists(
    st.lists(payouts | payouts | payouts | intents, min_size=3, max_size=14), min_size=2, max_size=4
)
Batch = list[PayoutObserved | PayoutRequested]


def paid_before() -> Batch:
    """Two payouts for each vendor (or none) and fund account: the first notes the pair, the second finds it noted."""
    return [
        observed(f"pout_{url}{account}{n}", 1, agent="easy", url=url, fund_account=account, at=BEFORE)
        for url in (*SHOPS, None)
        for account in (*ACCOUNTS, "")
        for n in range(2)
    ]


async def played(url: str, batches: list[Batch], *, fast_path: bool) -> tuple[list[Row], dict[str, Any]]:
    """Handle one batch after the other, each read at once.

    Returns the log, and the rest of Redis with the records that have a time to live.
    """
    known = vendors()  # for a vendor that it has to look up, the chain takes two numbers
    await known.of(SHOPS, NoCache(), START)
    async with Crew(World(url), [governance(fast_path=fast_path, known=known)]) as crew:
        await crew.world.apply(POLICIES)
        for batch in batches:
            for event in batch:
                await crew.tell(event)
            await crew.rest()
        state = await counters(crew.world)
        ends = {key for key in state if ":payout:" in key and await crew.world.client.ttl(key) > 0}
        return await crew.world.rows(), state | {"ends": ends}


def one_by_one(rows: list[Row]) -> list[Batch]:
    """Batches of one event each: the inputs in the order in which they were handled."""
    inputs = {row.id: row.events for row in rows if row.meta.by == "test"}
    order = dict.fromkeys(row.meta.cause for row in rows if row.meta.cause in inputs)
    silent = [entry for entry in inputs if entry not in order]  # without outputs
    return [inputs[entry] for entry in [*order, *silent]]  # type: ignore[misc]


async def agree(url: str, batches: list[Batch], believed_s: float) -> None:
    before = [[event] for event in paid_before()]
    with mock.patch.object(remembered, "BELIEVED_S", believed_s):
        rows, state = await played(url, [*before, *batches], fast_path=True)
    chain_rows, chain_state = await played(url, one_by_one(rows), fast_path=False)
    assert {payout: sorted(story) for payout, story in stories(rows).items()} == {
        payout: sorted(story) for payout, story in stories(chain_rows).items()
    }
    assert state.keys() == chain_state.keys()
    for key, value in state.items():
        if ":rate:" in key:  # slots that a batch pushes out of the window are removed with the next one
            few, many = sorted((value, chain_state[key]), key=len)
            assert many[len(many) - len(few) :] == few, key
        else:
            assert value == chain_state[key], key


@pytest.mark.parametrize(
    "examples", [pytest.param(40, id="quick"), pytest.param(100, id="long", marks=pytest.mark.soak)]
)
def test_a_batch_is_decided_as_its_payouts_one_by_one(unsynced: str, examples: int) -> None:
    at_sight: list[bool] = []
    again = BookPlans.again

    def seen(*args: Any) -> Any:
        offer = again(*args)
        at_sight.append(offer is not None)
        return offer

    @settings(
        max_examples=examples,
        derandomize=examples == 40,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        report_multiple_bugs=False,
    )
    @given(batches, st.sampled_from([0.0, 0.25]))
    def whatever_comes_together(drawn: list[Batch], believed_s: float) -> None:
        with the_tests_clock():
            asyncio.run(agree(unsynced, drawn, believed_s))

    with mock.patch.object(BookPlans, "again", seen):
        whatever_comes_together()
    assert any(at_sight)  # otherwise no payout took the path that is tested
