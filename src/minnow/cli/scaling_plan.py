"""``minnow scaling plan``: a model's size and training tokens from laws and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, columns, emit, warn
from minnow.errors import UserError
from minnow.files import read_json, write_text
from minnow.recipe.mapping import nearest
from minnow.scaling.accelerators import GPUS
from minnow.scaling.charts import plan_chart
from minnow.scaling.downstream import AccuracyLaw, BetaLaw
from minnow.scaling.laws import EPOCH, HOFFMANN, Law, Repeats, T2Law, human
from minnow.scaling.plan import (
    PRESETS,
    T2_ILLUSTRATION,
    Budget,
    Choice,
    describe,
    largest_model,
    measured_bandwidth,
)
from minnow.scaling.plan import (
    plan as make_plan,
)
from minnow.scaling.points import parse_count

Amount = Annotated[str | None, tyro.conf.arg(metavar="NUMBER")]


def plan(
    *,
    preset: str | None = None,
    flops: Amount = None,
    gpu_hours: Amount = None,
    dollars: Amount = None,
    gpu: str = "H100",
    gpu_price: float = 2.5,
    mfu: float = 0.4,
    target_loss: float | None = None,
    inference_tokens: Amount = None,
    samples: float | None = None,
    question_flops: Amount = None,
    memory: Amount = None,
    bits: float = 5.0,
    latency_ms: float | None = None,
    bandwidth: float | None = None,
    profile: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    worth: float | None = None,
    unique_tokens: Amount = None,
    law: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose a model's size and training tokens under several scaling laws, side by side.

    Numbers take suffixes: 350M, 28T, 400M (bytes). All options can be combined; each rule is shown when enough is said.

    Args:
        preset: a published model as the budget and the device limit, such as lfm2.5-350m.
        flops: training compute, 6 N D.
        gpu_hours: the same as hours of one --gpu at --mfu.
        dollars: the same as money at --gpu-price.
        gpu: A100, H100, H200, B200, L40S or RTX4090; gives the dense bfloat16 peak.
        gpu_price: dollars per GPU-hour; an assumption, so set your own.
        mfu: share of the peak that training reaches.
        target_loss: nats per token to reach at least cost, instead of a budget.
        inference_tokens: read and written over the model's life; adds the inference-aware optimum (arXiv 2401.00448).
        samples: answers per question the compute-optimal model would draw; adds T² (arXiv 2604.01411).
        question_flops: the same as FLOPs per question, 2 N k.
        memory: bytes for the weights on the device; adds edge-optimal.
        bits: per weight in the file (Q4_0 with a Q8_0 embedding takes about 5).
        latency_ms: allowed per decoded token; needs --bandwidth or --profile.
        bandwidth: GB/s of weights the device reads while decoding.
        profile: output of `minnow profile FILE.gguf --json` on the device, in place of --bandwidth.
        worth: dollars that a loss lower by 0.01 nats is worth; ends training where the next token no longer pays.
        unique_tokens: different tokens there are; beyond them they repeat (arXiv 2305.16264).
        law: fits of your own (`minnow scaling fit --json`): laws, T² laws, or accuracy laws.
        plot: file for the chart.
    """
    if gpu not in GPUS:
        raise UserError(f"there is no GPU {gpu} in the list; {nearest(gpu, GPUS)}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} is no share of the peak; use a number in 0..1, such as 0.4")
    if gpu_price < 0:
        raise UserError(f"--gpu-price {gpu_price:g} is negative; give dollars per hour")
    flops_per_hour = GPUS[gpu].flops * mfu * 3600
    laws, t2, accuracy = [HOFFMANN, EPOCH], [], None
    for file in law:
        match _read_law(file):
            case Law() as own:
                laws.append(own)
            case AccuracyLaw() as found:
                accuracy = found
            case other:
                t2.append(other)
    budget = Budget(
        flops=_training_flops(flops, gpu_hours, dollars, flops_per_hour, gpu_price),
        dollars_per_flop=gpu_price / flops_per_hour,
        inference_tokens=amount("inference-tokens", inference_tokens) or 0.0,
        question_flops=amount("question-flops", question_flops),
        samples=samples,
        max_params=_device_limit(memory, bits, latency_ms, bandwidth, profile),
        target_loss=target_loss,
        worth=worth,
        unique_tokens=amount("unique-tokens", unique_tokens),
    )
    trained: tuple[float, float] | None = None
    if preset is not None:
        key = next((name for name in PRESETS if name.lower() == preset.lower().replace(" ", "-")), None)
        if key is None:
            raise UserError(f"there is no preset {preset}; {nearest(preset, PRESETS)}")
        trained = PRESETS[key]
        budget = replace(
            budget,
            flops=budget.flops or (None if target_loss is not None else 6 * trained[0] * trained[1]),
            max_params=budget.max_params or trained[0],
        )
    asks_t2 = question_flops is not None or samples is not None
    if asks_t2 and budget.flops is None:
        raise UserError("T² shares out a training budget; add --flops, --gpu-hours, --dollars or --preset")
    choices = make_plan(budget, laws, (t2 or [T2_ILLUSTRATION]) if asks_t2 else ())
    if trained is not None:
        choices += [describe(*trained, one, budget) for one in laws]
    entries = [_entry(choice, accuracy) for choice in choices]
    warnings = [warning for choice in choices for warning in choice.warnings]
    document: dict[str, Any] = {
        "preset": preset,
        "budget": budget.__dict__,
        "laws": [one.as_dict() | {"source": one.source} for one in laws],
        "choices": entries,
    }
    text = _plan_text(budget, choices, entries)
    if gpu_price:
        text += f"\n$: {gpu} hours at {gpu_price:g} and {mfu:.0%} of the peak; set --gpu, --gpu-price and --mfu"
    if plot is not None:
        write_text(plot, plan_chart(choices, laws, budget))
        document["plot"] = str(plot)
        text += f"\nwrote {plot}"
    emit(document, text, as_json)
    if accuracy is not None:
        warnings += [note for choice in choices if choice.loss and (note := accuracy.outside(choice.loss))]
    warn([warning for warning in warnings if "outside its runs" in warning])


def _training_flops(
    flops: str | None, gpu_hours: str | None, dollars: str | None, per_hour: float, price: float
) -> float | None:
    given = [
        name for name, value in (("flops", flops), ("gpu-hours", gpu_hours), ("dollars", dollars)) if value is not None
    ]
    if len(given) > 1:
        raise UserError(f"--{' and --'.join(given)} each set the training budget; give one of them")
    if flops is not None:
        return amount("flops", flops)
    if gpu_hours is not None:
        return (amount("gpu-hours", gpu_hours) or 0.0) * per_hour
    if dollars is not None:
        if not price:
            raise UserError("--dollars needs a price; set --gpu-price above 0")
        return (amount("dollars", dollars) or 0.0) / price * per_hour
    return None


def amount(name: str, text: str | None, like: str = "28T or 5.9e22", least: float = 0.0) -> float | None:
    """What ``--name`` says; UserError where that is not above 0, or below ``least``."""
    if text is None:
        return None
    value = parse_count(text)
    if value is None or not 0 < value < float("inf") or value < least:
        raise UserError(f"--{name} {text} is no positive number; write it as {like}")
    return value


def _device_limit(
    memory: str | None, bits: float, latency_ms: float | None, bandwidth: float | None, profile: Path | None
) -> float | None:
    if not 0 < bits <= 32:
        raise UserError(f"--bits {bits:g} is no size of a weight; use 0 to 32, such as 4.5 for Q4_0")
    for name, value in (("latency-ms", latency_ms), ("bandwidth", bandwidth)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} is {value:g}; it must be a positive number")
    speed = None if bandwidth is None else bandwidth * 1e9
    if profile is not None and speed is None:
        speed = measured_bandwidth(read_json(profile))
    return largest_model(amount("memory", memory), bits, None if latency_ms is None else latency_ms / 1e3, speed)


def _read_law(file: Path) -> Law | T2Law | BetaLaw | AccuracyLaw:
    """A law from what ``minnow scaling fit --json`` wrote."""
    document = read_json(file)
    name = file.stem
    try:
        form = document["form"]
        if form == "accuracy":
            ends = document["loss_range"]
            return AccuracyLaw(document["epsilon"], document["k"], document["gamma"], tuple(ends) if ends else None)
        if form == "t2-beta":
            t1, t2, t3, t4 = (float(document[key]) for key in ("t1", "t2", "t3", "t4"))
            return BetaLaw(_law(name, document["law"]), t1, t2, t3, t4, name=name)
        if form == "t2":
            E, A, B, G, alpha, beta, gamma = (
                float(document[key]) for key in ("E", "A", "B", "G", "alpha", "beta", "gamma")
            )
            return T2Law(name, E, A, B, G, alpha, beta, gamma, *_ranges(document))
        return _law(name, document)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is no fitted law ({error}); write one with `minnow scaling fit FILE --json`"
        ) from error


def _law(name: str, document: dict[str, Any]) -> Law:
    E, A, B, alpha, beta = (float(document[key]) for key in ("E", "A", "B", "alpha", "beta"))
    repeats = Repeats(float(document["repeats"]["tokens"]), float(document["repeats"]["params"]))
    return Law(name, E, A, B, alpha, beta, "own fit", *_ranges(document), repeats)


def _ranges(document: dict[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The fitted runs' smallest and largest size and number of tokens."""
    (least, most), (fewest, longest) = document["params_range"], document["tokens_range"]
    return (float(least), float(most)), (float(fewest), float(longest))


def _entry(choice: Choice, accuracy: AccuracyLaw | None) -> dict[str, Any]:
    entry = choice.as_dict()
    if accuracy is not None and choice.loss is not None:
        entry["accuracy"] = float(accuracy.accuracy(choice.loss))
    return entry


def _plan_text(budget: Budget, choices: Sequence[Choice], entries: Sequence[dict[str, Any]]) -> str:
    head = ["rule", "law", "params", "tokens", "tokens/param", "loss", "train FLOPs", "life FLOPs"]
    extras: list[tuple[str, Any]] = [
        ("epochs", lambda c: f"{c['epochs']:.3g}"),
        ("samples", lambda c: f"{c['samples']:.3g}"),
        ("minus_log_pass", lambda c: f"{c['minus_log_pass']:.4f}"),
        ("pass_rate", lambda c: f"{c['pass_rate']:.1%}"),
        ("accuracy", lambda c: f"{c['accuracy']:.1%}"),
        ("dollars", lambda c: f"{c['dollars']:,.0f}"),
        ("break_even", lambda c: f"{c['break_even']:,.0f}"),
    ]
    used = [(name, write) for name, write in extras if any(entry.get(name) is not None for entry in entries)]
    names = {
        "minus_log_pass": "-log pass@k",
        "pass_rate": "pass@k",
        "dollars": "$",
        "break_even": "$ per 0.01 nats at the end",
    }
    rows = [head + [names.get(name, name) for name, _ in used]]
    for entry in entries:
        rows.append(
            [
                entry["rule"],
                entry["law"],
                human(entry["params"]),
                human(entry["tokens"]),
                f"{entry['tokens_per_parameter']:,.4g}"
                if entry["tokens_per_parameter"] < 1e4
                else f"{entry['tokens_per_parameter']:,.0f}",
                "" if entry["loss"] is None else f"{entry['loss']:.4f}",
                f"{entry['training_flops']:.3g}",
                f"{entry['lifetime_flops']:.3g}",
                *("" if entry.get(name) is None else write(entry) for name, write in used),
            ]
        )
    lines = [columns(rows)]
    if budget.max_params is not None:
        lines.append(f"the device allows {human(budget.max_params)} parameters")
    for choice in choices:
        lines += [
            f"{choice.rule}, {choice.law}: {warning}"
            for warning in choice.warnings
            if "outside its runs" not in warning
        ]
    return "\n".join([lines[0], *dict.fromkeys(lines[1:])])
