"""``minnow sft``, ``dpo``, ``grpo`` and ``quantise``: one stage of a recipe over a checkpoint that is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, columns, emit, names_in, warn
from minnow.errors import UserError
from minnow.evaluate.prompts import SETS
from minnow.files import read_json
from minnow.model.hub import PREFIX
from minnow.posttrain.chat_checks import Check
from minnow.recipe.mapping import to_plain
from minnow.recipe.registry import stage_kinds
from minnow.recipe.runner import run
from minnow.recipe.schema import parse_recipe
from minnow.recipe.stages.alignment import DpoSettings, GrpoSettings
from minnow.recipe.stages.chats import ChatSource, ChatsSettings
from minnow.recipe.stages.quantising import QuantiseSettings
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.recipe.stages.training import SftSettings

Model = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="MODEL", help="a checkpoint, stage or run folder, or hf://OWNER/NAME"),
]
Out = Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
Prompts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET|FILE …")]
Count = Annotated[int, tyro.conf.arg(metavar="PROMPTS", help="prompts of each built-in set")]
TorchThreads = Annotated[
    int | None, tyro.conf.arg(metavar="INT", help="of torch; by default the fastest number, measured")
]
_SFT = SftSettings(checkpoint="base", data="chats")
_DPO, _GRPO = DpoSettings(checkpoint="base", pairs="pairs"), GrpoSettings(checkpoint="base")
_QUANTISE = QuantiseSettings(checkpoint="base")


def sft(
    model: Model,
    data: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE …")] = (),
    /,
    *,
    out: Out,
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=FILE]|FILE.yaml|FILE.py,…")] = (),
    examples: int | None = None,
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="SHARE …")] = (),
    easy_to_hard: bool = False,
    against: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    leave_out: Annotated[tuple[Check, ...], tyro.conf.arg(metavar="CHECK …")] = (),
    skip_bad_rows: bool = False,
    prompts: Prompts = tuple(SETS),
    n: Count = 100,
    settings: Annotated[SftSettings, tyro.conf.arg(name="")] = _SFT,
    seed: int = 0,
    threads: TorchThreads = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a checkpoint on conversations and on the worked examples of tasks, after a look at what is in them.

    Args:
        data: JSONL, JSON, Parquet or CSV with messages (and tools), or prompt and completion, in each row.
        out: run folder; the checkpoint is out/sft/checkpoint, the report on the data out/chats/result.json. The same
            command goes on where a killed one was.
        tasks: names of tasks, task files, or both, whose training split is shown; NAME=FILE names the rows to train on
            of a task made from published data.
        examples: the first so many rows of each file and task; by default all, 200 of a task that is drawn.
        weights: the shares of the files, then of the tasks, in training; by default as many as each has rows.
        easy_to_hard: read every file in the order of its rows' difficulty (minnow data grade writes it).
        against: evaluation sets; rows that share 13 words in a row with one are counted. What the tasks hold out is
            looked for unasked.
        leave_out: checks whose rows are not trained on: copies, near-copies, contaminated, refusal, debris.
        skip_bad_rows: leave out malformed rows, counted and named, instead of stopping at the first.
        prompts: what evaluate looks at: enumeration, reasoning, open-ended, files of prompts, task files.
        settings: of the stage, as in a recipe.
        seed: of the order of the rows, and of tasks that are drawn.
    """
    named = names_in(tasks)
    if weights and len(weights) != len(data) + len(named):
        raise UserError(
            f"--weights gives {len(weights)} shares for {len(data) + len(named)} files and tasks; give one each"
        )
    shares: Sequence[float | None] = weights or [None] * (len(data) + len(named))
    given = [ChatSource(path=file, easy_to_hard=easy_to_hard) for file in data]
    given += [ChatSource(task=name) for name in named]
    sources = {
        f"{place}-{Path(str(source.path or source.task).partition('=')[0]).name.partition('.')[0]}": replace(
            source, examples=examples, weight=share
        )
        for place, (source, share) in enumerate(zip(given, shares, strict=True), start=1)
    }
    chats = ChatsSettings(
        checkpoint="base", sources=sources, against=against, leave_out=leave_out, skip_bad_rows=skip_bad_rows
    )
    stages = {"chats": to_plain(chats), "sft": to_plain(settings)}
    result = _run("sft", model, out, prompts, n, stages, seed, threads)
    found = read_json(out / "chats" / "result.json")
    warn(found["bad_rows"])
    rows = [["check", "rows", "first"]]
    rows += [[name, str(each["count"]), (each["first"] or ["–"])[0]] for name, each in found["checks"].items()]
    spread, languages = found["tokens"], ", ".join(f"{code} {count}" for code, count in found["languages"].items())
    text = (
        f"{found['rows']} conversations of {spread['median']} tokens (median), at most {spread['longest']}; in "
        f"{languages}\n{columns(rows)}\n\n{result['steps']} steps, {result['epochs']:.2f} epochs, loss "
        f"{result['final_loss']:.4f}\ncheckpoint: {result['checkpoint']}"
    )
    emit(result | {"data": found}, text, as_json)


def dpo(
    model: Model,
    pairs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PAIRS")],
    /,
    out: Out,
    prompts: Prompts = tuple(SETS),
    n: Count = 100,
    settings: Annotated[DpoSettings, tyro.conf.arg(name="")] = _DPO,
    seed: int = 0,
    threads: TorchThreads = None,
    as_json: AsJson = False,
) -> None:
    """Preference training of a checkpoint on a file of pairs; the best step by loop rate and task score is kept.

    Args:
        pairs: JSONL, JSON or Parquet in TRL's preference format, such as minnow loops pairs writes.
        out: run folder; the checkpoint is out/dpo/checkpoint. The same command goes on where a killed one was.
        prompts: what steps are judged on: enumeration, reasoning, open-ended, files of prompts, task files.
        settings: of the stage, as in a recipe.
        seed: of the order of the pairs.
    """
    stages = {"pairs": {"kind": "preferences", "file": str(pairs)}, "dpo": to_plain(settings)}
    _emit_gated(_run("dpo", model, out, prompts, n, stages, seed, threads), as_json)


def grpo(
    model: Model,
    /,
    out: Out,
    prompts: Prompts,
    n: Count = 400,
    settings: Annotated[GrpoSettings, tyro.conf.arg(name="")] = _GRPO,
    seed: int = 0,
    threads: TorchThreads = None,
    as_json: AsJson = False,
) -> None:
    """RL of a checkpoint with verifiable rewards and a loop penalty; the best step by loop rate and task score is kept.

    Args:
        out: run folder; the checkpoint is out/grpo/checkpoint. The same command goes on where a killed one was.
        prompts: enumeration, reasoning, open-ended, files of prompts (rows with prompt or messages, and an optional
            answer and verifier) and task files. What has no answer is rewarded for its form. A fifth judges the steps.
        settings: of the stage, as in a recipe.
        seed: of the sampling noise.
    """
    _emit_gated(_run("grpo", model, out, prompts, n, {"grpo": to_plain(settings)}, seed, threads), as_json)


def quantise(
    model: Model,
    /,
    out: Out,
    prompts: Prompts = tuple(SETS),
    n: Count = 400,
    settings: Annotated[QuantiseSettings, tyro.conf.arg(name="")] = _QUANTISE,
    seed: int = 0,
    threads: TorchThreads = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a checkpoint as its Q4_0 file will round it, towards its own answers: the file then loses less.

    Args:
        out: run folder; the checkpoint is out/quantise/checkpoint, and its file says what it says.
        prompts: that the model answers before training: enumeration, reasoning, open-ended, files of prompts, task files.
        settings: of the stage, as in a recipe.
        seed: of the sampling noise.
    """
    _emit_gated(_run("quantise", model, out, prompts, n, {"quantise": to_plain(settings)}, seed, threads), as_json)


def _run(
    kind: str,
    model: str,
    out: Path,
    prompts: tuple[str, ...],
    n: int,
    stages: Mapping[str, Any],
    seed: int,
    threads: int | None,
) -> dict[str, Any]:
    """Run the stages over the model as a recipe of their own; the result of the last, ``kind``, and its checkpoint."""
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
    return {"checkpoint": str(out / kind / CHECKPOINT), **read_json(out / kind / "result.json")}


def _emit_gated(result: dict[str, Any], as_json: bool) -> None:
    rows = {row["step"]: row for row in result["history"]}
    first, best = rows[0], rows[result["best_step"]]
    text = (
        f"step {best['step']} of {result['steps']} kept: loops {first['loop_rate']:.1%} → {best['loop_rate']:.1%}, "
        f"score {first['task_score']:.3f} → {best['task_score']:.3f}\ncheckpoint: {result['checkpoint']}"
    )
    emit(result, text, as_json)
