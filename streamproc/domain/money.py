"""Money: integer paise, and the words for it."""

AMOUNT_MIN_PAISE = 100
"""The bank's least payout (RazorpayX payout entity: min 100)."""

AMOUNT_MAX_PAISE = 10**15
"""Ten trillion rupees. Lua counts in doubles, exact to 2**53: three such sums still fit."""

WINDOW_MAX_PAISE = 2**53 - 1
"""The most that a budget window may hold where nobody limits it, some ninety trillion rupees: beyond it Lua's sums are
not exact, and at 2**63 neither Redis nor the view `budgets` could add any more."""

assert 3 * AMOUNT_MAX_PAISE < WINDOW_MAX_PAISE


def rupees(paise: int) -> str:
    """Paise as a person in India writes it: 15000000 -> '₹1,50,000.00'."""
    sign, whole, part = ("-" if paise < 0 else ""), abs(paise) // 100, abs(paise) % 100
    digits = str(whole)
    head, tail = digits[:-3], digits[-3:]
    groups = [tail]
    while head:
        groups.insert(0, head[-2:])
        head = head[:-2]
    return f"{sign}₹{','.join(groups)}.{part:02d}"
