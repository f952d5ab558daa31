"""``minnow loops compare``: two measurements over the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, columns, emit, warn
from minnow.errors import UserError
from minnow.evaluate.survey import FAILED, Key, key_of, read_answers
from minnow.loops import Paired

_Row = dict[str, Any]
_SIDES = {"A": "first", "B": "second"}
_SHOULD_AGREE = ("max_tokens", "raw", "stop_on_loop")


def compare(
    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")],
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")],
    /,
    as_json: AsJson = False,
) -> None:
    """Compare the loop rates of two measurements prompt by prompt: exact McNemar test, difference with 95% interval.

    Answers are paired by prompt, temperature and sample; whatever only one has is counted and left out.

    Args:
        first: what 'minnow loops measure' wrote with --out, a file or its folder.
        second: the other one; differences are its rate less the first's.
    """
    files = [path / "answers.jsonl" if path.is_dir() else path for path in (first, second)]
    rows, others = ({_asked(row): row for row in read_answers(file)} for file in files)
    named = [_named(file, each) for file, each in zip(files, (rows, others), strict=True)]
    answered = [{key: row for key, row in each.items() if row["finish_reason"] != FAILED} for each in (rows, others)]
    keys = [key for key in answered[0] if key in answered[1]]
    if not keys:
        raise UserError(
            f"{files[0]} and {files[1]} have no prompt, temperature and sample in common; measure both models with the "
            "same --prompts, --temperature and --samples"
        )
    pairs = [(answered[0][key], answered[1][key]) for key in keys]
    document: dict[str, Any] = {
        "first": named[0],
        "second": named[1],
        "only_in_first": len(answered[0]) - len(keys),
        "only_in_second": len(answered[1]) - len(keys),
        "all": _compared(pairs),
        "sets": _grouped(pairs, lambda row: (row["set"], row["temperature"])),
    }
    one, other = (next(iter(each.values())) for each in (rows, others))
    apart = [name for name in _SHOULD_AGREE if one[name] != other[name]]
    warn([f"{name} is {one[name]} in {files[0]} and {other[name]} in {files[1]}" for name in apart])
    emit(document, _compared_text(document), as_json)


def _asked(row: _Row) -> Key:
    """What the model was asked, whatever the set is called."""
    return ("", *key_of(row)[1:])


def _named(file: Path, rows: dict[Key, _Row]) -> dict[str, Any]:
    row = next(iter(rows.values()), None)
    if row is None:
        raise UserError(f"{file} holds no answers yet; run 'minnow loops measure' with --out {file} first")
    failed = sum(row["finish_reason"] == FAILED for row in rows.values())
    return {"file": str(file), "model": row["model"], "max_tokens": row["max_tokens"], "failed": failed}


def _compared(pairs: Sequence[tuple[_Row, _Row]]) -> dict[str, Any]:
    table = Paired.of(*([pair[side]["loop"] is not None for pair in pairs] for side in (0, 1)))
    one, other = table.rates
    return {"first": one.as_dict(), "second": other.as_dict(), **table.as_dict()}


def _grouped(pairs: Sequence[tuple[_Row, _Row]], group: Callable[[_Row], tuple[str, float]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float], list[tuple[_Row, _Row]]] = {}
    for pair in pairs:
        groups.setdefault(group(pair[0]), []).append(pair)
    return [{"set": name, "temperature": degree, **_compared(each)} for (name, degree), each in groups.items()]


def _compared_text(document: dict[str, Any]) -> str:
    rows = [["", "pairs", "A", "B", "both", "only A", "only B", "neither", "B - A", "95% interval", "p"]]
    groups = [(f"{each['set']} at {each['temperature']:g}", each) for each in document["sets"]]
    for name, found in [*groups, *([("all", document["all"])] if len(groups) > 1 else [])]:
        rows.append(
            [
                name,
                str(found["pairs"]),
                f"{found['first']['rate']:.1%}",
                f"{found['second']['rate']:.1%}",
                *(str(found[part]) for part in ("both", "only_first", "only_second", "neither")),
                f"{100 * found['difference']:+.1f}",
                f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}",
                f"{found['p_value']:.2g}",
            ]
        )
    names = [f"{letter}: {document[side]['model']} ({document[side]['file']})" for letter, side in _SIDES.items()]
    lines = [
        "\n".join(names),
        columns(rows),
        "Differences in percentage points (Newcombe's paired interval); p of the exact McNemar test.",
    ]
    left = [
        f"{document[f'only_in_{side}']} answers only {letter} has"
        for letter, side in _SIDES.items()
        if document[f"only_in_{side}"]
    ]
    left += [
        f"{document[side]['failed']} requests of {letter} that failed"
        for letter, side in _SIDES.items()
        if document[side]["failed"]
    ]
    lines += [f"Left out: {', '.join(left)}."] if left else []
    return "\n\n".join(lines)
