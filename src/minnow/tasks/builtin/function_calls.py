"""Tool calling: BFCL's single-turn categories, and calls on drawn APIs, some of which are not to be made.

An answer's calls are read in any of the formats of :mod:`minnow.data.calls` and matched as BFCL does
(:mod:`minnow.tasks.scorers.bfcl`). Irrelevance: correct where there is no call that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from minnow.data.calls import Call, CallError, parse_any_calls, render_calls
from minnow.data.table import Faults, Row, read_rows
from minnow.errors import UserError
from minnow.tasks.names import person_name, place_name, split_of
from minnow.tasks.scorers import bfcl
from minnow.tasks.task import beside, drafts_of, prompt_text
from minnow.tasks.types import Draft, Score, Split

_NONE = "None of the functions on offer can do that."
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def read(file: Path, faults: Faults) -> Iterator[Draft]:
    """A category with its possible answers beside."""
    known = possible_answers(file)
    return drafts_of(lambda row: [_question(row, known[row.values["id"]])])(file, faults)


def possible_answers(file: Path) -> dict[str, Any]:
    """A category's answers by id, from ``NAME_answers`` beside it or, as published, ``possible_answer/NAME``."""
    answers = beside(file, "_answers", file.parent / "possible_answer" / file.name)
    if answers is None:
        raise UserError(f"{file} needs its answers beside it, in possible_answer/{file.name}; fetch them too")
    return {row.values["id"]: row.values["ground_truth"] for row in read_rows(answers)}


def read_irrelevance(file: Path, faults: Faults) -> Iterator[Draft]:
    """Questions that none of the functions on offer can answer."""
    return drafts_of(lambda row: [_question(row, [])])(file, faults)


def _question(row: Row, answers: list[dict[str, Any]]) -> Draft:
    values = row.values
    if len(values["question"]) != 1:
        raise ValueError("it has several turns, which are not a single call")
    required = {each["name"]: each["parameters"].get("required", []) for each in values["function"]}
    calls = [
        Call(name, _first_values(given, required.get(name, []))) for answer in answers for name, given in answer.items()
    ]
    reply = render_calls(calls) if calls else _NONE
    answer = {"functions": values["function"], "calls": answers}
    return Draft.plain(
        values["question"][0], reply, answer, tools=[tool(each) for each in values["function"]], id=values["id"]
    )


def _first_values(given: Mapping[str, list[Any]], required: list[str]) -> dict[str, Any]:
    """The first value of every parameter that cannot be left out."""
    listed = {key: [each for each in allowed if each != ""] for key, allowed in given.items()}
    return {key: _plain(listed[key][0]) for key, allowed in given.items() if allowed[0] != "" or key in required}


def _plain(value: Any) -> Any:
    """A possible answer as a value: inside objects every key holds a list of them."""
    if isinstance(value, dict):
        return {key: _plain(items[0]) for key, items in value.items() if items[0] != ""}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function's document with JSON's type names."""

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            named = {key: converted(item) for key, item in value.items()}
            kind = named.get("type")
            return named | {"type": _JSON_TYPES.get(kind, kind)} if isinstance(kind, str) else named
        return [converted(each) for each in value] if isinstance(value, list) else value

    return {key: converted(function[key]) for key in ("name", "description", "parameters")}


def score(answer: Mapping[str, Any], text: str) -> Score:
    """BFCL's verdict; ``answer`` holds the ``functions`` and the possible ``calls``, none of which means to refuse.

    Metrics: ``valid`` and ``right_call`` where there is something to call; ``refused`` where there is not, which a call that
    cannot be read is not, though it is correct by BFCL's rule.
    """
    try:
        calls = parse_any_calls(text)
    except CallError as error:
        if not answer["calls"]:
            return Score.of(True, "correct", refused=0.0)
        return Score.of(False, str(error), valid=0.0, right_call=0.0)
    if not answer["calls"]:
        return Score.of(
            not calls, f"called {calls[0].name if calls else ''}, which does not help here", refused=float(not calls)
        )
    wrong = bfcl.fault(answer["functions"], answer["calls"], calls) if calls else "no call"
    return Score.of(wrong is None, wrong or "", valid=float(bool(calls)), right_call=float(wrong is None))


# Drawn APIs: a verb and a thing make a function; its parameters are drawn from these, each with words for the question.
_Function = tuple[str, str, str, tuple[str, ...]]
_FUNCTIONS: tuple[_Function, ...] = (
    ("book_table", "Book a table in a restaurant", "Book a table", ("place", "people", "day")),
    ("send_parcel", "Send a parcel", "Send a parcel", ("town", "weight", "person")),
    ("get_weather", "The weather of a town on a day", "What will the weather be", ("town", "day")),
    ("set_alarm", "Set an alarm", "Set an alarm", ("hour", "day")),
    ("find_doctor", "Find a doctor", "Find me a doctor", ("town", "specialty")),
    ("transfer_money", "Transfer money to a person", "Transfer money", ("person", "amount")),
    ("play_music", "Play music by a performer", "Play music", ("performer", "loud")),
    ("rent_car", "Rent a car", "Rent me a car", ("town", "day", "seats")),
)
_PARAMETERS: dict[str, tuple[str, str, str]] = {
    "place": ("string", "the restaurant's name", "at {}"),
    "people": ("integer", "number of guests", "for {} people"),
    "day": ("string", "day of the week", "on {}"),
    "town": ("string", "the town's name", "in {}"),
    "weight": ("float", "weight in kilograms", "of {} kilograms"),
    "person": ("string", "the receiver's name", "to {}"),
    "hour": ("integer", "full hour, 0 to 23", "for {} o'clock"),
    "specialty": ("string", "the kind of doctor", "for {}"),
    "amount": ("float", "amount in euros", "of {} euros"),
    "performer": ("string", "who performs", "by {}"),
    "loud": ("boolean", "whether to play it loud", "{}"),
    "seats": ("integer", "number of seats", "with {} seats"),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_REFUSALS = 4  # one question in so many has no function


def _value(rng: Random, name: str, split: Split) -> tuple[Any, str]:
    """A value and the words for it."""
    if name == "loud":
        loud = rng.random() < 0.5
        return loud, "loud" if loud else "not loud"
    value: Any = {
        "place": lambda: place_name(rng, split),
        "town": lambda: place_name(rng, split),
        "person": lambda: person_name(rng, split),
        "performer": lambda: person_name(rng, split),
        "day": lambda: rng.choice(_DAYS),
        "specialty": lambda: rng.choice(("skin", "eyes", "teeth", "children")),
        "weight": lambda: round(rng.uniform(0.5, 30), 1),
        "amount": lambda: round(rng.uniform(5, 900), 2),
        "people": lambda: rng.randint(2, 12),
        "hour": lambda: rng.randint(0, 23),
        "seats": lambda: rng.randint(2, 9),
    }[name]()
    return value, str(value)


def _request(rng: Random, function: _Function, split: Split) -> tuple[str, Call]:
    """Words for a call of ``function``, what it is given in any order, and the call."""
    name, _, verb, parameters = function
    values = {key: _value(rng, key, split) for key in parameters}
    phrases = [_PARAMETERS[key][2].format(words) for key, (_, words) in values.items()]
    rng.shuffle(phrases)
    question = f"{verb} {' '.join(phrases)}{'?' if verb.startswith('What') else '.'}"
    return question, Call(name, {key: value for key, (value, _) in values.items()})


def _training_request(rng: Random, function: _Function) -> tuple[str, Call]:
    """A request that would not be held out if it were the whole prompt."""
    while True:
        question, call = _request(rng, function, "train")
        if split_of(prompt_text([{"role": "user", "content": question}])) == "train":
            return question, call


def _worked(names: Sequence[str], wanted: Call) -> str:
    """A worked answer: of each function on offer, in order, whether it is the one, then the call; or that there is none.

    So no one token decides over a list hundreds of tokens back: to name what comes next there is copying, and whether it
    is the one is seen from the name just written (docs/results/specialist.md).
    """
    said = ""
    for name in names:
        if name == wanted.name:
            return f'{said}"{name}": yes. {render_calls([wanted])}'
        said += f'"{name}": no. '
    return said + _NONE


def draw(rng: Random, split: Split) -> Draft:
    """A request with two to five functions on offer; in one case of four the right one is not among them.

    Examples to train on hold several requests with one list, since the list is most of what there is to read: one for each
    function on it, and half as many for others. None is asked for twice, so that no answer tells another, and none is a
    prompt that is held out: days and hours alone make only a few hundred requests.
    """
    if split == "train":
        offered = rng.sample(_FUNCTIONS, rng.randint(2, 5))
        others = [each for each in _FUNCTIONS if each not in offered]
        wanted = offered + rng.sample(others, len(offered) // 2)
        rng.shuffle(wanted)
        asked = [_training_request(rng, each) for each in wanted]
    else:
        *offered, right = rng.sample(_FUNCTIONS, rng.randint(3, 5))
        asked = [_request(rng, right, split)]
        if rng.random() * _REFUSALS >= 1:
            offered.insert(rng.randint(0, len(offered)), right)
    functions = [
        {
            "name": each,
            "description": about,
            "parameters": {
                "type": "dict",
                "properties": {key: {"type": _PARAMETERS[key][0], "description": _PARAMETERS[key][1]} for key in keys},
                "required": list(keys),
            },
        }
        for each, about, _, keys in offered
    ]
    names = [each for each, *_ in offered]
    turns: list[dict[str, Any]] = []
    for question, call in asked:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": _worked(names, call)})
    calls = [{call.name: {key: [value] for key, value in call.arguments.items()}}] if call.name in names else []
    return Draft(turns[:-1], turns[-1:], {"functions": functions, "calls": calls}, list(map(tool, functions)))
