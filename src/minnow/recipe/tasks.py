"""The task that a name or a file means: built in, of the pocket world, one YAML or one Python file of the user's."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minnow.agent.expert import NAME as LOOKUPS
from minnow.agent.expert import lookup_task
from minnow.data.hub import local_file
from minnow.data.table import Faults, Row
from minnow.errors import UserError
from minnow.recipe.mapping import from_mapping, nearest
from minnow.recipe.schema import load_yaml
from minnow.tasks import TASKS, Draft, Example, PocketWorld, Split, Task, drafts_of, file_task
from minnow.tasks.builtin import BUILT_IN, built_in
from minnow.tasks.task import refuse_leaks
from minnow.tasks.types import SPLITS
from minnow.tasks.verifiers import VERIFIERS, reference_text, verifier_of

FILES = (".py", ".yaml", ".yml")
"""Endings of a task file."""


@dataclass(frozen=True)
class TaskFile:
    """A task in YAML: rows with prompts and answers, and the verifier that compares them.

    Attributes:
        prompt: what the user turn says, with ``{field}`` for a row's field; without one, rows hold ``messages`` or a
            ``prompt`` as it is.
        answer: the row's field with the expected answer; ``reference``: the one with the ideal text, where that differs.
        verifier: one of :data:`minnow.tasks.verifiers.VERIFIERS`.
        schema: JSON schema that the answer must satisfy (verifier ``json``).
        system: a system turn before every prompt.
        data: a file of which one prompt in five is held out; or ``train`` and ``held_out``, a file each. Paths are
            relative to the task file.
    """

    name: str
    verifier: str
    prompt: str | None = None
    answer: str = "answer"
    reference: str | None = None
    schema: dict[str, Any] | None = None
    system: str | None = None
    data: Path | None = None
    train: Path | None = None
    held_out: Path | None = None
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.verifier not in VERIFIERS:
            raise UserError(f"there is no verifier {self.verifier!r}; {nearest(self.verifier, VERIFIERS)}")
        if (self.data is None) == (self.train is None and self.held_out is None):
            raise UserError("name one file as data, or a file each as train and held_out")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; an answer needs at least 1")

    def files(self, folder: Path) -> Path | dict[Split, Path]:
        """The files of rows; ``folder`` is the task file's."""
        if self.data is not None:
            return folder / self.data
        named = dict(zip(SPLITS, (self.train, self.held_out), strict=True))
        return {split: folder / path for split, path in named.items() if path is not None}

    def drafts(self, row: Row) -> list[Draft]:
        """The one example of a row."""
        values = row.values
        answer = values[self.answer]
        if self.prompt is not None:
            messages: list[dict[str, Any]] = [{"role": "user", "content": _filled(self.prompt, values)}]
        elif "messages" in values:
            messages = _messages(values["messages"])
        else:
            messages = [{"role": "user", "content": _text(values, "prompt")}]
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        reply = _text(values, self.reference) if self.reference else reference_text(self.verifier, answer)
        identifier = values.get("id")
        return [
            Draft.plain(
                messages, reply, answer, tools=values.get("tools"), id=None if identifier is None else str(identifier)
            )
        ]


def _filled(template: str, values: Mapping[str, Any]) -> str:
    """``{field}`` replaced; other braces, as of JSON, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match[1]]), template)


def _text(values: Mapping[str, Any], field: str) -> str:
    if not isinstance(values[field], str):
        raise TypeError(f"its {field!r} is no text")
    return values[field]


def _messages(given: Any) -> list[dict[str, Any]]:
    if not (isinstance(given, list) and given and all(isinstance(each, dict) for each in given)):
        raise TypeError("its 'messages' are no list of messages")
    for each in given:
        if not (isinstance(each.get("role"), str) and isinstance(each.get("content"), str)):
            raise TypeError("a message has no 'role' and 'content' as text")
    return given


def load_task(
    source: str,
    faults: Faults | None = None,
    world: PocketWorld | None = None,
    seed: int = 0,
    data: Literal["train", "held_out", "both"] = "held_out",
) -> Task:
    """The task that ``source`` means: a name, ``NAME=FILE`` with its data, or a ``.yaml`` or ``.py`` file.

    Args:
        source: ``FILE`` is a path or ``hf://datasets/OWNER/NAME/PATH``, the only thing that is fetched.
        faults: what becomes of rows that cannot be used.
        world: of the run that a model belongs to; the pocket world's tasks come from it.
        seed: of a built-in task that is drawn.
        data: what the ``FILE`` of a built-in task is: a split, or both, of which one prompt in five is held out.

    Raises:
        UserError: there is no such task, or its file is wrong.
    """
    name, _, file = source.partition("=")
    path = Path(source)
    if source == LOOKUPS:
        return lookup_task(seed)
    if name not in BUILT_IN and path.suffix in FILES:
        if not path.is_file():
            raise UserError(f"there is no task file {path}; check the path")
        return _python_task(path) if path.suffix == ".py" else _yaml_task(path, faults)
    if name in BUILT_IN:
        local = local_file(file) if file else None
        return built_in(name, {} if local is None else local if data == "both" else {data: local}, seed, faults)
    if source in TASKS:
        if world is None:
            raise UserError(
                f"{source!r} is a task of the pocket world, and the model belongs to no run on one; name the model by its "
                "run folder"
            )
        return world.task(source)
    raise UserError(
        f"there is no task {name!r}; {nearest(name, [*BUILT_IN, LOOKUPS, *TASKS])}, or name a .yaml or .py file"
    )


def names_task(source: str) -> bool:
    """Whether :func:`load_task` would take ``source`` for a task."""
    name = source.partition("=")[0]
    return name in BUILT_IN or source in (*TASKS, LOOKUPS) or Path(source).suffix in FILES


def is_endless(source: str) -> bool:
    """Whether a task's examples are drawn, as many as are asked for."""
    return source in (*TASKS, LOOKUPS) or (source in BUILT_IN and BUILT_IN[source].draw is not None)


def _yaml_task(path: Path, faults: Faults | None) -> Task:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); write it as UTF-8 text") from error
    file = from_mapping(TaskFile, load_yaml(text, str(path)), str(path))
    try:
        verify = verifier_of(file.verifier, file.schema)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return file_task(file.name, drafts_of(file.drafts), verify, file.files(path.parent), file.max_new_tokens, faults)


def _python_task(path: Path) -> Task:
    try:
        found = runpy.run_path(str(path)).get("task")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run as a task ({type(error).__name__}: {error}); correct it") from error
    if not isinstance(found, Task):
        raise UserError(f"{path} makes no task; write task = Task(...) at its top level")
    examples = found.examples

    def checked(split: Split, n: int | None) -> list[Example]:
        both = {each: examples(each, None) for each in SPLITS}
        refuse_leaks(found.name, both)
        return examples(split, n)

    return replace(found, examples=checked)
