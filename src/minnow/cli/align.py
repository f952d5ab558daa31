"""``minnow dpo`` and ``minnow grpo``: one stage of a recipe over a checkpoint that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, Threads, emit
from minnow.evaluate.prompts import SETS
from minnow.files import read_json
from minnow.model.hub import PREFIX
from minnow.recipe.mapping import to_plain
from minnow.recipe.registry import stage_kinds
from minnow.recipe.runner import run
from minnow.recipe.schema import parse_recipe
from minnow.recipe.stages.alignment import DpoSettings, GrpoSettings
from minnow.recipe.stages.sources import CHECKPOINT

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Prompts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET|FILE …")]
Count = Annotated[int, tyro.conf.arg(metavar="PROMPTS")]
_DPO, _GRPO = DpoSettings(checkpoint="base", pairs="pairs"), GrpoSettings(checkpoint="base")


def dpo(
    model: Model,
    pairs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")],
    /,
    out: Out,
    prompts: Prompts = tuple(SETS),
    n: Count = 100,
    settings: Annotated[DpoSettings, tyro.conf.arg(name="")] = _DPO,
    seed: int = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Preference training of a checkpoint on a file of pairs; the best step by loop rate and task score is kept.

    Args:
        model: a checkpoint, stage or run folder, or hf://OWNER/NAME.
        pairs: JSONL, JSON or Parquet in TRL's preference format, such as minnow loops pairs writes.
        out: run folder; the checkpoint is out/dpo/checkpoint. The same command goes on where a killed one was.
        prompts: what steps are judged on: enumeration, reasoning, open-ended, files of prompts, task files.
        n: prompts of each built-in set.
        settings: of the stage, as in a recipe.
        seed: of the order of the pairs.
        threads: of torch; by default the fastest number, measured.
    """
    stages = {"pairs": {"kind": "preferences", "file": str(pairs)}, "dpo": to_plain(settings)}
    _run("dpo", model, out, prompts, n, stages, seed, threads, as_json)


def grpo(
    model: Model,
    /,
    out: Out,
    prompts: Prompts,
    n: Count = 400,
    settings: Annotated[GrpoSettings, tyro.conf.arg(name="")] = _GRPO,
    seed: int = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """RL of a checkpoint with verifiable rewards and a loop penalty; the best step by loop rate and task score is kept.

    Args:
        model: a checkpoint, stage or run folder, or hf://OWNER/NAME.
        out: run folder; the checkpoint is out/grpo/checkpoint. The same command goes on where a killed one was.
        prompts: enumeration, reasoning, open-ended, files of prompts (rows with prompt or messages, and an optional
            answer and verifier) and task files. What has no answer is rewarded for its form. A fifth judges the steps.
        n: prompts of each built-in set.
        settings: of the stage, as in a recipe.
        seed: of the sampling noise.
        threads: of torch; by default the fastest number, measured.
    """
    _run("grpo", model, out, prompts, n, {"grpo": to_plain(settings)}, seed, threads, as_json)


def _run(
    kind: str,
    model: str,
    out: Path,
    prompts: tuple[str, ...],
    n: int,
    stages: Mapping[str, Any],
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run the stages over the model as a recipe of their own."""
    recipe = parse_recipe(
        {
            "name": kind,
            "seed": seed,
            "threads": threads,
            "run_folder": str(out),
            "checkpoint": model if model.startswith(PREFIX) else str(resolve_model(Path(model))),
            "data": {"kind": "prompts", "prompts": list(prompts), "count": n},
            "stages": {"base": {"kind": "checkpoint"}, **stages},
        },
        stage_kinds(),
    )
    run(recipe)
    result = read_json(out / kind / "result.json")
    document = {"checkpoint": str(out / kind / CHECKPOINT), **result}
    rows = {row["step"]: row for row in result["history"]}
    first, best = rows[0], rows[result["best_step"]]
    text = (
        f"step {best['step']} of {result['steps']} kept: loops {first['loop_rate']:.1%} → {best['loop_rate']:.1%}, "
        f"score {first['task_score']:.3f} → {best['task_score']:.3f}\ncheckpoint: {document['checkpoint']}"
    )
    emit(document, text, as_json)
