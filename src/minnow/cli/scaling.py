"""``minnow scaling fit``: a law from training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, columns, emit, warn
from minnow.errors import UserError
from minnow.files import write_text
from minnow.recipe.mapping import nearest
from minnow.scaling.charts import isoflop_chart, residual_chart
from minnow.scaling.downstream import AccuracyLaw, BetaLaw, fit_accuracy, fit_beta
from minnow.scaling.fit import FORMS, Fit, fit_law
from minnow.scaling.laws import Law, human
from minnow.scaling.points import Columns, Points, parse_count, read_points
from minnow.scaling.repeats import fit_repeats

_ALL_FORMS = (*FORMS, "repeated", "t2-beta", "accuracy")
_MOST_DRAWS = 100_000

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]


def fit(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE …")],
    /,
    form: str = "chinchilla",
    params: Column = None,
    tokens: Column = None,
    flops: Column = None,
    loss: Annotated[str, tyro.conf.arg(metavar="COLUMN")] = "loss",
    unique: Column = None,
    samples: Column = None,
    correct: Column = None,
    accuracy: Column = None,
    where: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CONDITION …")] = (),
    floor: float = 0.0,
    hold_out: float = 0.0,
    bootstrap: int = 4000,
    seed: int = 0,
    at: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N:D[:U] …")] = (),
    plots: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a scaling law to training runs: constants with 95% bootstrap intervals, hold-out error, predictions.

    Args:
        files: tables of runs (.csv, .jsonl, .json, .parquet), or run folders (their pretrain stages).
        form: chinchilla (E + A/N^alpha + B/D^beta), shared (one exponent), reducible (L - floor), repeated (chinchilla,
            then what repeated tokens are worth), t2 and t2-beta (size, tokens and samples), or accuracy (from loss).
        params: column of parameters; "params" unless it is worked out from --flops and --tokens.
        tokens: column of training tokens; "tokens" unless it is worked out from --flops and --params.
        flops: column of training FLOPs, 6 N D, in place of --params or --tokens.
        loss: column of the loss in nats per token; of a t2 fit, of the mean -log pass@k.
        unique: column of different training tokens, for the form repeated.
        samples: column of answers drawn per question, for t2 and t2-beta.
        correct: column of right answers among them, for t2-beta (one row per checkpoint and question).
        accuracy: column of the accuracy in 0..1, for the form accuracy.
        where: keep only rows that meet all conditions, such as dataset=c4 or ratio<=20 (tokens per parameter).
        floor: of the form reducible: the loss that no model goes below.
        hold_out: share of the runs, the dearest, to predict from a fit on the rest.
        bootstrap: draws for the intervals; 0 for none.
        seed: of the draws.
        at: sizes and tokens to predict, such as 350M:28T, or 350M:28T:1T where only 1T of the tokens are different.
        plots: folder for residuals.svg and isoflop.svg.
    """
    if form not in _ALL_FORMS:
        raise UserError(f"there is no form {form}; {nearest(form, _ALL_FORMS)}")
    if not 0 <= bootstrap <= _MOST_DRAWS:
        raise UserError(f"--bootstrap {bootstrap} is out of range; use 0 to {_MOST_DRAWS:,} (4,000 is usual)")
    if form in ("accuracy", "t2-beta"):
        for option, given in (("at", at), ("hold-out", hold_out), ("plots", plots), ("floor", floor)):
            if given:
                raise UserError(f"--{option} is for laws of the loss, and {form} is none; leave it out")
    if form == "accuracy":
        points = read_points(files, Columns(None, None, loss, accuracy=accuracy or "accuracy"), where)
        found = fit_accuracy(points, bootstrap, seed)
        emit(found.as_dict() | {"points": len(points)}, _accuracy_text(found, len(points)), as_json)
        return
    named = Columns(
        params=params or ("params" if not (flops and tokens) else None),
        tokens=tokens or ("tokens" if not flops else None),
        loss=loss,
        flops=flops,
        unique=unique,
        samples=samples or ("samples" if form.startswith("t2") else None),
        correct=correct or ("correct" if form == "t2-beta" else None),
    )
    points = read_points(files, named, where)
    if form == "t2-beta":
        law = fit_law(_checkpoints(points), draws=0).law
        assert isinstance(law, Law)
        beta = fit_beta(points, law)
        emit(beta.as_dict() | {"points": len(points)}, _beta_text(beta, len(points)), as_json)
        return
    places = [_place(text) for text in at]
    if form == "repeated":
        fitted, repeat_intervals = _repeated(points, floor, bootstrap, seed, hold_out)
    else:
        fitted, repeat_intervals = fit_law(points, form, floor=floor, draws=bootstrap, seed=seed, hold_out=hold_out), {}
    predictions = [fitted.predict(*place) for place in places]
    document: dict[str, Any] = fitted.as_dict() | {"form": form, "predictions": predictions}
    if repeat_intervals:
        document["repeats"] |= {"intervals": {name: list(ends) for name, ends in repeat_intervals.items()}}
    if plots is not None:
        document["plots"] = _write_plots(fitted, plots)
    warnings = [*fitted.warnings, *(one["warning"] for one in predictions if one["warning"])]
    document["warnings"] = warnings
    emit(document, _fit_text(document), as_json)
    warn(warnings)


def _repeated(
    points: Points, floor: float, draws: int, seed: int, hold_out: float
) -> tuple[Fit, dict[str, tuple[float, float]]]:
    """The constants from runs of at most one epoch, then what repeats are worth from all."""
    if points.unique is None:
        raise UserError("the repeated form needs the number of different tokens of each run; name it with --unique")
    once = points.take(points.tokens <= 1.01 * points.unique)
    fitted = fit_law(once, "chinchilla", floor=floor, draws=draws, seed=seed, hold_out=hold_out)
    assert isinstance(fitted.law, Law)
    repeats, intervals = fit_repeats(points, fitted.law, min(draws, 400), seed)
    return replace(fitted, law=replace(fitted.law, repeats=repeats)), intervals


def _checkpoints(points: Points) -> Points:
    """One row per checkpoint of a table that has one per question."""
    seen: dict[tuple[float, float], int] = {}
    for row, key in enumerate(zip(points.params.tolist(), points.tokens.tolist(), strict=True)):
        first = seen.setdefault(key, row)
        if points.loss[row] != points.loss[first]:
            raise UserError(
                f"{points.places[row]} and {points.places[first]} are of one checkpoint but have losses of "
                f"{points.loss[row]:g} and {points.loss[first]:g}; give every row the checkpoint's own"
            )
    return points.take(list(seen.values()))


def _place(text: str) -> tuple[float, ...]:
    found = tuple(number for part in text.split(":") if (number := parse_count(part)) is not None and number > 0)
    if len(found) not in (2, 3) or len(found) != text.count(":") + 1:
        raise UserError(
            f"--at {text} is no size and tokens; write it as 350M:28T, or 350M:28T:1T with different tokens"
        )
    return found


def _write_plots(fitted: Fit, folder: Path) -> list[str]:
    charts = {"residuals.svg": residual_chart(fitted)}
    if isinstance(fitted.law, Law):
        charts["isoflop.svg"] = isoflop_chart(fitted)
    for name, drawn in charts.items():
        write_text(folder / name, drawn)
    return [str(folder / name) for name in charts]


def _fit_text(document: dict[str, Any]) -> str:
    values: dict[str, float] = {
        name: document[name] for name in ("E", "A", "B", "G", "alpha", "beta", "gamma") if name in document
    }
    sizes, tokens = document["params_range"], document["tokens_range"]
    head = (
        f"{document['form']} fit to {document['points']} runs, {human(sizes[0])} to {human(sizes[1])} parameters, "
        f"{human(tokens[0])} to {human(tokens[1])} tokens"
    )
    lines = [
        head,
        _constants_text(values, document["intervals"]),
        f"mean absolute residual {document['mean_absolute_log_residual']:.3%} of the loss",
    ]
    if document["form"] == "repeated":
        repeats = document["repeats"]
        ends = repeats["intervals"].get("tokens") if "intervals" in repeats else None
        lines.append(
            f"repeated tokens: R*_D = {repeats['tokens']:.3g}" + (f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends else "")
        )
    if held := document["hold_out"]:
        lines.append(
            f"hold-out: {held['fitted']} cheap runs predict {held['predicted']} dear ones (from "
            f"{held['from_flops']:.2g} FLOPs) to {held['mean_relative_error']:.2%} on average, "
            f"{held['max_relative_error']:.2%} at worst"
        )
    for one in document["predictions"]:
        ends = f" ({one['low']:.4f} to {one['high']:.4f})" if "low" in one else ""
        different = f", {human(one['unique'])} of them different" if one["unique"] else ""
        lines.append(f"{human(one['params'])} on {human(one['tokens'])}{different}: loss {one['loss']:.4f}{ends}")
    lines += [f"wrote {file}" for file in document.get("plots", ())]
    return "\n".join(lines)


def _accuracy_text(found: AccuracyLaw, count: int) -> str:
    values = {name: getattr(found, name) for name in ("epsilon", "k", "gamma")}
    return f"1 - accuracy = epsilon - k exp(-gamma L), {count} runs\n{_constants_text(values, found.intervals)}"


def _beta_text(found: BetaLaw, count: int) -> str:
    values = {name: getattr(found, name) for name in found.intervals}
    head = f"mu = sigmoid(t1 + t2 L), nu = exp(t3 + t4 L), {count} rows"
    law = found.law
    equation = f"L = {law.E:.4g} + {law.A:.4g} N^-{law.alpha:.3g} + {law.B:.4g} D^-{law.beta:.3g}"
    return f"{head}\n{_constants_text(values, found.intervals)}\n{equation}"


def _constants_text(values: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> str:
    rows = [["constant", "value", "95% low", "95% high"]]
    for name, value in values.items():
        rows.append([name, f"{value:.5g}", *(f"{end:.5g}" for end in intervals.get(name, ()))])
        rows[-1] += [""] * (4 - len(rows[-1]))
    return columns(rows)
