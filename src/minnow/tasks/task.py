"""A task: prompts in two splits and a verifier; from files, drawn from a seed, or of the pocket world."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from minnow.data.table import Faults, Row, read_rows
from minnow.errors import UserError
from minnow.tasks.names import split_of
from minnow.tasks.types import SPLITS, Draft, Example, Score, Split

Verifier = Callable[[Any, str], Score]
"""An example's ``answer`` and the assistant's text (without its end mark and its thoughts) to a verdict."""

Follow = Callable[[Any, Sequence[str]], list[dict[str, Any]] | None]
"""An example's ``answer`` and the assistant's turns so far to the messages that come next; None where it has ended."""

LONGEST_ANSWER = 200_000
"""Characters; a longer text is wrong unread, whatever a verifier would make of it."""

DRAWN_EXAMPLES = 200
"""Examples of a task without an end, unless told otherwise."""

_REDRAWS = 200  # tries for a prompt that has not come yet, before a drawn task counts as exhausted
_VERIFIERS: dict[str, Verifier] = {}
_FOLLOWS: dict[str, Follow] = {}
_BUILT_IN: set[str] = set()


@dataclass(frozen=True)
class Task:
    """A narrow job for a model.

    Attributes:
        name: what its examples carry as ``task``.
        examples: the first ``n`` of a split; all of them (of a task without an end :data:`DRAWN_EXAMPLES`) for None.
        verify: see :data:`Verifier`.
        max_new_tokens: the budget of one answer.
        follow: of a task whose answers are conversations; ``verify`` sees the assistant's turns of one
            (:func:`minnow.data.chat.joined`).
    """

    name: str
    examples: Callable[[Split, int | None], list[Example]]
    verify: Verifier
    max_new_tokens: int = 256
    follow: Follow | None = None

    def __post_init__(self) -> None:
        register(self.name, self.verify, follow=self.follow)


def register(name: str, verify: Verifier, built_in: bool = False, follow: Follow | None = None) -> None:
    """Make ``verify`` the word on every example of the task ``name``; making a :class:`Task` does it.

    Raises:
        UserError: no name for a task, or that of a built-in one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise UserError(f"{name!r} cannot name a task; use small letters, digits, '-', '_' and '.'")
    if built_in:
        _BUILT_IN.add(name)
    elif name in _BUILT_IN and _VERIFIERS[name] is not verify:
        raise UserError(f"{name!r} is a built-in task; give yours another name")
    _VERIFIERS[name] = verify
    _FOLLOWS.pop(name, None)
    if follow is not None:
        _FOLLOWS[name] = follow


def following(example: Example, texts: Sequence[str]) -> list[dict[str, Any]] | None:
    """What the assistant reads after its turns ``texts``; None where the example asks for no more."""
    follow = _FOLLOWS.get(example.task)
    return None if follow is None else follow(example.answer, texts)


def refuse_conversations(examples: Iterable[Example]) -> None:
    """Refuse examples whose answers are conversations, for what takes one answer each.

    Raises:
        UserError: naming the task.
    """
    for example in examples:
        if example.task in _FOLLOWS:
            raise UserError(
                f"the task {example.task!r} is a conversation of several turns; only 'minnow eval' holds one, and 'minnow "
                "sft' trains on its worked examples"
            )


def judge(example: Example, text: str) -> Score:
    """The verdict of the example's task on the assistant's raw text; what its verifier raises is a ``fault``.

    A leading ``<think>`` block does not count as part of the answer.

    Raises:
        UserError: no such task has been made.
    """
    if example.task not in _VERIFIERS:
        raise UserError(f"there is no verifier for the task {example.task!r}; make the task first")
    if len(text) > LONGEST_ANSWER:
        return Score.wrong(f"longer than {LONGEST_ANSWER:,} characters")
    try:
        score = _VERIFIERS[example.task](example.answer, spoken(text))
        if not (isinstance(score, Score) and 0 <= score.value <= 1):
            raise TypeError(f"it returned {score!r}, not a Score with a value in [0, 1]")
    except (Exception, SystemExit) as error:  # noqa: BLE001  a verifier may be anybody's code, and there are other answers
        said = f"{type(error).__name__}: {error}"[:300]
        return Score(0.0, False, f"the verifier failed ({said})", fault=said)
    return score


def spoken(text: str) -> str:
    """An answer without its end mark and without the thoughts before it."""
    text = text.removesuffix("<|im_end|>").strip()
    return text.partition("</think>")[2].strip() if text.startswith("<think>") else text


def file_task(
    name: str,
    read: Callable[[Path, Faults], Iterable[Draft]],
    verify: Verifier,
    files: Mapping[Split, Path] | Path,
    max_new_tokens: int = 256,
    faults: Faults | None = None,
    follow: Follow | None = None,
) -> Task:
    """A task whose examples stand in files.

    Args:
        read: the drafts of a file; see :func:`drafts_of`.
        files: one for each split; or one for both, of which every prompt belongs to a split by its checksum, one in five
            to the held-out one.
        faults: what becomes of rows that cannot be used.

    Raises:
        UserError: bad rows, or a prompt that stands in both splits; when examples are asked for.
    """
    faults = faults or Faults()
    held: dict[Split, list[Example]] = {}

    def load() -> None:
        if isinstance(files, Path):
            drafts = list(read(files, faults))
            parts = {
                split: [each for each in drafts if split_of(prompt_text(each.messages)) == split] for split in SPLITS
            }
        else:
            parts = {split: list(read(file, faults)) for split, file in files.items()}
        for split, drafts in parts.items():
            held[split] = examples_of(name, split, drafts)
        refuse_leaks(name, held)

    def examples(split: Split, n: int | None) -> list[Example]:
        if not held:
            load()
        if not held.get(split):
            raise UserError(f"the task {name!r} has no {split} examples; name a file of them")
        return held[split][:n]

    return Task(name, examples, verify, max_new_tokens, follow)


def drawn_task(
    name: str,
    draw: Callable[[Random, Split], Draft],
    verify: Verifier,
    seed: int = 0,
    max_new_tokens: int = 256,
    follow: Follow | None = None,
) -> Task:
    """A task drawn from a seed: ``draw`` makes one draft; prompts do not repeat, and belong to one split each.

    A longer request begins with the examples of a shorter one.
    """

    def examples(split: Split, n: int | None) -> list[Example]:
        rng = Random(f"{seed}/{name}/{split}")

        def of_split() -> Draft:
            while split_of(prompt_text((draft := draw(rng, split)).messages)) != split:
                pass
            return draft

        drafts = distinct(of_split, repeat=split == "train")
        return examples_of(name, split, islice(drafts, DRAWN_EXAMPLES if n is None else n))

    return Task(name, examples, verify, max_new_tokens, follow)


def distinct(draw: Callable[[], Draft], repeat: bool) -> Iterator[Draft]:
    """Drafts whose prompts have not come yet, for as long as a few tries find one; with ``repeat`` it starts over."""
    seen: set[str] = set()
    while True:
        for _ in range(_REDRAWS):
            draft = draw()
            if (asked := prompt_text(draft.messages)) not in seen:
                break
        else:
            if not repeat:
                return
            seen.clear()
        seen.add(asked)
        yield draft


def examples_of(task: str, split: Split, drafts: Iterable[Draft]) -> list[Example]:
    """Drafts as examples of a split; one without an id, or with an earlier one's, is named by its number."""
    out: dict[str, Example] = {}
    for number, draft in enumerate(drafts, start=1):
        name = draft.id if draft.id is not None and draft.id not in out else f"{task}-{split}-{number}"
        out[name] = Example(name, task, split, draft.messages, draft.turns, draft.answer, draft.tools)
    return list(out.values())


def drafts_of(parse: Callable[[Row], Iterable[Draft]]) -> Callable[[Path, Faults], Iterator[Draft]]:
    """A reader for :func:`file_task` from what makes drafts of one row.

    A row that ``parse`` finds wanting (KeyError, TypeError, ValueError, IndexError) is a fault with its line's number.
    """

    def read(file: Path, faults: Faults) -> Iterator[Draft]:
        for row in read_rows(file, faults):
            try:
                yield from list(parse(row))
            except KeyError as error:
                faults.add(f"{row.place} has no {error}; add it or remove the row")
            except (TypeError, ValueError, IndexError, AttributeError) as error:
                faults.add(f"{row.place} cannot be used ({error}); correct or remove it")

    return read


def beside(file: Path, ending: str, other: Path) -> Path | None:
    """What belongs to a file of data: ``NAME<ending>`` with the file's own suffixes, or ``other``; None without either."""
    compressed = file.suffix if file.suffix in (".gz", ".xz") else ""
    plain = Path(file.name.removesuffix(compressed))
    own = file.with_name(f"{plain.stem}{ending}{plain.suffix}{compressed}")
    return next((each for each in (own, other) if each.is_file()), None)


def refuse_leaks(name: str, splits: Mapping[Split, Sequence[Example]]) -> None:
    """Refuse a task with a prompt in both of its splits (case and spacing aside).

    Raises:
        UserError: naming the task, how many prompts there are and the first of them.
    """
    if not (splits.get("train") and splits.get("held_out")):
        return
    trained = {_folded(each): each.id for each in splits["train"]}
    leaking = [(each.id, trained[key]) for each in splits["held_out"] if (key := _folded(each)) in trained]
    if leaking:
        (held_out, train), count = leaking[0], len(leaking)
        raise UserError(
            f"the splits of the task {name!r} leak: {count} held-out prompt{'s are' if count > 1 else ' is'} also in the "
            f"training split (the first is {held_out}, there {train}); remove them from one of the two"
        )


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages of a prompt as the text whose checksum says which split it belongs to (:func:`split_of`)."""
    return json.dumps(messages, sort_keys=True, ensure_ascii=False)


def _folded(example: Example) -> str:
    return " ".join(prompt_text(example.messages).casefold().split())
