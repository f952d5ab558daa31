"""Task scores by stage, and how preference training and reinforcement learning chose their step."""

from __future__ import annotations

from typing import Any

from minnow.recipe.report.figures import RATE, Scale, Series, legend, line_plot, share_scale, slope, tick_percent
from minnow.recipe.report.markup import (
    Markup,
    capital,
    counted,
    folded,
    interval,
    join,
    listing,
    percent,
    plain,
    table,
    tag,
)
from minnow.recipe.report.read import Run, Stage, after, stage_label
from minnow.recipe.report.section import Section, after_sft, figure, stage_colour
from minnow.scaling.laws import human

_CAPTION = (
    "Share of held-out questions answered correctly by greedy decoding, with 95% Wilson intervals; "
    "each chart has its own scale."
)


def scores(run: Run) -> Section | None:
    """One small chart a task; a fall below the interval of the first checkpoint is flagged."""
    measures = [(measure["stage"], measure) for measure in run.measures() if measure.get("tasks")]
    if not measures:
        return None
    compared = after_sft(measures)
    (first, start), (last, end) = compared[0], compared[-1]
    tasks = list(dict.fromkeys(task for _, measure in measures for task in measure["tasks"]))
    old, new = start["tasks"], end["tasks"]
    fallen = [task for task in tasks if task in old and task in new and new[task]["rate"] < old[task]["low"]]
    cards, rows = [], []
    for task in tasks:
        points = [
            (stage_label(stage), stage_colour(stage), measure["tasks"][task])
            for stage, measure in measures
            if task in measure["tasks"]
        ]
        flag = tag("span", f"▼ below {stage_label(first)}’s interval", class_="flag") if task in fallen else None
        head = tag("div", tag("b", plain(task)), tag("b", percent(points[-1][2]["rate"])), class_="barhead")
        cards.append(tag("div", head, slope(points, f"{plain(task)} by stage"), flag, class_="mini"))
        rows += [
            [plain(task) if place == 0 else "", stage, counted(rate), percent(rate["rate"]), interval(rate)]
            for place, (stage, _, rate) in enumerate(points)
        ]
    body = join(
        legend([(stage_label(stage), stage_colour(stage)) for stage, _ in measures]),
        figure(
            tag("div", cards, class_="minis"),
            _CAPTION
            + (
                f" A task is flagged when its last score lies below the interval it had {after(first)}."
                * (first != last)
            ),
        ),
        folded("Numbers", table(["Task", "Stage", "Correct", "Score", "95% interval"], rows, "Task scores", (0, 1))),
    )
    return Section("tasks", "Tasks", "Task scores by stage", _sentence(compared, tasks, fallen), body)


def _sentence(compared: list[tuple[str, dict[str, Any]]], tasks: list[str], fallen: list[str]) -> str:
    (first, start), (last, end) = compared[0], compared[-1]
    if first == last:
        ranked = sorted(end["tasks"].items(), key=lambda item: -item[1]["rate"])
        ends = [f"{plain(task)} {percent(rate['rate'])}" for task, rate in (ranked[0], ranked[-1])]
        return (
            f"{capital(after(last))} the scores run from {ends[-1]} to {ends[0]}."
            if len(ranked) > 1
            else f"{ends[0]} {after(last)}."
        )
    if fallen:
        told = [
            f"{plain(t)} ({percent(start['tasks'][t]['rate'])} → {percent(end['tasks'][t]['rate'])})" for t in fallen
        ]
        span = f"From {stage_label(first)} to {stage_label(last)}"
        return f"{span}, {listing(told)} fell below the interval; the other tasks did not."
    shared = [task for task in tasks if task in start["tasks"] and task in end["tasks"]]
    risen = [task for task in shared if end["tasks"][task]["rate"] > start["tasks"][task]["high"]]
    text = f"No task fell below its interval from {stage_label(first)} to {stage_label(last)}"
    return text + (f"; {listing([plain(task) for task in risen])} rose above it." if risen else ".")


def history(run: Run) -> Section | None:
    """Loop rate and task score by step of DPO and GRPO, the kept step marked, and the merge candidates."""
    stages = [stage for kind in ("dpo", "grpo") if (stage := run.first(kind)) and stage.result.get("history")]
    merge = run.first("merge")
    if not stages and merge is None:
        return None
    parts: list[Any] = []
    if stages:
        parts.append(legend([("doom-loop rate", "sft"), ("task score", "rl")]))
        parts.append(figure(tag("div", [_curves(stage) for stage in stages], class_="pair"), _pairs_text(run)))
        rows = [
            [
                stage_label(stage.kind),
                line["step"],
                percent(line["loop_rate"]),
                percent(line["task_score"]),
                "kept" if line["step"] == stage.result["best_step"] else "",
            ]
            for stage in stages
            for line in stage.result["history"]
        ]
        parts.append(
            folded("Numbers", table(["Stage", "Step", "Loop rate", "Task score", ""], rows, "History", (0, 4)))
        )
    told = [_told(stage) for stage in stages]
    if merge:
        kept = bool(merge.result["kept"])
        told.append(
            "the merged checkpoint scored better and was kept"
            if kept
            else "merging did not score better and was left out"
        )
        rows = [
            [c["name"], percent(c["task_score"]), percent(c["loop_rate"])] for c in merge.result.get("candidates") or []
        ]
        parts += [
            tag("h3", "Merge candidates"),
            table(["Candidate", "Task score", "Loop rate"], rows, "Merge candidates"),
        ]
    sentence = "; ".join(told)
    return Section(
        "healing",
        "Healing",
        "How the loops were trained away" if stages else "Merging",
        capital(sentence) + ".",
        join(*parts),
    )


def _told(stage: Stage) -> str:
    lines = stage.result["history"]
    best = next((line for line in lines if line["step"] == stage.result["best_step"]), None)
    name = stage_label(stage.kind)
    if best is None:
        return f"{name} kept step {stage.result['best_step']} of {stage.result['steps']}"
    first = lines[0]
    return (
        f"{name} kept step {best['step']} of {stage.result['steps']}: "
        f"loop rate {percent(first['loop_rate'])} → {percent(best['loop_rate'])}, "
        f"task score {percent(first['task_score'])} → {percent(best['task_score'])}"
    )


def _curves(stage: Stage) -> Markup:
    lines = stage.result["history"]
    x = Scale(0, max(max(line["step"] for line in lines), 1))
    plots = []
    for key, name, colour, scale in (
        ("loop_rate", "doom-loop rate", "sft", RATE),
        ("task_score", "task score", "rl", None),
    ):
        points = [
            (line["step"], line[key], f"step {line['step']}\n{name} {percent(line[key])}")
            for line in lines
            if line[key] is not None
        ]
        scale = scale or share_scale([y for _, y, _ in points])
        plots.append(
            line_plot(
                [Series(points, colour)],
                x,
                scale,
                f"{name} by step of {stage.kind}",
                "step" if key == "task_score" else "",
                name,
                x_format=lambda v: f"{v:g}",
                y_format=tick_percent,
                marks=[(stage.result["best_step"], "kept")],
                height=130,
            )
        )
    return tag("div", tag("h4", stage_label(stage.kind)), plots)


def _pairs_text(run: Run) -> str:
    pairs = run.first("pairs")
    if pairs is None:
        return "Measured on validation prompts while training; the kept step is marked."
    result = pairs.result
    return (
        f"Measured on validation prompts while training; the kept step is marked. DPO learned from "
        f"{human(result['pairs'])} pairs ({human(result['loop_pairs'])} clean against loop, "
        f"{human(result['quality_pairs'])} right against wrong) out of "
        f"{human(result['rollouts'])} rollouts of {human(result['prompts'])} prompts."
    )
