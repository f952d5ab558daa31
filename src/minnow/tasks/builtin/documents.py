"""Extraction from drawn documents: invoices, receipts, clinical-style case reports and messages to JSON by a schema.

Layout, wording, order, formats of dates and amounts vary; what the schema asks for is always in the text, and a field
that is not is absent from the object. All people and firms are invented.
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from random import Random
from typing import Any

from minnow.tasks.names import person_name, place_name
from minnow.tasks.types import Draft, Score, Split
from minnow.tasks.verifiers import verifier_of

_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_DATE = {"type": "string", "description": "YYYY-MM-DD"}
_GOODS = (
    "oak desk", "office chair", "desk lamp", "ink cartridge", "paper, 500 sheets", "USB cable", "whiteboard", "notebook A5",
    "steel shelf", "coffee beans 1 kg", "oat milk", "rye bread", "tomatoes", "olive oil", "batteries AA", "hand soap",
)  # fmt: skip
_CURRENCIES = {"EUR": "€", "USD": "$", "GBP": "£"}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object whose fields are required but for those marked optional."""
    required = [name for name, of in properties.items() if not of.get("optional")]
    shown = {name: {key: value for key, value in of.items() if key != "optional"} for name, of in properties.items()}
    return {"type": "object", "properties": shown, "required": required, "additionalProperties": False}


_LINES = {"type": "array", "items": _object(description=_TEXT, quantity=_WHOLE, unit_price=_NUMBER)}
SCHEMAS: dict[str, dict[str, Any]] = {
    "invoice": _object(
        number=_TEXT, date=_DATE, due=_DATE | {"optional": True}, seller=_TEXT, buyer=_TEXT, currency=_TEXT, lines=_LINES,
        total=_NUMBER,
    ),
    "receipt": _object(
        shop=_TEXT, date=_DATE, time=_TEXT, items={"type": "array", "items": _object(name=_TEXT, price=_NUMBER)},
        total=_NUMBER, paid_by={"enum": ["card", "cash"]},
    ),
    "case_report": _object(
        age=_WHOLE, sex={"enum": ["female", "male"]}, complaint=_TEXT, duration_days=_WHOLE, temperature_celsius=_NUMBER,
        medication=_object(name=_TEXT, dose_mg=_WHOLE, times_a_day=_WHOLE),
        allergies={"type": "array", "items": _TEXT, "optional": True}, diagnosis=_TEXT,
    ),
    "message": _object(
        sender=_TEXT, request={"enum": ["book", "cancel", "move"]}, day=_DATE, time=_TEXT | {"optional": True},
        people=_WHOLE | {"optional": True}, place=_TEXT,
    ),
}  # fmt: skip


def score(answer: dict[str, Any], text: str) -> Score:
    """Field F1 and the exact object; ``answer`` is ``{"schema": name, "object": …}``."""
    return _VERIFIERS[answer["schema"]](answer["object"], text)


_VERIFIERS = {name: verifier_of("json", schema) for name, schema in SCHEMAS.items()}


def _draft(kind: str, text: str, found: dict[str, Any]) -> Draft:
    schema = json.dumps(SCHEMAS[kind])
    prompt = f"{text}\n\nExtract the data of this {kind.replace('_', ' ')} as one JSON object by this schema:\n{schema}"
    return Draft.plain(prompt, json.dumps(found, ensure_ascii=False), {"schema": kind, "object": found})


def _day(rng: Random) -> date:
    return date(2024, 1, 1) + timedelta(rng.randrange(1100))


def _written(rng: Random, day: date) -> str:
    return rng.choice(
        (day.isoformat(), f"{day.day} {day:%B} {day.year}", f"{day:%B} {day.day}, {day.year}", f"{day:%d.%m.%Y}")
    )


def _amount(rng: Random, value: float, currency: str) -> str:
    return rng.choice((f"{value:,.2f} {currency}", f"{_CURRENCIES[currency]}{value:,.2f}", f"{currency} {value:.2f}"))


def _firm(rng: Random, split: Split) -> str:
    return f"{place_name(rng, split)} {rng.choice(('Ltd', 'GmbH', 'Supplies', '& Sons', 'Trading Co.'))}"


def invoice(rng: Random, split: Split) -> Draft:
    """A seller's bill with one to four lines."""
    currency, day = rng.choice(list(_CURRENCIES)), _day(rng)
    lines: list[dict[str, Any]] = [
        {"description": goods, "quantity": rng.randint(1, 40), "unit_price": round(rng.uniform(0.5, 900), 2)}
        for goods in rng.sample(_GOODS, rng.randint(1, 4))
    ]
    total = round(sum(each["quantity"] * each["unit_price"] for each in lines), 2)
    number = f"{rng.choice(('INV', 'R', 'A'))}-{rng.randint(1000, 99999)}"
    found: dict[str, Any] = {"number": number, "date": day.isoformat()}
    due = day + timedelta(rng.choice((14, 30))) if rng.random() < 0.7 else None
    if due:
        found["due"] = due.isoformat()
    found |= {"seller": _firm(rng, split), "buyer": person_name(rng, split), "currency": currency, "lines": lines}
    found["total"] = total
    rows = [
        f"{each['quantity']} x {each['description']} at {_amount(rng, each['unit_price'], currency)}" for each in lines
    ]
    head = [
        f"Invoice {number}",
        f"Date: {_written(rng, day)}",
        f"From: {found['seller']}",
        f"Bill to: {found['buyer']}",
    ]
    if due:
        head.append(f"Payable by {_written(rng, due)}")
    rng.shuffle(head)
    return _draft("invoice", "\n".join([*head, *rows, f"Amount due: {_amount(rng, total, currency)}"]), found)


def receipt(rng: Random, split: Split) -> Draft:
    """A till receipt."""
    day, clock = _day(rng), f"{rng.randint(7, 21):02}:{rng.randint(0, 59):02}"
    items: list[dict[str, Any]] = [
        {"name": goods, "price": round(rng.uniform(0.3, 60), 2)} for goods in rng.sample(_GOODS, rng.randint(1, 6))
    ]
    total, by = round(sum(each["price"] for each in items), 2), rng.choice(("card", "cash"))
    shop = place_name(rng, split)
    width = rng.randint(24, 34)
    rows = [f"{each['name'].upper() if width % 2 else each['name']:<{width}}{each['price']:>8.2f}" for each in items]
    text = "\n".join(
        [
            shop.center(width + 8).rstrip(),
            f"{_written(rng, day)}  {clock}",
            *rows,
            f"{'TOTAL':<{width}}{total:>8.2f}",
            f"PAID {by.upper()}",
        ]
    )
    if width % 2:
        items = [{"name": each["name"].upper(), "price": each["price"]} for each in items]
    found = {"shop": shop, "date": day.isoformat(), "time": clock, "items": items, "total": total, "paid_by": by}
    return _draft("receipt", text, found)


_CASES = (
    ("a dry cough", "bronchitis", ("azithromycin", 500, 1)),
    ("a sore throat", "tonsillitis", ("penicillin V", 1000, 2)),
    ("burning when passing water", "cystitis", ("nitrofurantoin", 100, 2)),
    ("pain in the left ear", "otitis media", ("amoxicillin", 750, 3)),
    ("a throbbing headache", "migraine", ("ibuprofen", 400, 3)),
    ("heartburn after meals", "reflux disease", ("omeprazole", 20, 1)),
    ("an itching rash", "contact dermatitis", ("cetirizine", 10, 1)),
)
_TIMES = {1: "once", 2: "twice", 3: "three times"}


def case_report(rng: Random, split: Split) -> Draft:
    """A short clinical-style report; nobody in it exists."""
    complaint, diagnosis, (drug, dose, times) = rng.choice(_CASES)
    age, sex = rng.randint(18, 90), rng.choice(("female", "male"))
    days, celsius = rng.choice((2, 3, 5, 7, 14)), round(rng.uniform(36.2, 39.8), 1)
    lasting = {7: "a week", 14: "two weeks"}.get(days, f"{days} days")
    allergies = rng.sample(("penicillin", "nuts", "latex", "pollen"), rng.randint(1, 2)) if rng.random() < 0.5 else []
    who = f"A {age}-year-old {'woman' if sex == 'female' else 'man'} from {place_name(rng, split)}"
    she = "She" if sex == "female" else "He"
    middle = [f"Temperature was {celsius} °C.", f"{she} was given {drug} {dose} mg {_TIMES[times]} a day."]
    if allergies:
        middle.append(f"Known allergies: {' and '.join(allergies)}.")
    rng.shuffle(middle)
    found: dict[str, Any] = {"age": age, "sex": sex, "complaint": complaint, "duration_days": days}
    found |= {"temperature_celsius": celsius, "medication": {"name": drug, "dose_mg": dose, "times_a_day": times}}
    if allergies:
        found["allergies"] = allergies
    text = f"{who} came with {complaint} for {lasting}. {' '.join(middle)} The diagnosis was {diagnosis}."
    return _draft("case_report", text, found | {"diagnosis": diagnosis})


def message(rng: Random, split: Split) -> Draft:
    """A customer's message about a booking."""
    sender, place, day = person_name(rng, split), place_name(rng, split), _day(rng)
    request = rng.choice(("book", "cancel", "move"))
    found: dict[str, Any] = {"sender": sender, "request": request, "day": day.isoformat()}
    when = _written(rng, day)
    if request != "cancel":
        found["time"] = f"{rng.randint(11, 21)}:{rng.choice(('00', '15', '30', '45'))}"
        when += f" at {found['time']}"
    if request == "book":
        found["people"] = rng.randint(2, 14)
    asks: dict[str, tuple[str, ...]] = {
        "book": (
            f"could we have a table for {found.get('people')} at {place} on {when}?",
            f"please book {found.get('people')} seats at {place} for {when}.",
        ),
        "cancel": (
            f"please cancel our table at {place} on {when}.",
            f"we cannot come to {place} on {when}, so cancel it.",
        ),
        "move": (
            f"can you move our booking at {place} to {when}?",
            f"we would rather come to {place} on {when}; please move it.",
        ),
    }
    said = rng.choice(asks[request])
    text = rng.choice(
        (f"Hi, {said} Thanks, {sender}", f"This is {sender}: {said}", f"{sender} here. {said[0].upper()}{said[1:]}")
    )
    return _draft("message", text, found | {"place": place})
