"""A scaling sweep: a recipe's model at several widths, each trained on several numbers of tokens, as one run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import read_json, write_text
from minnow.model.accounting import flops_per_token, parameter_parts
from minnow.recipe.schema import Recipe, StageSpec
from minnow.recipe.speed import BUDGET_SECONDS, measure_step, takes_muon
from minnow.recipe.stages.ladder import LadderSettings, branches, peak_rate, scaled
from minnow.scaling.points import POINTS


def sweep_recipe(
    recipe: Recipe,
    widths: Sequence[int],
    ratios: Sequence[float],
    decay: float,
    rate_exponent: float,
    most_flops: float | None = None,
) -> Recipe:
    """The recipe's tokenizer and a ``ladder`` stage for each width, smallest first; all else comes from its pretrain
    stage.

    Args:
        most_flops: leaves out runs that take more, so that small sizes get long runs and large ones short ones.

    Raises:
        UserError: the recipe pre-trains nothing, or widths, ratios, decay or ``most_flops`` make no runs.
    """
    found = next((spec for spec in recipe.stages.values() if spec.kind == "pretrain"), None)
    if found is None:
        raise UserError("the recipe has no pretrain stage to take text, batches and rate from; add one")
    if not widths:
        raise UserError("a sweep needs widths; give some, such as --widths 32 64 128")
    text = found.settings
    given = text.training.optimizer
    rungs = [LadderSettings(width, tuple(sorted(set(ratios))), rate_exponent, text) for width in sorted(set(widths))]
    if most_flops is not None:
        rungs = [_affordable(recipe, rung, most_flops) for rung in rungs]
    shapes = [scaled(recipe.shape, rung.width) for rung in rungs]
    # One optimiser for all sizes: what it gains would else be taken for what the size does.
    muon = all(takes_muon(given, shape.config(shape.vocab_size), text.rows * text.row_length) for shape in shapes)
    training = replace(text.training, decay=decay, schedule="wsd", optimizer=replace(given, muon=muon))
    stages = {text.tokenizer: recipe.stages[text.tokenizer]}
    for rung in rungs:
        name = f"width-{rung.width}"
        stages[name] = StageSpec(
            name, "ladder", replace(rung, text=replace(text, training=training)), (text.tokenizer,)
        )
    return replace(recipe, stages=stages)


def _affordable(recipe: Recipe, rung: LadderSettings, most_flops: float) -> LadderSettings:
    """The rung with those of its runs that take ``most_flops`` at most."""
    shape = scaled(recipe.shape, rung.width)
    config = shape.config(shape.vocab_size)
    each = sum(parameter_parts(config).values()) * flops_per_token(config, rung.text.row_length // 2)  # of a ratio of 1
    kept = tuple(ratio for ratio in rung.ratios if ratio * each <= most_flops)
    if not kept:
        raise UserError(
            f"the shortest run of width {rung.width} takes {rung.ratios[0] * each:.2g} FLOPs, more than the {most_flops:.2g} "
            "allowed; leave the width out, or raise --most-flops"
        )
    return replace(rung, ratios=kept)


def estimate(recipe: Recipe) -> list[dict[str, Any]]:
    """What each size of a sweep takes on this machine, measured in about two seconds.

    Returns:
        Per size ``width``, ``params``, ``learning_rate``, ``runs`` (``ratio``, ``tokens``, ``steps``), ``steps`` in
        all, branches included, ``flops`` and ``seconds``.

    Raises:
        UserError: a run would be too short.
    """
    rungs = _rungs(recipe)
    rows = []
    for settings in rungs:
        text, model = settings.text, scaled(recipe.shape, settings.width)
        config = model.config(model.vocab_size)
        size, per_step = sum(parameter_parts(config).values()), text.rows * text.row_length
        runs = branches(settings.ratios, size, per_step, text.training.decay)
        steps = runs[-1].start + sum(run.steps - run.start for run in runs)
        muon = takes_muon(text.training.optimizer, config, per_step)
        time = measure_step(config, text.rows, text.row_length, muon, BUDGET_SECONDS / len(rungs))
        rows.append(
            {
                "width": settings.width,
                "params": size,
                "learning_rate": peak_rate(recipe.shape, settings),
                "runs": [{"ratio": run.ratio, "tokens": run.steps * per_step, "steps": run.steps} for run in runs],
                "steps": steps,
                "flops": steps * per_step * flops_per_token(config, text.row_length // 2),
                "seconds": steps * time.seconds,
            }
        )
    return rows


def collect(recipe: Recipe) -> list[dict[str, Any]]:
    """The points of a finished sweep, also written as ``points.csv`` in its run folder, for `minnow scaling fit`."""
    data = "+".join(Path(source.path).name for source in recipe.data.mixture.values()) or recipe.data.kind
    points: list[dict[str, Any]] = [
        {"dataset": data, **point}
        for settings in _rungs(recipe)
        for point in read_json(recipe.run_folder / f"width-{settings.width}" / "result.json")["points"]
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_text(recipe.run_folder / POINTS, table.getvalue())
    return points


def _rungs(recipe: Recipe) -> list[LadderSettings]:
    return [spec.settings for spec in recipe.stages.values() if spec.kind == "ladder"]
