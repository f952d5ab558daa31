"""How much a model knows: the bits in a table of facts, and how many of them a model's weights hold.

The measure is arXiv 2404.05405's: what a value costs without the model, less what it costs with it, summed over the
facts. It is a lower bound, for the model may know more than it says when it is asked in these words.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minnow.data.table import read_rows
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops.rate import Z_95, Rate
from minnow.rollout.scoring import Likelihood, Request, Scorer

PUBLISHED = {1000: 2.0, 100: 1.0}
"""Exposures to bits per parameter, the most that GPT-2 models were found to hold, in 8-bit weights too (2404.05405)."""

_AT_ONCE = 64  # names asked for between two signs of progress


@dataclass(frozen=True)
class Facts:
    """A table of facts.

    Attributes:
        subject: what the names are called in texts.
        names: what is known of, each different.
        values: for each attribute the value of each name, None where there is none.
    """

    subject: str
    names: tuple[str, ...]
    values: dict[str, tuple[str | None, ...]]

    def entropy(self, attribute: str) -> float:
        """Bits in one fact for who knows how often each value occurs, and nothing of the names."""
        counts = Counter(value for value in self.values[attribute] if value is not None)
        total = counts.total()
        return sum(count / total * math.log2(total / count) for count in counts.values())

    def count(self, attribute: str) -> int:
        """Names that have the attribute."""
        return sum(value is not None for value in self.values[attribute])

    @property
    def bits(self) -> float:
        """In all facts, each attribute by itself: where one follows from another, the table holds less."""
        return sum(self.count(attribute) * self.entropy(attribute) for attribute in self.values)

    def rows(self) -> Iterator[dict[str, str | None]]:
        """One dictionary for each name, under ``subject`` and the attributes."""
        for place, name in enumerate(self.names):
            yield {self.subject: name, **{attribute: values[place] for attribute, values in self.values.items()}}


def read_facts(file: Path, name: str, attributes: Sequence[str] = ()) -> Facts:
    """Read a table of facts: JSON lines, JSON, CSV or Parquet, one row for each name.

    Args:
        name: the column of names.
        attributes: the columns of values; by default all others.

    Raises:
        UserError: a file that cannot be read, a missing column, a name that is missing or stands twice, a value that is
            a list or an object, or nothing to know.
    """
    rows = read_rows(file)
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    wanted = [column for column in attributes or columns if column != name]
    for column in (name, *wanted):
        if column not in columns:
            raise UserError(f"{file} has no column {column}; name one of {', '.join(map(str, columns))}")
    places: dict[str, str] = {}
    values: dict[str, list[str | None]] = {attribute: [] for attribute in wanted}
    for row in rows:
        known = _text(row.values.get(name), name, row.place)
        if known is None:
            raise UserError(f"{row.place} has no {name}; name what its facts are about or remove it")
        if known in places:
            raise UserError(f"{row.place} and {places[known]} are both about {known}; join them into one row")
        places[known] = row.place
        for attribute in wanted:
            values[attribute].append(_text(row.values.get(attribute), attribute, row.place))
    facts = Facts(name, tuple(places), {attribute: tuple(column) for attribute, column in values.items()})
    if not facts.bits:
        raise UserError(
            f"no column of {file} but {name} holds different values, so there is nothing to know; add facts"
        )
    return facts


def _text(value: object, column: str, place: str) -> str | None:
    if isinstance(value, dict | list):
        raise UserError(f"{place}: {column} is a {type(value).__name__}; give each fact a column of its own")
    return str(value).strip() or None if value is not None else None


@dataclass(frozen=True)
class Recall:
    """What a model knows of one attribute.

    Attributes:
        bits: stored per fact; below 0 where the model does worse than the values' frequencies alone.
        recalled: facts whose every token the model holds most probable.
    """

    attribute: str
    bits: float
    recalled: Rate


@dataclass(frozen=True)
class Stored:
    """Bits of a table that a model holds, with the 95% interval where only some names were asked for."""

    attributes: tuple[Recall, ...]
    names: int
    bits: float
    low: float
    high: float


def stored(
    scorer: Scorer,
    words: Tokenizer,
    facts: Facts,
    text: str,
    names: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda advanced: None,
) -> Stored:
    """Ask a model for facts in the words of ``text`` and count the bits that it need not be told.

    Every value is scored with the token after it, which ends it, given all that stands before it.

    Args:
        text: with the attributes it tells in braces, such as ``"{name} was born in {town}."``; the name comes first.
        names: the most to ask for, drawn by ``seed``; those that lack one of the attributes are left out.
        progress: called with the names just asked for.

    Raises:
        UserError: ``text`` names no attribute or an unknown one, or no name has them all.
    """
    told = told_by(text, facts)
    rows = [row for row in facts.rows() if all(row[attribute] is not None for attribute in told)]
    if not rows:
        raise UserError(f"no row has a value for all of {', '.join(told)}; tell fewer of them in one text")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:names])
    scores: list[Likelihood] = []
    for begin in range(0, len(chosen), _AT_ONCE):
        part = chosen[begin : begin + _AT_ONCE]
        scores += scorer.log_likelihoods([one for place in part for one in _requests(words, text, rows[place], told)])
        progress(len(part))
    costs = np.array([-each.log_prob / math.log(2) for each in scores]).reshape(len(chosen), len(told))
    greedy = np.array([each.greedy for each in scores]).reshape(costs.shape)
    gained = np.array([facts.entropy(attribute) for attribute in told]) - costs
    attributes = tuple(
        Recall(attribute, float(gained[:, column].mean()), Rate(int(greedy[:, column].sum()), len(chosen)))
        for column, attribute in enumerate(told)
    )
    each = gained.sum(axis=1)
    left = 1 - len(chosen) / len(rows)  # with every name asked for nothing is left open
    half = Z_95 * math.sqrt(left * each.var(ddof=1) / len(each)) if len(each) > 1 else 0.0
    low, middle, high = (len(rows) * max(0.0, float(each.mean()) + off) for off in (-half, 0.0, half))
    return Stored(attributes, len(chosen), middle, low, high)


def told_by(text: str, facts: Facts) -> list[str]:
    """The attributes in the braces of ``text``.

    Raises:
        UserError: it cannot be read, tells none or an unknown one, or something twice.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(
            f"--text {text!r} cannot be read ({error}); write it as '{{name}} was born in {{town}}.'"
        ) from error
    for field in fields:
        if field != facts.subject and field not in facts.values:
            raise UserError(f"--text tells {{{field}}}; the table has {', '.join((facts.subject, *facts.values))}")
    if len(fields) < 2 or fields[0] != facts.subject:
        raise UserError(f"--text must tell {{{facts.subject}}} first and then at least one attribute in braces")
    told = fields[1:]
    if len(set(fields)) < len(fields):
        raise UserError("--text tells something twice; the second time is no test of knowledge, so leave it out")
    return told


def _requests(words: Tokenizer, text: str, row: dict[str, str | None], told: Sequence[str]) -> Iterator[Request]:
    """For each attribute what stands before its value, and the value's tokens with the one after them."""
    whole, ends = "", []
    for literal, field, _, _ in string.Formatter().parse(text):
        whole += literal
        if field is not None:
            begin = len(whole)
            whole += row[field] or ""
            ends.append((begin, len(whole)))
    ids, spans = words.encode_with_spans(whole)
    places = [[place for place, (low, high) in enumerate(spans) if low < end and high > begin] for begin, end in ends]
    values = {place for each in places for place in each}
    for inside in places[1:]:
        first, last = inside[0], inside[-1] + 1
        # Where another value follows at once, its own first token ends this one.
        yield [*words.begin, *ids[:first]], ids[first : last + (last not in values)]
