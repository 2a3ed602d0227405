"""Of many names the first are said, and how many there are besides."""

import pytest

from streamproc.domain.plain import listed


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        (["a", "b", "c", "d"], "a, b and 2 more"),
    ],
)
def test_names_in_a_row_are_all_said_up_to_a_limit_and_counted_beyond_it(names: list[str], said: str) -> None:
    assert listed(names, 2) == said
