"""Contacts and fund accounts: identical details give the one that is already there."""

import json
import random
import re

from msgspec.structs import replace

from ops.sandbox.entities import Contact, FundAccount, Json, new_id
from ops.sandbox.orders import flag, notes, required, text
from ops.sandbox.refusals import Refused, unknown_id

CONTACT_NAME = re.compile(r"[A-Za-z0-9 ’'().,&/:_\-]{3,50}")
CONTACT_TYPES = ("vendor", "customer", "employee", "self")
IFSC = re.compile(r"[A-Za-z]{4}[A-Za-z0-9]{7}")
ACCOUNT_NUMBER = re.compile(r"[A-Za-z0-9]{5,35}")
VPA = re.compile(r"[^@\s]+@[^@\s]+")
VPA_LENGTH = range(3, 101)
TYPE_MAX = 40
TEXT_MAX = 255


class Directory:
    """The account's contacts and fund accounts, by id and by what they say."""

    def __init__(self, rng: random.Random) -> None:
        self.contacts: dict[str, Contact] = {}
        self.fund_accounts: dict[str, FundAccount] = {}
        self.changed_contacts: dict[str, Contact] = {}
        self.changed_accounts: dict[str, FundAccount] = {}
        self._by_details: dict[str, str] = {}
        self._rng = rng

    def load(self, contacts: list[Contact], fund_accounts: list[FundAccount]) -> None:
        """Take over what an earlier process kept."""
        for contact in contacts:
            self.contacts[contact.id] = contact
            self._by_details[_contact_key(contact)] = contact.id
        for account in fund_accounts:
            self.fund_accounts[account.id] = account
            self._by_details[_account_key(account)] = account.id

    def contact(self, contact_id: str) -> Contact:
        """The contact, or the bank's refusal."""
        if contact_id not in self.contacts:
            raise Refused(f"{contact_id} is not a valid id.") if "_" not in contact_id else unknown_id()
        return self.contacts[contact_id]

    def fund_account(self, account_id: str) -> FundAccount:
        """The fund account, or the bank's refusal."""
        if account_id not in self.fund_accounts:
            raise unknown_id()
        return self.fund_accounts[account_id]

    def add_contact(self, body: Json, now: int) -> Contact:
        """Make a contact, or return the one with the same details."""
        contact = Contact(
            id="",
            name=_name(body),
            contact=text(body, "contact", TEXT_MAX),
            email=text(body, "email", TEXT_MAX),
            type=_type(body),
            reference_id=text(body, "reference_id", 40),
            notes=notes(body),
        )
        key = _contact_key(contact)
        if key not in self._by_details:
            contact.id, contact.created_at = new_id(self._rng, "cont"), now
            self.contacts[contact.id] = self.changed_contacts[contact.id] = contact
            self._by_details[key] = contact.id
        return self.contacts[self._by_details[key]]

    def change_contact(self, contact_id: str, body: Json) -> Contact:
        """Change what may change: everything but the id."""
        contact = self.contact(contact_id)
        given = {
            field: text(body, field, TEXT_MAX)
            for field in ("contact", "email", "reference_id")
            if field in body
        }
        changed = replace(
            contact,
            name=_name(body) if "name" in body else contact.name,
            type=_type(body) if "type" in body else contact.type,
            notes=notes(body) if "notes" in body else contact.notes,
            active=flag(body, "active") if "active" in body else contact.active,
            **given,
        )
        self._by_details.pop(_contact_key(contact), None)
        self._by_details[_contact_key(changed)] = contact_id
        self.contacts[contact_id] = self.changed_contacts[contact_id] = changed
        return changed

    def add_fund_account(self, body: Json, now: int) -> FundAccount:
        """Make a fund account for an existing contact, or return the identical one."""
        contact = self.contact(required(body, "contact_id", str))
        kind = required(body, "account_type", str)
        account = FundAccount(id="", contact_id=contact.id, account_type=kind, details=_details(body, kind))
        key = _account_key(account)
        if key not in self._by_details:
            account.id, account.created_at = new_id(self._rng, "fa"), now
            self.fund_accounts[account.id] = self.changed_accounts[account.id] = account
            self._by_details[key] = account.id
        return self.fund_accounts[self._by_details[key]]

    def change_fund_account(self, account_id: str, body: Json) -> FundAccount:
        """Only `active` may change; details are for ever."""
        account = self.fund_account(account_id)
        if extra := sorted(set(body) - {"active"}):
            raise Refused(f"{extra[0]} is/are not required and should not be sent", field=extra[0])
        if "active" not in body:
            raise Refused("The active field is required.", field="active")
        account.active = flag(body, "active")
        self.changed_accounts[account.id] = account
        return account

    def composite(self, body: Json, now: int) -> FundAccount:
        """The fund account of an order: by id, or by details with the contact inside."""
        if "fund_account" not in body:
            return self.fund_account(required(body, "fund_account_id", str))
        wanted = body["fund_account"]
        if not isinstance(wanted, dict) or not isinstance(wanted.get("contact"), dict):
            raise Refused("The contact field is required.", field="contact")
        _details(wanted, required(wanted, "account_type", str))
        contact = self.add_contact(wanted["contact"], now)
        return self.add_fund_account({**wanted, "contact_id": contact.id}, now)


def _name(body: Json) -> str:
    name = required(body, "name", str)
    if not CONTACT_NAME.fullmatch(name):
        raise Refused("The name must have 3 to 50 letters, digits and simple punctuation.", field="name")
    return name


def _type(body: Json) -> str | None:
    kind = text(body, "type", TYPE_MAX)
    if kind is not None and kind not in CONTACT_TYPES:
        raise Refused(f"Invalid type: {kind}", field="type")
    return kind


def _details(body: Json, kind: str) -> Json:
    details = body.get(kind)
    if kind not in ("bank_account", "vpa", "wallet", "card"):
        raise Refused("The selected account type is invalid.", field="account_type")
    if not isinstance(details, dict):
        raise Refused(f"The {kind.replace('_', ' ')} field is required.", field=kind)
    if kind == "bank_account":
        return _bank_account(details)
    if kind == "vpa":
        address = required(details, "address", str)
        if len(address) not in VPA_LENGTH or not VPA.fullmatch(address):
            raise Refused("Invalid VPA. Please enter a valid Virtual Payment Address", field="address")
        return {"address": address}
    return details


def _bank_account(details: Json) -> Json:
    ifsc = required(details, "ifsc", str)
    if len(ifsc) != 11:
        raise Refused("The IFSC must be 11 characters.", field="ifsc")
    if not IFSC.fullmatch(ifsc):
        raise Refused("Invalid IFSC Code", field="ifsc")
    number = required(details, "account_number", str)
    if not ACCOUNT_NUMBER.fullmatch(number):
        raise Refused("The account number format is invalid.", field="account_number")
    name = required(details, "name", str)
    if not 3 <= len(name) <= 120:
        raise Refused("The name must be between 3 and 120 characters.", field="name")
    return {"ifsc": ifsc, "name": name, "account_number": number}


def _contact_key(contact: Contact) -> str:
    said = [contact.name, contact.contact, contact.email, contact.type, contact.reference_id, contact.notes]
    return "contact " + json.dumps(said, sort_keys=True)


def _account_key(account: FundAccount) -> str:
    return "fund " + json.dumps([account.contact_id, account.account_type, account.details], sort_keys=True)
