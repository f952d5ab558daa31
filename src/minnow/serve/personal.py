"""Personal data in a text, by form: what keeps it on this machine."""

from __future__ import annotations

import re

_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b")
_PHONE = re.compile(
    r"(?<![\w.])(?:\+|00)\d{1,3}[ /-]?(?:\(?\d{1,5}\)?[ /-]?){2,5}\d{2,4}(?!\w)|(?<!\w)\(\d{3}\) ?\d{3}-\d{4}(?!\w)"
    r"|(?<![\w.-])(?:1[.-])?[2-9]\d{2}(?P<between>[.-])\d{3}(?P=between)\d{4}(?![\w-])"
)
_CARD = re.compile(r"(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")


def personal_data(text: str) -> str | None:
    """What kind of personal data a text holds, None where none was found: a mail address, a phone number in international
    or North American form, a card number (Luhn), an IBAN (ISO 7064), a US social security number."""
    if _EMAIL.search(text):
        return "a mail address"
    if any(_luhn(re.sub(r"[ -]", "", match[0])) for match in _CARD.finditer(text)):
        return "a card number"
    if any(_iban(match[0].replace(" ", "")) for match in _IBAN.finditer(text)):
        return "an IBAN"
    if _SSN.search(text):
        return "a social security number"
    return "a phone number" if _PHONE.search(text) else None


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(each - 9 if each > 9 else each for each in doubled) % 10 == 0


def _iban(text: str) -> bool:
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1
