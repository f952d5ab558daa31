"""Verifiers that a task file can name: what the expected answer is, and when an answer is right."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

from minnow.errors import UserError
from minnow.tasks.json_answer import AnswerError, Schema, read_json_answer
from minnow.tasks.scorers import fields, gsm8k, squad
from minnow.tasks.task import Verifier
from minnow.tasks.types import Score


def exact(answer: Any, text: str) -> Score:
    """Equal to the answer, or to one of a list of them, but for spacing at the ends and runs of white space."""
    said = " ".join(text.split())
    right = said in (" ".join(each.split()) for each in _texts(answer))
    return Score.of(right, f"answered {said[:80]!r}, not {_texts(answer)[0]!r}")


def contains(answer: Any, text: str) -> Score:
    """Every one of the answer's phrases stands in the text as whole words; the value is the share that does."""
    phrases = _texts(answer)
    missing = [each for each in phrases if not re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text, re.IGNORECASE)]
    return Score.of(not missing, f"missing: {missing}", 1 - len(missing) / len(phrases))


def number(answer: Any, text: str) -> Score:
    """The last number in the text equals the answer; signs, units, commas and trailing zeros do not matter."""
    wanted, found = gsm8k.value(str(answer)), gsm8k.value(text)
    if wanted is None:
        raise ValueError(f"the expected answer {answer!r} holds no number")
    return Score.of(found == wanted, f"answered {found}, not {wanted}")


def question(answer: Any, text: str) -> Score:
    """SQuAD's exact match and token F1, best over the accepted answers."""
    return squad.score(_texts(answer), text)


def json_fields(answer: Any, text: str, schema: Schema | None = None) -> Score:
    """Field-level F1 of the one JSON object in the text; correct when it is equal (and, with a schema, valid)."""
    try:
        found = read_json_answer(text)
    except AnswerError as error:
        return fields.unreadable(answer, str(error))
    wrong = schema.faults(found) if schema is not None else []
    scored = fields.score(answer, found)
    if not wrong:
        return scored
    return Score.of(False, f"against the schema: {wrong[0]}", scored.value, **dict(scored.metrics) | {"valid": 0.0})


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "contains": contains,
    "number": number,
    "question": question,
    "json": json_fields,
}


def verifier_of(name: str, schema: dict[str, Any] | None) -> Verifier:
    """The verifier of a task file.

    Raises:
        UserError: a schema with another verifier than ``json``, or one that says what is not understood.
    """
    if schema is None:
        return VERIFIERS[name]
    if name != "json":
        raise UserError(f"a schema is for the verifier json, not {name}; leave one of them out")
    return partial(json_fields, schema=Schema(schema))


def reference_text(verifier: str, answer: Any) -> str:
    """The expected answer as the assistant would write it: phrases together, the first of several texts, or JSON."""
    if verifier == "json":
        return json.dumps(answer, ensure_ascii=False)
    return ", ".join(_texts(answer)) if verifier == "contains" else _texts(answer)[0]


def _texts(answer: Any) -> list[str]:
    texts = answer if isinstance(answer, list) else [answer]
    if not texts:
        raise ValueError("the list of expected answers is empty")
    return [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in texts]
