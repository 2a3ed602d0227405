"""The views, in the order in which they are written; a batch of steps goes to all of them or to none."""

from collections.abc import Callable

from msgspec import Struct

from projections import agents, audit, beneficiaries, budgets, holds, letters, payouts, policies, vendors
from projections.fold import Accumulator
from streamproc.archive.sql import statements
from streamproc.domain.events import Fact


class View(Struct, frozen=True):
    """A read model, whose table has its name. `version` goes up when its shape or fold changes; then it has to be
    rebuilt."""

    name: str
    version: int
    reads: frozenset[type[Fact]]
    """The events that it is made of; it gets no others."""
    begin: Callable[[], Accumulator]
    """Makes the accumulator that adds up its steps and writes them."""

    def statements(self, prefix: str) -> list[str]:
        """The statements of its .sql file whose names begin with `prefix`."""
        return list(self.named(prefix).values())

    def named(self, prefix: str) -> dict[str, str]:
        """The same by their names."""
        found = statements("projections", f"{self.name}.sql")
        return {name: statement for name, statement in found.items() if name.startswith(prefix)}


VIEWS: tuple[View, ...] = tuple(
    View(module.NAME, module.VERSION, module.READS, module.begin)
    for module in (payouts, audit, budgets, holds, policies, agents, vendors, beneficiaries)
)
FOR_RECOVERY: tuple[View, ...] = tuple(
    View(module.NAME, module.VERSION, module.READS, module.begin)
    for module in (payouts, budgets, policies, beneficiaries, letters)
)
"""What a recovery reads. It builds these anew, since the live views may be wrong."""
BY_NAME: dict[str, View] = {view.name: view for view in (*VIEWS, *FOR_RECOVERY)}
NAMES: tuple[str, ...] = tuple(view.name for view in VIEWS)
VERSIONS: dict[str, int] = {view.name: view.version for view in VIEWS}
