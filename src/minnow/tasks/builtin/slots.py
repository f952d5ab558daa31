"""Slots of schema-guided dialogues (Rastogi et al. 2020): what the user wants of a service once all is said.

One example for each service of a dialogue: the values of its last state. A slot may be said in several ways (``11:30``,
``half past 11``); any of those that the data lists counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minnow.data.table import Faults, Row, read_rows
from minnow.errors import UserError
from minnow.tasks.json_answer import AnswerError, read_json_answer
from minnow.tasks.scorers import fields
from minnow.tasks.task import beside, drafts_of
from minnow.tasks.types import Draft, Score


def read(file: Path, faults: Faults) -> Iterator[Draft]:
    """Dialogues with their schema beside: ``NAME_schema`` with the same ending, or the published ``schema.json``."""
    schema = beside(file, "_schema", file.parent / "schema.json")
    if schema is None:
        raise UserError(f"{file} needs its schema beside it, as {file.parent / 'schema.json'}; fetch it too")
    services = {row.values["service_name"]: row.values for row in read_rows(schema)}
    return drafts_of(lambda row: _dialogue(row, services))(file, faults)


def _dialogue(row: Row, services: Mapping[str, Mapping[str, Any]]) -> Iterator[Draft]:
    turns = row.values["turns"]
    last: dict[str, dict[str, list[str]]] = {}
    for turn in turns:
        for frame in turn["frames"]:
            if "state" in frame:
                last[frame["service"]] = frame["state"]["slot_values"]
    said = "\n".join(f"{turn['speaker'].capitalize()}: {turn['utterance']}" for turn in turns)
    for service, values in last.items():
        if not values:
            continue
        described = services[service]
        listed = "\n".join(f"- {slot['name']}: {slot['description']}" for slot in described["slots"])
        prompt = (
            f'{said}\n\nWhat does the user want of the service "{described["description"]}"? Answer with one JSON object, '
            f"in the user's words, with those of these keys that were settled:\n{listed}"
        )
        reply = json.dumps({name: ways[0] for name, ways in values.items()}, ensure_ascii=False)
        yield Draft.plain(prompt, reply, values, id=f"{row.values['dialogue_id']}-{service}")


def score(answer: Mapping[str, list[str]], text: str) -> Score:
    """Field F1 (:mod:`minnow.tasks.scorers.fields`) with every accepted way of saying a value counting as the first."""
    wanted = {name: ways[0] for name, ways in answer.items()}
    try:
        found = read_json_answer(text)
    except AnswerError as error:
        return fields.unreadable(wanted, str(error))
    if isinstance(found, dict):
        found = {key: _first_way(answer.get(key, ()), value) for key, value in found.items()}
    return fields.score(wanted, found)


def _first_way(ways: Any, value: Any) -> Any:
    folded = [way.casefold() for way in ways]
    return ways[0] if isinstance(value, str) and value.casefold() in folded else value
