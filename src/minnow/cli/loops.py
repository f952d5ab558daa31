"""``minnow loops detect``: which texts end in a doom loop."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.transcripts import Transcript, transcripts
from minnow.errors import UserError
from minnow.loops import RULES, Rate, diagnose
from minnow.recipe.mapping import nearest

MINNOW_RULE, ALL_RULES = "minnow", "all"


def detect(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    /,
    rule: Annotated[str, tyro.conf.arg(metavar="RULE")] = MINNOW_RULE,
    field: str = "text",
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="print one JSON object per row instead of text")] = False,
) -> None:
    """Say of every transcript whether it ends in a doom loop: since where, of which kind, how sure, and why it was cut.

    Args:
        file: JSONL (objects with text or tokens, and optional id, finish_reason, max_tokens), or one plain text; - is
            standard input.
        rule: minnow, the name of a published rule, or all of the published rules: they disagree.
        field: the field that holds the text.
    """
    if rule not in (MINNOW_RULE, ALL_RULES, *RULES):
        raise UserError(f"there is no rule {rule!r}; {nearest(rule, [*RULES, MINNOW_RULE, ALL_RULES])}")
    counts: Counter[str] = Counter()
    rows = 0
    for row in transcripts(file, field):
        verdicts = _verdicts(row, rule)
        rows += 1
        for name, verdict in verdicts.items():
            counts[name] += verdict["loop"]
            found = {"id": row.id, **({"rule": name} if rule != MINNOW_RULE else {}), **verdict}
            if as_json:
                sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        if not as_json:
            sys.stdout.write(f"{row.id}: {_verdict_text(verdicts)}\n")
        sys.stdout.flush()
    if not as_json:
        names = RULES if rule == ALL_RULES else [rule]
        shares = [(name, Rate(counts[name], rows)) for name in names]
        lines = [f"{name}: {rate.count} of {rate.total} ({rate.low:.1%} to {rate.high:.1%})" for name, rate in shares]
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _verdicts(row: Transcript, rule: str) -> dict[str, dict[str, Any]]:
    """By rule: loop, kind, onset, period, copies, wasted, confidence and cause; None where a rule does not say."""
    if rule == MINNOW_RULE:
        found = diagnose(row.output, row.finish_reason, row.max_tokens)
        loop = found.loop
        return {
            rule: {
                "loop": loop is not None,
                "kind": loop and loop.kind,
                "onset": loop and loop.onset,
                "period": loop and loop.period,
                "copies": loop and round(loop.copies, 2),
                "wasted": loop and round((loop.end - loop.onset) / len(row.output), 4),
                "confidence": loop and loop.confidence,
                "cause": found.cause,
            }
        }
    verdicts = {}
    for name in RULES if rule == ALL_RULES else [rule]:
        if name == "repeated-sentences" and not isinstance(row.output, str):
            raise UserError(f"row {row.id} holds tokens, which do not say where a sentence ends; {name} needs text")
        one = RULES[name](row.output)
        verdicts[name] = {
            "loop": one is not None,
            "kind": None,
            "onset": one and one.onset_character,
            "period": one and (one.period or None),
            "copies": one and (round(one.copies, 2) or None),
            "wasted": one and round(1 - one.onset_character / len(row.output), 4),
            "confidence": None,
            "cause": None,
        }
    return verdicts


def _verdict_text(verdicts: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, found in verdicts.items():
        if found["loop"]:
            text = f"{found['kind'] or name} from {found['onset']}"
            text += f", {found['copies']:g} copies" if found["copies"] else ""
            text += f" of {found['period']}" if found["period"] else ""
            text += f", {found['wasted']:.0%} wasted"
            text += f", confidence {found['confidence']:.2f}" if found["confidence"] else ""
            parts.append(text + (f" ({found['cause']})" if found["cause"] not in (None, "loop") else ""))
        elif found["cause"]:
            parts.append(f"no loop ({found['cause']})")
    return "; ".join(parts) or "no loop"
