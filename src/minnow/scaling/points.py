"""Runs to fit a law on: read from tables or run folders, and checked for what would make a fit meaningless."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minnow.data.table import read_rows
from minnow.errors import UserError
from minnow.files import read_json
from minnow.scaling.laws import TRAIN_FLOPS, Array, human

POINTS = "points.csv"
"""What `minnow scaling sweep` leaves in its run folder."""

DATA_SET_COLUMNS = ("dataset", "data_set", "data", "corpus", "eval", "eval_set", "validation", "domain", "split")
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_NUMBER = re.compile(r"^\s*([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*([kmbgtpe]?)\s*$", re.IGNORECASE)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_SMALLEST_COUNT = 1e3  # a size or a number of tokens below this was given in millions or billions
_LARGEST_LOSS = 15.0  # nats; a uniform guess over 262,144 words costs 12.5
_GAP = 300.0  # between neighbouring sizes: no ladder leaves such a gap, a change of unit does
_RATIOS = (1e-3, 1e8)  # tokens per parameter


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the files; None for what they do not hold.

    ``flops`` stands in for ``params`` or ``tokens`` (``C = 6 N D``); when all three are named they are compared.
    """

    params: str | None = "params"
    tokens: str | None = "tokens"
    loss: str | None = "loss"
    flops: str | None = None
    unique: str | None = None
    samples: str | None = None
    correct: str | None = None
    accuracy: str | None = None


@dataclass(frozen=True)
class Points:
    """Checked columns, all ``[points]`` in float64; those a file does not have are None.

    Attributes:
        loss: nats per token.
        unique: different tokens in the training data.
        samples, correct: answers drawn, and right ones among them.
        accuracy: share of right answers in 0..1.
        places: where each row stands, for messages.
    """

    params: Array
    tokens: Array
    loss: Array
    unique: Array | None = None
    samples: Array | None = None
    correct: Array | None = None
    accuracy: Array | None = None
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops(self) -> Array:
        return TRAIN_FLOPS * self.params * self.tokens

    def take(self, index: Any) -> Points:
        """The rows of a mask or of row numbers, in that order."""
        rows = np.arange(len(self))[index]
        values: dict[str, Any] = {
            key: None if (column := getattr(self, key)) is None else column[rows]
            for key in ("params", "tokens", "loss", "unique", "samples", "correct", "accuracy")
        }
        return Points(**values, places=tuple(self.places[row] for row in rows) if self.places else ())


def read_points(paths: Sequence[Path], columns: Columns, where: Sequence[str] = ()) -> Points:
    """Read tables (:func:`minnow.data.table.read_rows`), or run folders (their ``pretrain`` stages), and check the rows.

    Args:
        where: conditions a row must meet, such as ``dataset=c4``, ``ratio<=20``; ``ratio`` (tokens per parameter),
            ``params``, ``tokens``, ``flops`` and ``loss`` are known whatever the columns are called.

    Raises:
        UserError: a file that cannot be read, a missing column, values that are no positive numbers, mixed units,
            repeated rows, or losses on different data sets.
    """
    if not paths:
        raise UserError("name at least one file of runs (.csv, .jsonl, .parquet) or run folder")
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        rows += _rows(path, columns)
    conditions = [_condition(text) for text in where]
    kept: list[tuple[str, Mapping[str, Any], dict[str, float]]] = []
    for place, row in rows:
        # Rows that a column of theirs leaves out may hold anything.
        if not all(_holds(one, row, {}, place) for one in conditions if one[0] in row):
            continue
        number = _numbers(place, row, columns)
        if all(_holds(one, row, number, place) for one in conditions if one[0] not in row):
            kept.append((place, row, number))
    if not kept:
        raise UserError(f"no row of {len(rows)} meets {' and '.join(where)}; loosen --where")
    _one_data_set([row for _, row, _ in kept])
    places = tuple(place for place, _, _ in kept)
    values = {key: np.array([number[key] for *_, number in kept]) for key in kept[0][2]}
    blank = np.full(len(kept), np.nan)
    points = Points(
        params=values.get("params", blank),
        tokens=values.get("tokens", blank),
        loss=values.get("loss", blank),
        places=places,
        **{key: values[key] for key in ("unique", "samples", "correct", "accuracy") if key in values},
    )
    _one_unit(points, values.get("flops") if columns.params and columns.tokens else None)
    if columns.correct is None:
        _no_twins(points)
    return points


def _rows(path: Path, columns: Columns) -> list[tuple[str, Mapping[str, Any]]]:
    if not path.is_dir():
        return [(row.place, row.values) for row in read_rows(path)]
    sweep = path / POINTS
    return _rows(sweep, columns) if sweep.exists() else _run_folder(path, columns)


def _run_folder(folder: Path, columns: Columns) -> list[tuple[str, Mapping[str, Any]]]:
    """One row for each finished pre-training stage in a run folder, under the names of the columns."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for done in sorted(folder.glob("*/done.json")):
        stage = done.parent
        if read_json(stage / "config.json").get("kind") != "pretrain":
            continue
        result = read_json(stage / "result.json")
        names = {
            columns.params: "parameters",
            columns.tokens: "tokens",
            columns.loss: "held_out_loss",
            columns.unique: "corpus_tokens",
        }
        rows.append((str(stage), {name: result.get(key) for name, key in names.items() if name}))
    if not rows:
        raise UserError(f"{folder} holds no finished pretrain stage; name a run folder or a table of runs")
    return rows


def _numbers(place: str, row: Mapping[str, Any], columns: Columns) -> dict[str, float]:
    """The named columns of one row as positive numbers, with tokens or parameters from the FLOPs where missing."""
    found: dict[str, float] = {}
    for key in ("params", "tokens", "loss", "flops", "unique", "samples", "correct", "accuracy"):
        name = getattr(columns, key)
        if name is None:
            continue
        if name not in row:
            known = ", ".join(str(one) for one in row)
            raise UserError(f"{place} has no column {name}; name the column with --{key} (there are: {known})")
        value = parse_count(row[name])
        least_allowed = value is not None and (value > 0 or (key in ("correct", "accuracy") and value == 0))
        if value is None or not math.isfinite(value) or not least_allowed:
            raise UserError(f"{place}: {name} is {row[name]!r}; it must be a positive number, so correct or remove it")
        found[key] = value
    if "flops" in found:
        if "params" in found and "tokens" not in found:
            found["tokens"] = found["flops"] / (TRAIN_FLOPS * found["params"])
        elif "tokens" in found and "params" not in found:
            found["params"] = found["flops"] / (TRAIN_FLOPS * found["tokens"])
    if found.get("accuracy", 0) > 1:
        raise UserError(f"{place}: an accuracy of {found['accuracy']:g} is above 1; give shares, not percent")
    if "correct" in found and found["correct"] > found.get("samples", math.inf):
        raise UserError(f"{place}: {found['correct']:g} right answers of {found['samples']:g}; swap the columns?")
    return found


def resampled(points: int, draws: int, seed: int) -> Array:
    """How often each point comes in each bootstrap draw, ``[draws, points]``: as many as there are, with replacement."""
    return np.random.default_rng(seed).multinomial(points, np.full(points, 1 / points), draws).astype(np.float64)


def parse_count(text: Any) -> float | None:
    """A number, also with a suffix: ``350M``, ``28T``, ``1.5e22``; None for anything else."""
    if isinstance(text, bool) or text is None:
        return None
    if isinstance(text, int | float):
        return float(text)
    match = _NUMBER.match(str(text))
    return float(match[1].replace(",", "")) * _SUFFIXES[match[2].lower()] if match else None


def _condition(text: str) -> tuple[str, str, str]:
    for sign in _COMPARISONS:
        name, found, value = text.partition(sign)
        if found and name.strip():
            return name.strip(), sign, value.strip()
    raise UserError(f"--where {text} is no condition; write it as dataset=c4 or ratio<=20")


def _holds(condition: tuple[str, str, str], row: Mapping[str, Any], number: dict[str, float], place: str) -> bool:
    name, sign, value = condition
    derived = dict(number)
    if "params" in number and "tokens" in number:
        derived["ratio"] = number["tokens"] / number["params"]
        derived.setdefault("flops", TRAIN_FLOPS * number["params"] * number["tokens"])
    have: Any = row[name] if name in row else derived.get(name)
    if have is None:
        raise UserError(f"{place} has no column {name}; --where can use {', '.join([*map(str, row), 'ratio'])}")
    left, right = parse_count(have), parse_count(value)
    if left is not None and right is not None:
        return _COMPARISONS[sign](left, right)
    if sign not in ("=", "!="):
        raise UserError(f"--where {name}{sign}{value} compares {have!r}, which is no number; use = or !=")
    return _COMPARISONS[sign](str(have), value)


def _one_data_set(rows: Sequence[Mapping[str, Any]]) -> None:
    for name in rows[0]:
        if str(name).lower() in DATA_SET_COLUMNS:
            found = sorted({str(row.get(name)) for row in rows})
            if len(found) > 1:
                raise UserError(
                    f"the rows hold losses of {len(found)} data sets ({', '.join(found[:4])}); a law holds for one, so "
                    f"choose it with --where {name}={found[0]}"
                )


def _one_unit(points: Points, flops: Array | None) -> None:
    for what, values in (("parameters", points.params), ("tokens", points.tokens), ("unique tokens", points.unique)):
        if values is None or np.isnan(values).any():
            continue
        low = int(values.argmin())
        small = values < _SMALLEST_COUNT
        if small.any():
            raise UserError(
                f"{points.places[low]} has {values[low]:g} {what}"
                + (
                    f" while {points.places[int(values.argmax())]} has {values.max():g}: mixed units"
                    if not small.all()
                    else ""
                )
                + "; write plain counts, or suffixes such as 350M and 28T"
            )
        ordered = np.sort(values)
        gap = int(np.argmax(ordered[1:] / ordered[:-1])) if len(ordered) > 1 else 0
        if len(ordered) > 1 and ordered[gap + 1] > _GAP * ordered[gap]:
            raise UserError(
                f"{what} jump from {human(ordered[gap])} to {human(ordered[gap + 1])} with nothing between: mixed "
                "units; write plain counts everywhere"
            )
    ratio = points.tokens / points.params
    for row in np.flatnonzero((ratio < _RATIOS[0]) | (ratio > _RATIOS[1])):
        raise UserError(
            f"{points.places[row]} has {ratio[row]:.2g} tokens per parameter: mixed units; give both as plain counts"
        )
    for row in np.flatnonzero(points.loss > _LARGEST_LOSS):
        raise UserError(
            f"{points.places[row]} has a loss of {points.loss[row]:g} nats, more than a uniform guess costs; give the "
            "loss, not the perplexity"
        )
    if flops is not None:
        off = points.flops / flops
        for row in np.flatnonzero((off < 1 / 3) | (off > 3)):
            raise UserError(
                f"{points.places[row]} names {flops[row]:.3g} FLOPs but 6 N D is {points.flops[row]:.3g}: mixed units; "
                "correct it, or leave out --flops"
            )


def _no_twins(points: Points) -> None:
    seen: dict[tuple[float, ...], str] = {}
    named = (points.params, points.tokens, points.loss, points.unique, points.samples, points.accuracy)
    table = np.stack([np.nan_to_num(column) for column in named if column is not None], axis=1)
    for place, row in zip(points.places, map(tuple, table.tolist()), strict=True):
        if row in seen:
            raise UserError(f"{place} repeats {seen[row]}; a run counts once, so remove one of them")
        seen[row] = place
