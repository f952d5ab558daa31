"""Tool calling over several turns: the user asks, the model calls, mock APIs carry it out, the user asks for more.

As in BFCL's multi-turn categories (Patil et al. 2025): a turn of the user's goes on until the model answers without a call
that can be read, and after each the state of the APIs must equal what the expected calls make of it, and everything that
these returned must have been returned to the model so far. Nothing is looked at that the model says beside its calls.
"""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from minnow.data.calls import Call, CallError, parse_any_calls, parse_expression, render_calls
from minnow.data.chat import parted
from minnow.data.table import Faults, Row, read_rows
from minnow.errors import UserError
from minnow.tasks.apis import APIS, Session
from minnow.tasks.apis.file_system import FileSystem
from minnow.tasks.builtin.function_calls import possible_answers, tool
from minnow.tasks.names import place_name
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft, Score, Split

MOST_STEPS = 20
"""Answers with calls that a turn may take, as in BFCL; the conversation ends there."""

_DOCUMENTS = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TicketAPI": "ticket_api",
    "TwitterAPI": "posting_api",
}


@dataclass(frozen=True)
class _Ended:
    """A turn of the user's that the model has ended: the state then, all results so far, and its answers with calls."""

    state: dict[str, dict[str, Any]]
    results: Counter[str]
    steps: int


def _played(answer: Mapping[str, Any], texts: Sequence[str]) -> tuple[list[_Ended], list[dict[str, Any]] | None]:
    """The turns that the model's texts have ended, and what it reads next; None where the conversation is over."""
    session = Session(answer["apis"], answer["config"])
    ended: list[_Ended] = []
    results: Counter[str] = Counter()
    steps = 0
    for text in texts:
        try:
            calls = parse_any_calls(text)
        except CallError:
            calls = []
        if calls:
            returned = [session.call(call) for call in calls]
            results.update(returned)
            steps += 1
            if steps == MOST_STEPS:
                return ended, None
            following = [{"role": "tool", "content": each} for each in returned]
        else:
            ended.append(_Ended(deepcopy(session.state), results.copy(), steps))
            steps = 0
            if len(ended) == len(answer["calls"]):
                return ended, None
            following = answer["turns"][len(ended) - 1]
    return ended, following


def follow(answer: Mapping[str, Any], texts: Sequence[str]) -> list[dict[str, Any]] | None:
    """What comes after the model's ``texts``: the results of its calls, or the user's next turn; None at the end."""
    return _played(answer, texts)[1]


def score(answer: Mapping[str, Any], text: str) -> Score:
    """Correct where every turn is; the value is the share of turns before the first wrong one."""
    ended, _ = _played(answer, parted(text))
    session = Session(answer["apis"], answer["config"])
    turns = answer["calls"]
    for number, calls in enumerate(turns):
        wanted = Counter(session.call(Call(**call)) for call in calls)
        wrong = _fault(ended[number], session.state, wanted) if number < len(ended) else "does not end"
        if wrong:
            return Score.of(False, f"turn {number + 1} {wrong}", number / len(turns), turns=(number, len(turns)))
    return Score.of(True, "correct", turns=(len(turns), len(turns)))


def _fault(ended: _Ended, state: Mapping[str, Mapping[str, Any]], wanted: Counter[str]) -> str | None:
    if not wanted:
        return None
    if not ended.steps:
        return "makes no call"
    for name, attributes in state.items():
        for key, value in attributes.items():
            if ended.state[name][key] != value:
                return f"leaves {name} with {key} {str(ended.state[name][key])[:100]}, not {str(value)[:100]}"
    missing = wanted - ended.results
    return f"never saw {next(iter(missing))[:100]}" if missing else None


def read(file: Path, faults: Faults) -> Iterator[Draft]:
    """A multi-turn category with its possible answers and function documents beside, as published or as ``func_doc_*``."""
    answers = possible_answers(file)
    documents = {name: _documents(file.parent, name) for name in APIS}
    return drafts_of(lambda row: [_dialogue(row, answers[row.values["id"]], documents)])(file, faults)


def _documents(folder: Path, api: str) -> list[dict[str, Any]]:
    name = _DOCUMENTS[api]
    found = [*folder.glob(f"func_doc_{name}.*"), *folder.glob(f"multi_turn_func_doc/{name}.*")]
    if not found:
        raise UserError(f"{folder} needs the functions of {api}, in multi_turn_func_doc/{name}.json; fetch them too")
    return [row.values for row in read_rows(found[0])]


def _dialogue(row: Row, calls: Sequence[Sequence[str]], documents: Mapping[str, list[dict[str, Any]]]) -> Draft:
    values = row.values
    unknown = [name for name in values["involved_classes"] if name not in APIS]
    if unknown:
        raise ValueError(f"it needs {unknown[0]}, and the APIs here are {', '.join(APIS)}")
    if "missed_function" in values:
        raise ValueError("some of its functions come later, which is another category")
    apis = values["involved_classes"]
    excluded = values.get("excluded_function", ())
    functions = {each["name"]: each for name in apis for each in documents[name] if each["name"] not in excluded}
    asked = [list(turn) for turn in values["question"]]
    if len(asked) != len(calls):
        raise ValueError(f"it has {len(asked)} turns and the answers of {len(calls)}")
    made = [[_call(text, functions) for text in turn] for turn in calls]
    tools = [tool(each) for each in functions.values()]
    return _draft(apis, values["initial_config"], asked, made, tools, id=values["id"])


def _call(text: str, functions: Mapping[str, Mapping[str, Any]]) -> Call:
    """A call as BFCL writes it, ``sort('a.txt')``, with names for what stands without."""
    node = parse_expression(text)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise TypeError(f"{text!r} is no call")
    names = functions[node.func.id]["parameters"]["properties"] if node.args else ()
    values = dict(zip(names, node.args, strict=False)) | {str(each.arg): each.value for each in node.keywords}
    return Call(node.func.id, {name: ast.literal_eval(value) for name, value in values.items()})


def _draft(
    apis: Sequence[str],
    config: Mapping[str, Any],
    asked: Sequence[list[dict[str, Any]]],
    calls: Sequence[Sequence[Call]],
    tools: list[dict[str, Any]],
    id: str | None = None,
) -> Draft:
    """A conversation whose worked continuation makes each turn's calls at once and then says so."""
    session = Session(apis, config)
    turns: list[dict[str, Any]] = []
    for number, made in enumerate(calls):
        turns += asked[number] if number else []
        if made:
            turns.append({"role": "assistant", "content": render_calls(made)})
            turns += [{"role": "tool", "content": session.call(call)} for call in made]
        turns.append({"role": "assistant", "content": "Done."})
    answer = {
        "apis": list(apis),
        "config": config,
        "turns": asked[1:],
        "calls": [[{"name": each.name, "arguments": each.arguments} for each in made] for made in calls],
    }
    return Draft(asked[0], turns, answer, tools, id)


_TYPES = {"str": "string", "str | None": "string", "int": "integer", "bool": "boolean"}
_ON_OFFER = ("mv", "cp", "rm", "mkdir", "touch", "echo", "cat", "wc")
_MOST_TURNS, _MOST_REQUESTS = 3, 2


def _described(name: str) -> dict[str, Any]:
    """A function of the file system as a tool."""
    method = getattr(FileSystem, name)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return {
        "name": name,
        "description": inspect.getdoc(method),
        "parameters": {
            "type": "object",
            "properties": {each.name: {"type": _TYPES[each.annotation]} for each in parameters},
            "required": [each.name for each in parameters if each.default is each.empty],
        },
    }


def draw(rng: Random, split: Split) -> Draft:
    """Requests about three files and two folders, one or two a turn, in one to three turns."""
    files = {f"{place_name(rng, split)}.txt": place_name(rng, split) for _ in range(3)}
    folders = [place_name(rng, split) for _ in range(2)]
    contents: dict[str, Any] = {name: {"type": "file", "content": text} for name, text in files.items()}
    contents |= {name: {"type": "directory", "contents": {}} for name in folders}
    config = {"GorillaFileSystem": {"root": {"home": {"type": "directory", "contents": contents}}}}
    here = list(files)
    said: list[str] = []
    calls: list[list[Call]] = []
    for _ in range(rng.randint(1, _MOST_TURNS)):
        parts = [_request(rng, split, here, folders) for _ in range(rng.randint(1, _MOST_REQUESTS)) if here]
        if parts:
            said.append(f"{'. '.join(text for text, _ in parts)}.")
            calls.append([call for _, call in parts])
    said[0] = f"The files {', '.join(files)} and the folders {' and '.join(folders)} are here. {said[0]}"
    asked = [[{"role": "user", "content": text}] for text in said]
    return _draft(["GorillaFileSystem"], config, asked, calls, [_described(name) for name in _ON_OFFER])


def _request(rng: Random, split: Split, here: list[str], folders: Sequence[str]) -> tuple[str, Call]:
    """Words for a request and its call; ``here``, the files in reach, is what the call leaves of them."""
    name, file, folder, new = rng.choice(_ON_OFFER), rng.choice(here), rng.choice(folders), place_name(rng, split)
    if name == "mv" and rng.random() < 0.5:
        here[here.index(file)] = f"{new}.txt"
        return f"Rename {file} to {new}.txt", Call("mv", {"source": file, "destination": f"{new}.txt"})
    if name in ("mv", "rm"):
        here.remove(file)
    if name == "mv":
        return f"Move {file} to {folder}", Call("mv", {"source": file, "destination": folder})
    if name == "cp":
        return f"Copy {file} to {new}.txt", Call("cp", {"source": file, "destination": f"{new}.txt"})
    if name == "mkdir":
        return f"Make a folder {new}", Call("mkdir", {"dir_name": new})
    if name == "touch":
        return f"Make an empty file {new}.txt", Call("touch", {"file_name": f"{new}.txt"})
    if name == "echo":
        return f"Write {new} to {file}", Call("echo", {"content": new, "file_name": file})
    says, more = {
        "rm": ("Delete {}", {}),
        "cat": ("Show me {}", {}),
        "wc": ("Count the words of {}", {"mode": "w"}),
    }[name]
    return says.format(file), Call(name, {"file_name": file, **more})
