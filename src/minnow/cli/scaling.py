"""``minnow scaling fit``: a law from training runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, columns, emit, warn
from minnow.errors import UserError
from minnow.files import whole_file
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
    at: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N:D …")] = (),
    plots: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a scaling law to training runs: constants with 95% bootstrap intervals, hold-out error, predictions.

    Args:
        files: tables of runs (.csv, .jsonl, .parquet), or run folders (their pretrain stages).
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
        at: sizes and tokens to predict, such as 350M:28T.
        plots: folder for residuals.svg and isoflop.svg.
    """
    if form not in _ALL_FORMS:
        raise UserError(f"there is no form {form}; {nearest(form, _ALL_FORMS)}")
    if not 0 <= bootstrap <= _MOST_DRAWS:
        raise UserError(f"--bootstrap {bootstrap} is out of range; use 0 to {_MOST_DRAWS:,} (4,000 is usual)")
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
        fitted, repeat_intervals = _repeated(points, bootstrap, seed, hold_out)
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


def _repeated(points: Points, draws: int, seed: int, hold_out: float) -> tuple[Fit, dict[str, tuple[float, float]]]:
    """The constants from runs of at most one epoch, then what repeats are worth from all."""
    if points.unique is None:
        raise UserError("the repeated form needs the number of different tokens of each run; name it with --unique")
    once = points.take(points.tokens <= 1.01 * points.unique)
    fitted = fit_law(once, "chinchilla", draws=draws, seed=seed, hold_out=hold_out)
    assert isinstance(fitted.law, Law)
    repeats, intervals = fit_repeats(points, fitted.law, min(draws, 400), seed)
    return replace(fitted, law=replace(fitted.law, repeats=repeats)), intervals


def _checkpoints(points: Points) -> Points:
    """One row per checkpoint of a table that has one per question."""
    seen: dict[tuple[float, float], int] = {}
    for row, key in enumerate(zip(points.params.tolist(), points.tokens.tolist(), strict=True)):
        seen.setdefault(key, row)
    return points.take(list(seen.values()))


def _place(text: str) -> tuple[float, float]:
    size, _, tokens = text.partition(":")
    found = (parse_count(size), parse_count(tokens))
    if found[0] is None or found[1] is None or min(found[0], found[1]) <= 0:
        raise UserError(f"--at {text} is no size and tokens; write it as 350M:28T")
    return found[0], found[1]


def _write_plots(fitted: Fit, folder: Path) -> list[str]:
    charts = {"residuals.svg": residual_chart(fitted)}
    if isinstance(fitted.law, Law):
        charts["isoflop.svg"] = isoflop_chart(fitted)
    for name, drawn in charts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(drawn, encoding="utf-8")
    return [str(folder / name) for name in charts]


def _fit_text(document: dict[str, Any]) -> str:
    rows = [["constant", "value", "95% low", "95% high"]]
    for name in ("E", "A", "B", "G", "alpha", "beta", "gamma"):
        if name in document:
            ends = document["intervals"].get(name)
            rows.append([name, f"{document[name]:.5g}", *(f"{end:.5g}" for end in ends or ())])
            rows[-1] += [""] * (4 - len(rows[-1]))
    sizes, tokens = document["params_range"], document["tokens_range"]
    head = (
        f"{document['form']} fit to {document['points']} runs, {human(sizes[0])} to {human(sizes[1])} parameters, "
        f"{human(tokens[0])} to {human(tokens[1])} tokens"
    )
    lines = [
        head,
        columns(rows),
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
        lines.append(f"{human(one['params'])} on {human(one['tokens'])}: loss {one['loss']:.4f}{ends}")
    lines += [f"wrote {file}" for file in document.get("plots", ())]
    return "\n".join(lines)


def _accuracy_text(found: AccuracyLaw, count: int) -> str:
    rows = [["constant", "value", "95% low", "95% high"]]
    for name in ("epsilon", "k", "gamma"):
        ends = found.intervals.get(name)
        rows.append([name, f"{getattr(found, name):.5g}", *([f"{end:.5g}" for end in ends] if ends else ["", ""])])
    return f"1 - accuracy = epsilon - k exp(-gamma L), {count} runs\n{columns(rows)}"


def _beta_text(found: BetaLaw, count: int) -> str:
    rows = [["constant", "value", "95% low", "95% high"]]
    rows += [
        [name, f"{getattr(found, name):.5g}", *(f"{end:.5g}" for end in ends)] for name, ends in found.intervals.items()
    ]
    head = f"mu = sigmoid(t1 + t2 L), nu = exp(t3 + t4 L), {count} rows"
    law = found.law
    return f"{head}\n{columns(rows)}\nL = {law.E:.4g} + {law.A:.4g} N^-{law.alpha:.3g} + {law.B:.4g} D^-{law.beta:.3g}"
