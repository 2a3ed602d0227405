"""A button says which payout it is about, and nobody else can make it say another."""

import pytest

from streamproc.domain.button import VALUE_CHARS_MAX, button_value, payout_of

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
VALUE = button_value("pout_00000000000001", SECRET)


def test_a_button_of_ours_says_its_payout():
    assert payout_of(VALUE, SECRET) == "pout_00000000000001"


def test_the_signing_secret_itself_is_not_the_key():
    import hmac

    naked = hmac.digest(SECRET.encode(), b"pout_00000000000001", "sha256").hex()
    assert naked not in VALUE


@pytest.mark.parametrize(
    "value",
    [
        VALUE.replace("pout_00000000000001", "pout_00000000000002"),
        VALUE[:-1],
        VALUE + "1",
        VALUE.upper(),
        VALUE.replace("v1.", "v2."),
        VALUE + "\n",
        " " + VALUE,
        "v1." + "0" * 64 + ".pout_00000000000001",
        "pout_00000000000001",
        "",
        "v1..",
        "\ud800",
        "v1." + "0" * 64 + ".pout_\u0661",
        VALUE + "1" * VALUE_CHARS_MAX,
    ],
)
def test_any_other_value_says_nothing(value: str):
    assert payout_of(value, SECRET) is None


def test_another_secret_reads_nothing_and_an_empty_one_never_does():
    assert payout_of(VALUE, SECRET + "x") is None
    assert payout_of(button_value("pout_1", ""), "") is None
