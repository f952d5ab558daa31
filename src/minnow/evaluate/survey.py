"""A measurement of loops that can be killed and goes on: which answers are asked for, and the file they are kept in.

One JSON line per answer, with its verdict and the settings it came about under, appended in whole lines: such a file
is also a transcript that ``minnow loops detect`` reads, and two of them can be compared.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.loops import Judged, judge, judge_rollout, with_rules
from minnow.files import append_rows, writing
from minnow.loops import Loop
from minnow.rollout.records import Sampling
from minnow.rollout.text_engine import ChatPrompt, TextAnswer, TextEngine, converse
from minnow.tasks import Example
from minnow.tasks.task import following

FAILED = "failed"
Key = tuple[str, str, str, float, int]
"""Set, prompt id, digest of what the model was asked, temperature, sample."""


@dataclass(frozen=True)
class Question:
    """One answer that is wanted."""

    set: str
    example: Example
    temperature: float
    sample: int

    @cached_property
    def key(self) -> Key:
        asked = json.dumps([self.example.messages, self.example.tools], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.set, self.example.id, digest, float(self.temperature), self.sample


def questions(sets: Mapping[str, Sequence[Example]], temperatures: Sequence[float], samples: int) -> list[Question]:
    """Every prompt at every temperature, ``samples`` times; greedy answers once, as they would be the same."""
    return [
        Question(name, example, temperature, sample)
        for name, examples in sets.items()
        for temperature in dict.fromkeys(temperatures)
        for sample in range(samples if temperature > 0 else 1)
        for example in examples
    ]


@dataclass(frozen=True)
class Settings:
    """What every answer of a file has in common; answers under other settings are no part of the same measurement.

    Attributes:
        model: as it was named; ``weights``: digest of its files, None for a server, which does not show them.
    """

    model: str
    runtime: str
    weights: str | None
    max_tokens: int
    seed: int
    raw: bool
    stop_on_loop: bool


class AnswerFile:
    """Answers kept in ``path`` (JSONL), or in memory only where it is None.

    A line that a kill cut short is taken away when the file is opened again.

    Raises:
        UserError: the file cannot be read or written, holds something else, or answers under other settings.
    """

    def __init__(self, path: Path | None, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.rows: dict[Key, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        self.rows = {key_of(row): row for row in read_answers(path)}
        for row in self.rows.values():
            for name, wanted in asdict(settings).items():
                if row[name] != wanted:
                    raise UserError(
                        f"{path} holds answers with {name} {row[name]!r}, not {wanted!r}; repeat the command they were "
                        "made with, or name another file with --out"
                    )
        with writing(path), path.open("r+b") as opened:
            opened.truncate(opened.read().rfind(b"\n") + 1)

    def holds(self, question: Question) -> bool:
        """Whether the answer is there; a failed request is none."""
        row = self.rows.get(question.key)
        return row is not None and row["finish_reason"] != FAILED

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows; they are on the disk when this returns."""
        self.rows |= {key_of(row): row for row in rows}
        if self.path is not None:
            append_rows(self.path, rows)


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "set": str,
    "task": str,
    "prompt": str,
    "digest": str,
    "temperature": (int, float),
    "sample": int,
    "text": str,
    "finish_reason": str,
    "tokens": (int, type(None)),
    "loop": (dict, type(None)),
    "onset_token": (int, type(None)),
    "period_tokens": (int, type(None)),
    "cause": (str, type(None)),
    "rules": list,
    "error": (str, type(None)),
    "model": str,
    "runtime": str,
    "weights": (str, type(None)),
    "max_tokens": int,
    "seed": int,
    "raw": bool,
    "stop_on_loop": bool,
}


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of answers, the last one left out where a kill cut it short.

    Raises:
        UserError: the file is missing or holds anything else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name a file that 'minnow loops measure' wrote"
        ) from error
    whole = data.rfind(b"\n") + 1
    rest, begins = data[whole:], b'{"id": "'
    if not (rest.startswith(begins) or begins.startswith(rest)):
        raise UserError(f"the end of {path} is not what 'minnow loops measure' wrote; name another file")
    rows = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], kind) for name, kind in _FIELDS.items()):
                raise TypeError
            judged_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is not an answer that 'minnow loops measure' wrote; name another file"
            ) from error
        rows.append(row)
    return rows


def key_of(row: Mapping[str, Any]) -> Key:
    return row["set"], row["id"], row["digest"], float(row["temperature"]), row["sample"]


def row_of(question: Question, judged: Judged, settings: Settings, error: str | None = None) -> dict[str, Any]:
    """An answer as it is kept; positions of the loop are characters."""
    name, identifier, digest, temperature, sample = question.key
    return {
        "id": identifier,
        "set": name,
        "task": judged.task,
        "prompt": judged.prompt,
        "digest": digest,
        "temperature": temperature,
        "sample": sample,
        "text": judged.text,
        "finish_reason": judged.finish_reason,
        "tokens": judged.tokens,
        "loop": None if judged.loop is None else asdict(judged.loop),
        "onset_token": judged.onset,
        "period_tokens": judged.period,
        "cause": judged.cause,
        "rules": list(judged.rules or ()),
        "error": error,
        **asdict(settings),
    }


def judged_of(row: Mapping[str, Any]) -> Judged:
    """The answer of a row, with its verdict."""
    return Judged(
        row["task"],
        row["prompt"],
        row["text"],
        row["finish_reason"],
        row["temperature"],
        row["max_tokens"],
        row["tokens"],
        None if row["loop"] is None else Loop(**row["loop"]),
        row["onset_token"],
        row["period_tokens"],
        row["cause"],
        tuple(row["rules"]),
    )


def ending_of(row: Mapping[str, Any]) -> str:
    """How an answer ended; a loop that was only seen afterwards counts as its end."""
    return row["finish_reason"] if row["loop"] is None else "loop"


def survey(
    engine: TextEngine,
    tokenizer: Tokenizer | None,
    wanted: Sequence[Question],
    file: AnswerFile,
    advance: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Ask for what ``file`` does not hold yet, failed requests once more; the rows of ``wanted`` in order.

    A batch that is not whole in the file is asked again as a whole, and gives the same answers as before: noise
    belongs to places in a batch.

    Args:
        tokenizer: of a local engine.
        advance: told of answers as they are kept.

    Raises:
        UserError: as the engine; what came before is kept.
    """

    for batch, seeds in _batches(wanted, engine.batch, file.settings.seed):
        if engine.batch is None:
            keep = [place for place, question in enumerate(batch) if not file.holds(question)]
            batch, seeds = [batch[place] for place in keep], [seeds[place] for place in keep]
        if all(map(file.holds, batch)):
            continue
        prompts = [
            ChatPrompt(each.example.id, each.example.messages, each.example.tools, file.settings.raw) for each in batch
        ]
        samplings = [
            Sampling(each.temperature, file.settings.max_tokens, seed, file.settings.stop_on_loop)
            for each, seed in zip(batch, seeds, strict=True)
        ]
        came: list[dict[str, Any]] = []
        for place, answer in converse(engine, prompts, samplings, partial(_following, batch)):
            if not file.holds(batch[place]):
                judged = _judged(batch[place].example, answer, tokenizer)
                came.append(row_of(batch[place], judged, file.settings, answer.error))
                if engine.batch is None:
                    file.append(came)
                    advance(len(came))
                    came = []
        if came:
            file.append(came)
            advance(len(came))
    return [file.rows[each.key] for each in wanted]


def _following(batch: Sequence[Question], place: int, texts: Sequence[str]) -> list[dict[str, Any]] | None:
    return following(batch[place].example, texts)


def _batches(wanted: Sequence[Question], size: int | None, seed: int) -> Iterator[tuple[list[Question], list[int]]]:
    """Questions that are asked together, with the seed of each: another one for every sample and batch."""
    if size is None:
        yield list(wanted), [_seed(seed, each.sample, 0) for each in wanted]
        return
    for _, group in groupby(wanted, key=lambda each: (each.set, each.temperature, each.sample)):
        members = list(group)
        for number, start in enumerate(range(0, len(members), size)):
            batch = members[start : start + size]
            yield batch, [_seed(seed, each.sample, number) for each in batch]


def _seed(seed: int, sample: int, batch: int) -> int:
    return zlib.crc32(f"{seed}/{sample}/{batch}".encode()) >> 1


def _judged(example: Example, answer: TextAnswer, tokenizer: Tokenizer | None) -> Judged:
    if answer.rollout is not None and tokenizer is not None:
        (judged,) = with_rules([judge_rollout(tokenizer, example, answer.rollout)])
        return judged
    sampling = answer.sampling
    plain = Judged(
        example.task,
        example.messages[-1]["content"],
        answer.text,
        answer.finish_reason,
        sampling.temperature,
        sampling.max_new_tokens,
        answer.tokens,
    )
    if answer.finish_reason == FAILED:
        return plain
    (judged,) = with_rules([judge(plain, answer.loop)])
    return judged
