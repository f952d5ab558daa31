"""``minnow scaling sweep``: a ladder of small models from one recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, Overrides, columns, emit
from minnow.progress import duration, say
from minnow.recipe import runner
from minnow.recipe.schema import load_recipe
from minnow.recipe.sweep import collect, estimate, sweep_recipe
from minnow.scaling.laws import human
from minnow.scaling.points import POINTS


def sweep(
    recipe: Annotated[Path, tyro.conf.Positional],
    /,
    widths: Annotated[tuple[int, ...], tyro.conf.arg(metavar="WIDTH …")] = (32, 64, 96, 128, 192),
    ratios: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATIO …")] = (5.0, 25.0, 100.0, 500.0),
    decay: float = 0.2,
    rate_exponent: float = 0.5,
    most_flops: float | None = None,
    overrides: Overrides = (),
    run_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    dry_run: bool = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's model at several widths on several numbers of tokens, for `minnow scaling fit`.

    Every width is trained once at a flat rate; each ratio is a branch that decays. After Ctrl-C or a crash the same
    command continues. The points are written to points.csv in the run folder.

    Args:
        recipe: the recipe's YAML file, with a pretrain stage: its text, batches and optimiser, its model's depth.
        widths: hidden sizes, multiples of 32.
        ratios: tokens per parameter.
        decay: share of each run over which its rate falls to zero.
        rate_exponent: the peak rate is the recipe's times (its width / this width) to this power.
        most_flops: leave out runs that take more than this, so that small sizes get the long runs.
        overrides: change a key of the recipe, such as data.path=books.jsonl; may be repeated.
        run_folder: where to write, instead of the recipe's run folder with -sweep behind its name.
        dry_run: print sizes, tokens and hours, and write nothing.
    """
    resolved = load_recipe(recipe, overrides, run_folder)
    if run_folder is None:
        resolved = replace(resolved, run_folder=resolved.run_folder.with_name(resolved.run_folder.name + "-sweep"))
    made = sweep_recipe(resolved, widths, ratios, decay, rate_exponent, most_flops)
    sizes = estimate(made)
    if dry_run:
        emit({"run_folder": str(made.run_folder), "sizes": sizes}, _estimate_text(sizes), as_json)
        return
    say(_estimate_text(sizes).splitlines()[-1])
    runner.run(made)
    points = collect(made)
    file = made.run_folder / POINTS
    emit({"file": str(file), "points": points}, _points_text(points, file), as_json)


def _estimate_text(sizes: list[dict[str, Any]]) -> str:
    rows = [["width", "params", "peak rate", "tokens", "steps in all", "FLOPs", "time"]]
    for one in sizes:
        tokens = f"{human(one['runs'][0]['tokens'])} to {human(one['runs'][-1]['tokens'])}"
        rows.append(
            [
                str(one["width"]),
                human(one["params"]),
                f"{one['learning_rate']:.2g}",
                tokens,
                f"{one['steps']:,}",
                f"{one['flops']:.2g}",
                duration(one["seconds"]),
            ]
        )
    whole = duration(sum(one["seconds"] for one in sizes))
    return f"{columns(rows)}\n{sum(len(one['runs']) for one in sizes)} points in about {whole}, as measured just now"


def _points_text(points: list[dict[str, Any]], file: Path) -> str:
    rows = [["width", "params", "tokens", "tokens/param", "loss", "bits/byte"]]
    rows += [
        [
            str(one["width"]),
            human(one["params"]),
            human(one["tokens"]),
            f"{one['tokens'] / one['params']:.4g}",
            f"{one['loss']:.4f}",
            f"{one['bits_per_byte']:.4f}",
        ]
        for one in points
    ]
    return f"{columns(rows)}\nwrote {file}; next: minnow scaling fit {file} --hold-out 0.5"
