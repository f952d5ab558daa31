"""``minnow plan-cluster``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.output import AsJson, Overrides, columns, emit
from minnow.cli.scaling_plan import Amount, amount
from minnow.errors import UserError
from minnow.files import read_json, write_json
from minnow.machine import machine, peak_rss_bytes
from minnow.model.presets import PRESETS, find_preset
from minnow.progress import duration, track
from minnow.recipe.mapping import nearest
from minnow.recipe.schema import Recipe, load_recipe
from minnow.recipe.speed import takes_muon
from minnow.scaling.accelerators import GPUS
from minnow.scaling.calibrate import Calibration, warm_up
from minnow.scaling.cluster import Costs, Plan, plan_cluster
from minnow.scaling.job import Job, Mesh
from minnow.scaling.laws import human
from minnow.scaling.measured import Measured
from minnow.scaling.roofline import Roofline
from minnow.train.optimizer import OptimizerSettings
from minnow.train.parallel import Parallel
from minnow.train.ranks import joined

_SHOWN = 8
_ROUNDS = 15  # of a calibration


def plan(
    recipe: Annotated[Path | None, tyro.conf.Positional] = None,
    /,
    *,
    preset: str | None = None,
    stage: str | None = None,
    nodes: int = 1,
    per_node: int = 8,
    gpu: str = "H200",
    gpu_price: float = 2.5,
    tokens: Amount = None,
    batch: Amount = None,
    length: int | None = None,
    rows: tuple[int, int] = (1, 4),
    overrides: Overrides = (),
    calibrate: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    measured: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a training would take on many ranks: the best mesh, memory of a rank, communication, days and cost.

    Times are simulated from published numbers of the GPU, or from seconds measured on a machine of the kind
    (--calibrate there, --measured here). How far both are from runs: docs/results/cluster.md.

    Args:
        recipe: whose stage is planned.
        preset: a published shape in place of a recipe, such as lfm2-24b-a2b.
        stage: which of the recipe's stages; left out, the first that trains on text.
        nodes: machines.
        per_node: accelerators, or other ranks, of each.
        gpu: A100, H100, H200 or B200.
        gpu_price: dollars per GPU-hour; an assumption, so set your own.
        tokens: to train on, in place of the recipe's; such as 10T.
        batch: tokens of a step, in place of the recipe's; such as 4M.
        length: tokens of a row, in place of the recipe's.
        rows: through the model at once, the two numbers that --calibrate measures.
        overrides: change a key of the recipe, such as data.path=books.jsonl; may be repeated.
        calibrate: measure this machine with the model's layers and write the file; under torchrun communication too.
        measured: plan with such a file in place of published numbers.
    """
    loaded = None if recipe is None else load_recipe(recipe, overrides)
    trained, step = (amount(*flag, like="10T or 4M", least=1) for flag in (("tokens", tokens), ("batch", batch)))
    job = _job(loaded, preset, stage, trained, step, length)
    if calibrate is not None:
        _calibrate(job, rows, calibrate)
        return
    if nodes < 1 or per_node < 1:
        raise UserError(f"--nodes {nodes} and --per-node {per_node} are no machines; give at least 1 of each")
    if not 0 <= gpu_price < math.inf:
        raise UserError(f"--gpu-price {gpu_price:g} is no price; give dollars per hour")
    costs: Costs
    if measured is not None:
        costs, source = Measured.from_dict(read_json(measured)), str(measured)
    else:
        known = [name for name, one in GPUS.items() if one.network]
        if gpu not in known:
            raise UserError(f"there is no server of GPU {gpu} in the list; {nearest(gpu, known)}")
        costs, source = Roofline(GPUS[gpu]), gpu
    ranks = nodes * per_node
    plans, refused = plan_cluster(job, ranks, per_node, costs)
    hours = plans[0].seconds / 3600 * ranks
    dollars = None if measured is not None else hours * gpu_price
    document = {
        "parameters": job.parameters,
        "job": {"length": job.length, "rows": job.rows, "tokens": job.tokens, "muon": job.muon},
        "costs": source,
        "simulated": True,
        "best": plans[0].as_dict(),
        "rank_hours": hours,
        "dollars": dollars,
        "others": [plan.as_dict() for plan in plans[1:]],
        "refused": [{"mesh": mesh.__dict__, "reason": reason} for mesh, reason in refused],
    }
    emit(document, _text(job, plans, refused, source, hours, dollars, gpu_price), as_json)


def _job(
    recipe: Recipe | None,
    preset: str | None,
    stage: str | None,
    tokens: float | None,
    batch: float | None,
    length: int | None,
) -> Job:
    """What the recipe's stage or the preset asks for, with what the flags say in its place."""
    if (recipe is None) == (preset is None):
        raise UserError("name a recipe or a --preset, one of the two")
    if length is not None and length < 1:
        raise UserError(f"--length is {length}; a row has at least 1 token")
    if preset is not None:
        config = find_preset(preset)
        if config is None:
            raise UserError(f"there is no preset {preset}; {nearest(preset, PRESETS)}")
        if tokens is None or batch is None or length is None:
            raise UserError("a preset says no training; add --tokens, --batch and --length, such as 10T, 4M and 4096")
        optimizer = OptimizerSettings()
    else:
        assert recipe is not None
        settings, config = _stage(recipe, stage), recipe.shape.config(recipe.shape.vocab_size)
        length = length or settings.row_length
        batch = batch or settings.rows * settings.row_length
        tokens = tokens or settings.training.steps * batch
        optimizer = settings.training.optimizer
    rows = round(batch / length)
    if rows < 1:
        raise UserError(f"a step of {batch:g} tokens holds no row of {length}; raise --batch or lower --length")
    return Job(config, length, rows, tokens, takes_muon(optimizer, config, rows * length))


def _stage(recipe: Recipe, name: str | None) -> Any:
    """Settings of the stage of that name, or of the first, that trains on text."""
    names = [spec.name for spec in recipe.stages.values() if spec.trains_on_text]
    if not names:
        raise UserError(f"recipe {recipe.name} has no stage that trains on text; give a --preset")
    if name is not None and name not in names:
        raise UserError(f"stage {name} of recipe {recipe.name} trains on no text; {nearest(name, names)}")
    return recipe.stages[name or names[0]].settings


def _calibrate(job: Job, rows: tuple[int, int], file: Path) -> None:
    low, high = rows
    if not 1 <= low < high:
        raise UserError(f"--rows {low} {high} are no two numbers; give a smaller one and a larger, such as 1 4")
    with joined(Parallel(activation_checkpointing=True)) as ranks:
        warm_up(ranks)
        calibration = Calibration(job.config, job.length, rows, job.muon, peak_rss_bytes(), ranks)
        calibration.round()
        calibration.forget()
        with track(_ROUNDS, "calibrate", "round") as progress:
            for _ in range(_ROUNDS):
                calibration.round()
                progress.advance()
        found = calibration.measured(machine()["cpu"])
        if ranks.first:
            write_json(file, found.as_dict())


def _text(
    job: Job,
    plans: list[Plan],
    refused: list[tuple[Mesh, str]],
    source: str,
    hours: float,
    dollars: float | None,
    price: float,
) -> str:
    best = plans[0]
    mesh, step = best.mesh, best.step
    per_rank = -(-job.rows * mesh.context // mesh.ranks)
    again = ", activations computed again" if mesh.checkpointing else ""
    paid = "" if dollars is None else f", ${dollars:,.0f} at ${price:g} an hour"
    seconds = {name: value for name, value in step.__dict__.items() if name != "sent"}
    lines = [
        f"{human(job.parameters)} parameters, {human(job.tokens)} tokens, {'Muon' if job.muon else 'AdamW'}",
        f"steps of {job.rows:,} rows of {job.length:,} tokens; simulated, by {source}",
        "",
        f"best of {len(plans)} divisions of {mesh.ranks} ranks: {mesh.copies} x {mesh.shard} (copies x shard)",
        f"  expert {mesh.expert}, context {mesh.context}; {mesh.rows} of a rank's {per_rank} rows at once{again}",
        f"  {best.tokens_per_second:,.0f} tokens/s, MFU {best.mfu:.1%}, {step.seconds:.3g} s a step",
        f"  {duration(best.seconds)} in all, {hours:,.0f} rank-hours{paid}",
        f"memory of a rank in GB: {_listed({name: size / 1e9 for name, size in best.memory.items()})}",
        f"seconds of a step: {_listed(seconds)}",
        f"sent by a rank in a step, in GB: {_listed({kind: size / 1e9 for kind, size in step.sent.items()}) or 'nothing'}",
    ]
    readers = mesh.ranks // mesh.context
    if job.rows % readers:
        idle = 1 - job.rows / (per_rank * readers)
        even = per_rank * readers
        lines.append(
            f"{readers} ranks share {job.rows:,} rows unevenly: {idle:.1%} of the time some wait; try {even:,}"
        )
    table = [["shard", "expert", "context", "rows at once", "again", "GB", "tokens/s", "MFU", "days"]]
    for plan in plans[:_SHOWN]:
        one = plan.mesh
        table.append(
            [
                str(one.shard),
                str(one.expert),
                str(one.context),
                str(one.rows),
                "yes" if one.checkpointing else "no",
                f"{plan.memory['peak'] / 1e9:.1f}",
                f"{plan.tokens_per_second:,.0f}",
                f"{plan.mfu:.1%}",
                f"{plan.seconds / 86_400:.2f}",
            ]
        )
    lines += ["", columns(table)]
    lines += [
        f"refused: shard {one.shard}, expert {one.expert}, context {one.context}: {reason}"
        for one, reason in refused[:_SHOWN]
    ]
    if len(refused) > _SHOWN:
        lines.append(f"and {len(refused) - _SHOWN} more refused, see --json")
    return "\n".join([*lines, "", f"in the recipe: parallel: {{{_settings(mesh)}}}"])


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items() if value)


def _settings(mesh: Mesh) -> str:
    """The recipe's words for a mesh."""
    words = [f"shard: {mesh.shard}"]
    words += [f"{name}: {size}" for name, size in (("expert", mesh.expert), ("context", mesh.context)) if size > 1]
    return ", ".join([*words, *(["activation_checkpointing: true"] if mesh.checkpointing else [])])
