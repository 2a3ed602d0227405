"""What is sent to the bank for an intent, byte for byte: after a lost answer it is sent again, by a later release too.

With another key or other bytes the bank would make another payout, or refuse this one.
"""

import pytest
from msgspec.structs import replace

from consumers.create import key_of, order_bytes
from streamproc.domain.intent import Beneficiary, Intent, intent_id
from streamproc.domain.payouts import fold
from tests.words import requested

ACCOUNT_PAYEE = Beneficiary(
    contact_name="Some Body", contact_type="vendor", email="a@example.com", phone="9123456789",
    account_type="bank_account", name="S Body", ifsc="HDFC0000001", account_number="000011112222",
)  # fmt: skip
VPA_PAYEE = Beneficiary(contact_name="Some Body", account_type="vpa", vpa="somebody@exampleupi")
PLAIN = Intent(digest="d", mode="IMPS", purpose="payout", fund_account_id="fa_1")


def test_an_intents_id_and_its_key_at_the_bank_are_what_they_always_were() -> None:
    assert intent_id("acc_1", "bot", "invoice 7") == "spi_0ts3p1qpjh27b30szl18e9sg2v"
    assert key_of("0:1790000000000-0:4") == "sp-d786ece5fc7c492d0fba6fb387c03788"


@pytest.mark.parametrize(
    ("intent", "begins", "ends"),
    [
        (PLAIN, b'"fund_account_id":"fa_1",', b""),
        (
            replace(PLAIN, narration="Invoice 7", notes={"b": "2", "a": "1"}),
            b'"fund_account_id":"fa_1",',
            b',"narration":"Invoice 7","notes":{"b":"2","a":"1"}',
        ),
        (
            replace(PLAIN, fund_account_id="", beneficiary=ACCOUNT_PAYEE),
            b"",
            b',"fund_account":{"account_type":"bank_account","bank_account":{"name":"S Body","ifsc":"HDFC0000001",'
            b'"account_number":"000011112222"},"contact":{"name":"Some Body","type":"vendor",'
            b'"email":"a@example.com","contact":"9123456789"}}',
        ),
        (
            replace(PLAIN, fund_account_id="", beneficiary=VPA_PAYEE),
            b"",
            b',"fund_account":{"account_type":"vpa","vpa":{"address":"somebody@exampleupi"},'
            b'"contact":{"name":"Some Body"}}',
        ),
    ],
)
def test_the_bytes_of_an_order_are_what_they_always_were(intent: Intent, begins: bytes, ends: bytes) -> None:
    asked = replace(requested(amount=123_456), intent=intent)
    record = fold([asked])
    assert record is not None
    assert order_bytes(record, "7878780080316316") == (
        b'{"account_number":"7878780080316316",' + begins + b'"amount":123456,"currency":"INR","mode":"IMPS",'
        b'"purpose":"payout","queue_if_low_balance":false,"reference_id":"'
        + asked.payout.encode()
        + b'"'
        + ends
        + b"}"
    )
