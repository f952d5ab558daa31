"""Doom loops by stage and temperature, and what a loop looks like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minnow.recipe.report.figures import RATE, legend, pair_rows, rate_rows
from minnow.recipe.report.markup import Markup, counted, folded, interval, join, percent, plain, table, tag
from minnow.recipe.report.read import Run, after, stage_label
from minnow.recipe.report.section import (
    Section,
    after_sft,
    change_sentence,
    figure,
    loop_stages,
    rate_text,
    stage_colour,
    temperature_text,
)

_SHOWN_BEFORE = 700
_SHOWN_LOOP = 900
_SPECIAL = re.compile(r"(<\|[a-z_]+\|>)")


def loops(run: Run) -> Section | None:
    """Rates with intervals, by task before and after, and two example loops."""
    greedy = loop_stages(run)
    if not greedy:
        return None
    measures = run.measures()
    stages = after_sft(greedy)
    if len(stages) > 1:
        takeaway = change_sentence(
            f"The {temperature_text(stages[0][1]['temperature'])} doom-loop rate on held-out prompts",
            stages[0],
            stages[-1],
        )
    else:
        stage, rate = stages[0]
        kind = temperature_text(rate["temperature"])
        takeaway = f"{rate_text(rate)} of {kind} answers to held-out prompts end in a loop {after(stage)}."
    body = join(
        _by_temperature(measures),
        folded("Numbers", _rate_table(measures)),
        _by_task(measures, stages),
        _examples(measures),
    )
    return Section("loops", "Doom loops", "Doom loops", takeaway, body)


def _entries(measures: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(measure["stage"], entry) for measure in measures for entry in measure.get("loops") or [] if entry["total"]]


def _by_temperature(measures: Sequence[dict[str, Any]]) -> Markup:
    groups: dict[tuple[float, int], list[tuple[str, str, dict[str, Any]]]] = {}
    for stage, entry in _entries(measures):
        key = (entry["temperature"], entry["max_new_tokens"])
        groups.setdefault(key, []).append((stage_label(stage), stage_colour(stage), entry))
    panels = [
        (join(tag("b", _heading(temperature)), tag("span", f" up to {budget} tokens", class_="muted")), rows)
        for (temperature, budget), rows in sorted(groups.items())
    ]
    return figure(
        rate_rows(panels, RATE),
        "Share of answers that end in a loop, with its 95% Wilson interval. The scale is linear near zero and "
        "logarithmic above, so that none at all and its upper bound stay readable.",
    )


def _heading(temperature: float) -> str:
    return "Greedy" if temperature == 0 else temperature_text(temperature)


def _rate_table(measures: Sequence[dict[str, Any]]) -> Markup:
    rows = [
        [
            stage_label(stage),
            f"{entry['temperature']:g}",
            entry["max_new_tokens"],
            entry["total"],
            entry["count"],
            percent(entry["rate"]),
            interval(entry),
            entry.get("truncated", "–"),
        ]
        for stage, entry in _entries(measures)
    ]
    headers = ["Stage", "Temperature", "Token budget", "n", "Loops", "Rate", "95% interval", "Truncated"]
    return table(headers, rows, "Doom-loop rates")


def _by_task(measures: Sequence[dict[str, Any]], stages: list[tuple[str, dict[str, Any]]]) -> Markup | None:
    (first, before), (last, now) = stages[0], stages[-1]
    tasks = before.get("by_task") or {}
    if not tasks:
        return None
    both = first != last and now.get("by_task")
    rows = []
    for task, rate in sorted(tasks.items(), key=lambda item: -item[1]["rate"]):
        group = [(stage_label(first), stage_colour(first), rate)]
        if both and task in now["by_task"]:
            group.append((stage_label(last), stage_colour(last), now["by_task"][task]))
        rows.append((plain(task), group))
    keys = [(f"{after(stage)}", stage_colour(stage)) for stage in ((first, last) if both else (first,))]
    numbers = [
        [name, series, counted(rate), percent(rate["rate"]), interval(rate)]
        for name, group in rows
        for series, _, rate in group
    ]
    return join(
        tag("h3", "By kind of prompt"),
        legend(keys),
        figure(pair_rows(rows, RATE), f"{_heading(before['temperature'])}, same scale as above."),
        folded(
            "Numbers", table(["Prompts", "Stage", "Loops", "Rate", "95% interval"], numbers, "Loops by prompt", (0, 1))
        ),
    )


def _examples(measures: Sequence[dict[str, Any]]) -> Markup | None:
    found = [(measure["stage"], example) for measure in measures for example in measure.get("examples") or []]
    chosen = _two_examples(found)
    if not chosen:
        return None
    cards = [
        tag(
            "article",
            tag(
                "div",
                tag("span", f"{after(stage)}", class_=f"chip t-{stage_colour(stage)}"),
                tag("span", plain(example["task"]), class_="chip"),
                tag("span", temperature_text(example["temperature"]), class_="chip"),
                tag("span", f"{example['copies']:.1f} copies of {example['period']} tokens", class_="chip"),
                class_="chips",
            ),
            tag("p", special_text(_last_lines(str(example["prompt"]))), class_="prompt"),
            loop_text(example["text"], int(example["onset_character"])),
            class_="example",
        )
        for stage, example in chosen
    ]
    return join(tag("h3", "What a loop looks like"), tag("div", cards, class_="pair"))


def _two_examples(found: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """From SFT if it has any, of different tasks where possible."""
    pool = [item for item in found if item[0] == "sft"] or found
    by_task = {item[1]["task"]: item for item in reversed(pool)}
    different = [item for item in pool if by_task[item[1]["task"]] is item][:2]
    return different + [item for item in pool if item not in different][: 2 - len(different)]


def _last_lines(prompt: str) -> str:
    return prompt if len(prompt) <= 400 else "… " + prompt[-400:]


def special_text(text: str) -> list[Any]:
    """Text with the special tokens set apart; the caller's ``tag`` escapes it."""
    pieces = _SPECIAL.split(text)
    return [tag("span", piece, class_="token") if place % 2 else piece for place, piece in enumerate(pieces) if piece]


def loop_text(text: str, onset: int) -> Markup:
    """A looping answer: what came before, a label at ``onset`` (in characters), the copies in alternating shades."""
    before, loop = text[:onset], text[onset:]
    if len(before) > _SHOWN_BEFORE:
        before = "… " + before[-_SHOWN_BEFORE:]
    hidden = len(loop) - _SHOWN_LOOP
    copies = split_copies(loop)
    shown: list[Markup] = []
    left = _SHOWN_LOOP
    for place, copy in enumerate(copies):
        if left <= 0:
            break
        shown.append(tag("mark", special_text(copy[:left]), class_="odd" if place % 2 else "even"))
        left -= len(copy)
    return tag(
        "div",
        special_text(before),
        tag("span", "loop starts here", class_="onset"),
        shown,
        tag("span", f" … {hidden:,} more characters of the same", class_="muted") if hidden > 0 else None,
        class_="looptext",
    )


def split_copies(loop: str) -> list[str]:
    """Cut a looping text at its smallest exact period in characters; a loop of near copies is cut at its lines.

    The period is the text's length less its longest border (the prefix function of Knuth, Morris and Pratt).
    """
    period = len(loop) - _border(loop)
    if loop and 2 * period <= len(loop):
        return [loop[start : start + period] for start in range(0, len(loop), period)]
    lines = loop.splitlines(keepends=True)
    return lines if len(lines) > 1 else [loop]


def _border(text: str) -> int:
    borders = [0] * len(text)
    length = 0
    for place in range(1, len(text)):
        while length and text[place] != text[length]:
            length = borders[length - 1]
        if text[place] == text[length]:
            length += 1
        borders[place] = length
    return borders[-1] if borders else 0
