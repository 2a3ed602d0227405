"""Rule 14: a contact is a registered legal entity under exactly its name, or the evidence says why not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain.case import NO_URL, Case
from streamproc.domain.facts import EntitySeen, EntityVerdict
from streamproc.domain.governance import decide
from streamproc.domain.intent import Beneficiary
from streamproc.domain.legal_entities import (
    LEI_CHARS_MAX,
    NAME_CHARS_MAX,
    Question,
    Registered,
    answered_here,
    is_lei,
    judged,
    legal_name,
    question_of,
    searches,
)
from streamproc.domain.payouts import PayoutRecord, fold
from tests.domain.test_governance import policy
from tests.words import observed, requested

LEI, OTHER_LEI = "984500SANDBOX0000190", "984500SANDBOX0000287"
NAME = "Asha Paper Works Private Limited"
WELL_FORMED = ["506700GE1G29325QX363", "7LTWFZYICNSX8D621K86", "5493001KJTIIGC8Y1R12", LEI, OTHER_LEI]


@pytest.mark.parametrize("lei", WELL_FORMED)
def test_a_well_formed_lei_is_one_and_no_other_check_digits_make_one(lei: str) -> None:
    with_other_digits = [lei[:18] + f"{digits:02}" for digits in range(100)]
    assert [text for text in with_other_digits if is_lei(text)] == [lei]


@given(lei=st.sampled_from(WELL_FORMED), at=st.integers(0, 19), char=st.sampled_from("0123456789ABCXYZ"))
def test_an_lei_with_one_wrong_character_is_none(lei: str, at: int, char: str) -> None:
    changed = lei[:at] + char + lei[at + 1 :]
    assert is_lei(changed) == (changed == lei)


@pytest.mark.parametrize("text", ["", LEI[:19], LEI + "0", LEI.lower(), f" {LEI}", "٩" * 20, LEI + "\n"])
def test_what_has_not_the_form_of_an_lei_is_none(text: str) -> None:
    assert not is_lei(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Asha Paper Works Private Limited", "ASHA PAPER WORKS PVT. LTD."),
        ("Asha Paper Works Private Limited", "asha paper works (P) Ltd"),
        ("Asha Paper Works Private Limited", "Asha  Paper-Works, Pvt.Ltd."),
        ("Asha Limited", "Asha Ltd"),
        ("Asha Limited Liability Partnership", "Asha L.L.P."),
        ("Acme, Inc.", "ACME INCORPORATED"),
        ("Acme Corp.", "Acme Corporation"),
        ("Nair & Co. Ltd", "Nair and Company Limited"),
        ("O'Neil Foods PLC", "O’Neil Foods Public Limited Company"),
        ("Ｆｕｌｌ Ｗｉｄｔｈ Ltd", "Full Width Limited"),
        ("Straße LLC", "STRASSE Limited Liability Company"),
    ],
)
def test_usual_spellings_of_one_name_are_equal(one: str, other: str) -> None:
    assert legal_name(one) == legal_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Asha Paper Works Private Limited", "Asha Paper Works Limited"),
        ("Asha Paper Works Private Limited", "Asha Paper Works"),
        ("Asha Paper Works Private Limited", "Asha Paper Work Private Limited"),
        ("Asha Paper Works Private Limited", "The Asha Paper Works Private Limited"),
        ("Asha Paper Works Private Limited", "Asha Papers Works Private Limited"),
        ("Asha Paper Limited", "Paper Asha Limited"),
        ("Asha LLP", "Asha LLC"),
        ("Asha Co Traders", "Asha Company Traders"),
        ("Asha Ltd", "Аsha Ltd"),  # the second begins with a Cyrillic letter
        ("A+ Traders", "A Traders"),
        ("Résumé Ltd", "Resume Ltd"),
        ("Limited", "Ltd"),  # no name is a legal form and nothing else
        ("Asha\u200bLtd", "Asha Ltd"),
    ],
)
def test_names_that_are_only_alike_are_not_equal(one: str, other: str) -> None:
    assert legal_name(one) != legal_name(other)


words = st.sampled_from(
    ["Asha", "Co.", "pvt", "(P)", "Ltd", "Private", "Limited", "LLP", "& Co", "Public", "Company"]
)


@given(st.text(max_size=60) | st.lists(words, max_size=7).map(" ".join))
def test_of_any_text_the_name_is_even_and_what_is_searched_is_of_it(text: str) -> None:
    words, forms = legal_name(text)
    assert not forms or words
    assert "," not in "".join(searches(text))
    assert legal_name(" ".join((*words, *forms))) == (words, forms)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Asha Paper Works Pvt. Ltd.", ("Asha Paper Works Private Limited", "Asha Paper Works")),
        ("Acme, Incorporated", ("Acme Inc.", "Acme")),
        ("Smith, Jones & Co", ("Smith Jones & Company", "Smith Jones &")),
        ("Nair Co. Ltd", ("Nair Company Limited", "Nair")),
        ("Limited", ("Limited",)),
        ("Asha", ("Asha",)),
        (" Asha  Works (P) Ltd ", ("Asha Works Private Limited", "Asha Works")),
    ],
)
def test_the_register_is_searched_for_the_name_as_it_is_usually_registered_then_without_its_legal_form(
    name: str, texts: tuple[str, ...]
) -> None:
    """Whether the register finds equal names only, or parts of names, one of them fits; a comma would separate two."""
    assert searches(name) == texts


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Asha Works(P) Ltd", ("Asha Works Private Limited", "Asha Works")),
        ("Foo-Ltd", ("Foo Limited", "Foo")),
        ("Asha (India)", ("Asha (India)",)),
    ],
)
def test_a_legal_form_needs_no_blank_before_it(name: str, texts: tuple[str, ...]) -> None:
    """Else a name that counts as equal would not be found."""
    assert searches(name) == texts


def entity(
    lei: str = LEI, name: str = NAME, status: str = "ACTIVE", registration: str = "ISSUED"
) -> Registered:
    return Registered(lei, name, status, registration)


BY_NAME, BY_LEI = Question("Asha Paper Works Pvt Ltd"), Question("Asha Paper Works Pvt Ltd", LEI)


@pytest.mark.parametrize(
    ("question", "found", "verdict"),
    [
        (BY_NAME, [entity()], "verified"),
        (BY_LEI, [entity()], "verified"),
        (BY_NAME, [entity(OTHER_LEI, "Asha Paper Works East Private Limited"), entity()], "verified"),
        (BY_NAME, [], "not_found"),
        (BY_LEI, [], "not_found"),
        (BY_NAME, [entity(name="Asha Paper Works Limited")], "not_found"),
        (BY_LEI, [entity(name="Asha Paper Works Limited")], "name_differs"),
        (BY_LEI, [entity(name="Somebody Else", status="INACTIVE")], "name_differs"),
        (BY_NAME, [entity(status="INACTIVE", registration="RETIRED")], "not_active"),
        (BY_NAME, [entity(registration="LAPSED")], "not_issued"),
        (BY_LEI, [entity(registration="PENDING_TRANSFER")], "not_issued"),
        (BY_NAME, [entity(), entity(OTHER_LEI)], "several"),
        (BY_NAME, [entity(), entity(OTHER_LEI, status="INACTIVE")], "several"),
    ],
)
def test_what_the_register_says_of_a_contact(
    question: Question, found: list[Registered], verdict: EntityVerdict
) -> None:
    seen = judged(question, found, more=False)
    assert seen.verdict == verdict
    if verdict in ("verified", "not_active", "not_issued", "name_differs"):
        shown = found[-1]
        assert (seen.lei, seen.name, seen.status, seen.registration) == shown


def test_where_there_are_more_entities_than_were_shown_nobody_can_say_who_is_meant() -> None:
    assert judged(BY_NAME, [entity()], more=True).verdict == "several"
    assert judged(BY_LEI, [entity()], more=True).verdict == "verified"


def test_a_registered_name_is_cut_and_holds_nothing_that_a_terminal_obeys() -> None:
    seen = judged(BY_LEI, [entity(name="Evil\x1b[2J\u202e" + "x" * 500)], more=False)
    assert len(seen.name) == NAME_CHARS_MAX
    assert seen.name.isprintable() or "\ufffd" in seen.name
    assert "\x1b" not in seen.name
    assert "\u202e" not in seen.name


# ---- the payout ------------------------------------------------------------------------


def record(name: str = NAME, lei: str | None = None) -> PayoutRecord:
    payee = Beneficiary(contact_name=name, account_type="vpa", vpa="asha@okbank")
    event = requested(payee=payee)
    notes = {} if lei is None else {"lei": lei}
    found = fold([replace(event, intent=replace(event.intent, notes=notes))])
    assert found is not None
    return found


def test_a_contact_is_asked_for_by_the_lei_of_the_notes_else_by_its_name() -> None:
    assert question_of(record()) == Question(NAME)
    assert question_of(record(lei=f" {LEI.lower()} ")) == Question(NAME, LEI)
    assert question_of(record(lei=" ")) == Question(NAME)


def test_a_payout_that_names_no_contact_asks_nothing() -> None:
    assert question_of(record(name=".,()-")) is None
    nobody = fold([observed(fund_account="")])
    assert nobody is not None
    assert question_of(nobody) is None


def test_of_a_payout_that_names_a_fund_account_it_is_asked_who_has_that() -> None:
    lei = {"lei": " 984500sandbox0000190"}
    at_bank, intent = fold([observed()]), fold([requested(notes=lei)])
    assert at_bank is not None
    assert intent is not None
    assert question_of(at_bank) == Question("", "", "fa_1")
    assert question_of(intent) == Question("", "984500SANDBOX0000190", "fa_1")


@pytest.mark.parametrize("lei", [LEI[:19], LEI[:18] + "91", "x" * 250, "\x1b[2J"])
def test_a_malformed_lei_is_unverified_without_asking_and_is_kept_short(lei: str) -> None:
    question = question_of(record(lei=lei))
    assert question is not None
    seen = answered_here(question)
    assert seen is not None
    assert (seen.verdict, len(seen.lei) <= LEI_CHARS_MAX) == ("malformed_lei", True)
    assert "\x1b" not in seen.lei
    assert answered_here(Question(NAME)) is None
    assert answered_here(Question(NAME, LEI)) is None


def held(
    seen: EntitySeen | None, *, fields: str = "require_entity: true", of: PayoutRecord | None = None
) -> object:
    verdict = decide(Case(of or record(), "verified", policy(fields), reputation=NO_URL, entity=seen))
    if not verdict.findings:
        assert verdict.decision == "APPROVED"
        return None
    (finding,) = verdict.findings
    assert (verdict.decision, verdict.reason, finding.stage) == ("HELD", "ENTITY_UNVERIFIED", "reputation")
    return finding.evidence


VERIFIED = EntitySeen(verdict="verified", lei=LEI, name=NAME, status="ACTIVE", registration="ISSUED")
LAPSED = replace(VERIFIED, verdict="not_issued", registration="LAPSED")


def test_only_a_policy_that_requires_it_holds_whom_the_register_does_not_know() -> None:
    assert held(VERIFIED) is None
    assert held(LAPSED) is not None
    for fields in ("", "require_entity: false"):
        assert held(LAPSED, fields=fields) is None
        assert held(None, fields=fields) is None


def test_the_evidence_is_what_the_register_showed_beside_the_name_that_was_compared() -> None:
    assert held(LAPSED) == {
        "problem": "the entity's LEI is not valid any more",
        "named": NAME,
        "lei": LEI,
        "registered_name": NAME,
        "entity_status": "ACTIVE",
        "registration_status": "LAPSED",
    }
    nobody = EntitySeen(verdict="not_found")
    assert held(nobody) == {"problem": "the register has no such entity", "named": NAME}
    hidden = record(name="Asha\u202e Paper\x1b")
    assert held(nobody, of=hidden) == {
        "problem": "the register has no such entity",
        "named": "Asha\ufffd Paper\ufffd",
    }
    told_by_bank = replace(nobody, contact="Nobody Ltd")
    assert held(told_by_bank, of=fold([observed()])) == {
        "problem": "the register has no such entity",
        "contact": "Nobody Ltd",
    }


def test_a_register_that_could_not_be_asked_says_nothing_against_the_entity() -> None:
    away = EntitySeen(verdict="unavailable", problem="gleif: answered 503")
    assert held(away) == {"problem": "the register could not be asked: gleif: answered 503"}


def test_where_nothing_was_asked_the_payout_is_held_and_it_is_said_why() -> None:
    assert held(None) == {"problem": "no register of legal entities is set"}
    bank_payout = fold([observed()])
    assert held(None, of=bank_payout) == {"problem": "the payout names no contact"}
