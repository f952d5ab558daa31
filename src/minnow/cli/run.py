"""``minnow run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow import progress
from minnow.cli.output import AsJson, Overrides, emit
from minnow.recipe import runner
from minnow.recipe.schema import Recipe, load_recipe
from minnow.train.ranks import joined


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    /,
    restart_from: Annotated[str | None, tyro.conf.arg(name="from", metavar="STAGE")] = None,
    only: Annotated[str | None, tyro.conf.arg(metavar="STAGE")] = None,
    overrides: Overrides = (),
    run_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    dry_run: bool = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe's stages in order. A finished stage whose settings and inputs are unchanged is kept; after Ctrl-C
    or a crash the same command continues.

    Args:
        recipe: the recipe's YAML file.
        restart_from: run this stage and all later ones again, finished or not.
        only: run this stage alone; the stages it reads must be finished.
        overrides: change a key of the recipe, such as data.path=books.jsonl; may be repeated.
        run_folder: where to write, instead of the recipe's run_folder or runs/<name>.
        dry_run: print what the run would take and do, and write nothing.
    """
    resolved = load_recipe(recipe, overrides, run_folder)
    if dry_run:
        _dry_run(resolved, restart_from, only, as_json)
        return
    with joined(resolved.parallel) as ranks:
        if not ranks.first:
            return runner.follow(resolved, ranks)
        summary = runner.run(resolved, restart_from, only, ranks)
    emit(summary, _table(summary), as_json)


def _dry_run(recipe: Recipe, restart_from: str | None, only: str | None, as_json: bool) -> None:
    from minnow.cli.plan_text import plan_text
    from minnow.recipe.plan import plan

    stages = runner.survey(recipe, restart_from, only)
    numbers = plan(recipe) if recipe.model is not None else None
    width = max(len(row["stage"]) for row in stages) + 2
    reasons = "\n".join(f"{row['stage']:<{width}}{row['reason']}" for row in stages)
    text = reasons if numbers is None else f"{plan_text(numbers)}\n\n{reasons}"
    emit({"plan": numbers, "stages": stages}, text, as_json)


def _table(summary: dict[str, Any]) -> str:
    width = max(len(row["stage"]) for row in summary["stages"]) + 2
    lines = []
    for row in summary["stages"]:
        numbers = ""
        if row["seconds"] is not None:
            numbers = f"{progress.duration(row['seconds']):>14}{row['peak_rss_bytes'] / 2**20:>9.0f} MiB"
        lines.append(f"{row['stage']:<{width}}{row['status']:<9}{numbers}")
    lines.append(f"{summary['run_folder']}: {summary['status']} in {progress.duration(summary['seconds'])}")
    if summary["report"]:
        lines.append(f"report: {summary['report']}")
    return "\n".join(lines)
