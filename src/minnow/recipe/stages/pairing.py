"""Stages that bring preference pairs: pairs (made from the model's own answers), preferences (read from a file)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minnow.data.preference import read_preferences
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import whole_file, write_json
from minnow.posttrain.journal import Journal
from minnow.posttrain.jury import Judge
from minnow.posttrain.pairs import Journals, PairReport, PairSettings, build_pairs
from minnow.progress import track
from minnow.recipe.context import StageContext
from minnow.recipe.judges import open_judges
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT, engine_of
from minnow.rollout import Engine
from minnow.tasks import Example


@dataclass(frozen=True)
class PairStageSettings:
    """Prompts to roll out: loop-prone ones, and ordinary ones that keep the answers good.

    Attributes:
        judges: who grades open answers: ``rules``, a checkpoint folder, or a server's model as ``NAME@URL``.
    """

    checkpoint: str = stage_input("sft")
    loop_prompts: int = 96
    task_prompts: int = 16
    judges: tuple[str, ...] = ()
    pairs: PairSettings = field(default_factory=PairSettings)


@stage("pairs", PairStageSettings, version=2)
def pairs(context: StageContext[PairStageSettings]) -> dict[str, Any]:
    """Roll out, judge and pair; writes ``pairs.jsonl`` (TRL's preference format) and the exact ids beside it.

    ``sft_prompts.jsonl`` holds the prompts all of whose answers loop.
    """
    settings = context.settings
    checkpoint = context.output(settings.checkpoint, CHECKPOINT)
    engine, _, words = engine_of(checkpoint)
    prompts = prompts_of(context.recipe).to_pair(settings.loop_prompts, settings.task_prompts)
    judges = open_judges(settings.judges)
    report = pair_prompts(engine, words, prompts, settings.pairs, context.seed, judges, context.state)
    write_rows(context.folder / "pairs.jsonl", pair_rows(report, words, settings.checkpoint, judges))
    write_rows(context.folder / "sft_prompts.jsonl", sft_rows(report))
    write_json(
        context.folder / "ids.json",
        [
            {
                "kind": p.kind,
                "prompt": p.prompt_ids,
                "chosen": p.chosen_ids,
                "rejected": p.rejected_ids,
                "onset": p.onset,
            }
            for p in report.pairs
        ],
    )
    return report.as_dict()


def pair_prompts(
    engine: Engine,
    words: Tokenizer,
    prompts: Sequence[Example],
    settings: PairSettings,
    seed: int,
    judges: Sequence[Judge],
    folder: Path,
    model: str = "",
) -> PairReport:
    """Pairs of a model's own answers, with progress; answers and grades are kept in ``folder`` as they come.

    Args:
        model: digest of the weights: answers of other ones are not gone on with.

    Raises:
        UserError: as the engine and the judges, or no prompt gave a pair.
    """
    asked = {"model": model, "temperatures": [0.0, *settings.temperatures], "max_new_tokens": settings.max_new_tokens}
    text = json.dumps([[each.id, each.messages, each.tools] for each in prompts])
    made_with = {**asked, "seed": seed, "prompts": hashlib.sha256(text.encode()).hexdigest()[:16]}
    kept = Journals(
        Journal(folder / "rollouts.jsonl", made_with), Journal(folder / "grades.jsonl", {"seed": seed, "model": model})
    )
    with (
        track(len(prompts), "answers", "prompt") as answers,
        track(2 * len(prompts) * len(judges), "grades", "request") as grades,
    ):
        kept.answered, kept.judged = answers.advance, grades.advance
        report = build_pairs(engine, words, prompts, settings, seed, judges, kept)
    if not report.pairs:
        fates = ", ".join(f"{fate}: {count}" for fate, count in report.fates.most_common())
        raise UserError(
            f"none of the {report.prompts} prompts gave a pair ({fates}); give more or easier prompts, lower score_gap or "
            "agreement, or train longer"
        )
    return report


def pair_rows(report: PairReport, words: Tokenizer, model: str, judges: Sequence[Judge]) -> Iterable[dict[str, Any]]:
    """The pairs in TRL's preference format with where they come from."""
    named = [judge.name for judge in judges]
    return ({**pair.as_row(words), "model": model, "judges": named} for pair in report.pairs)


def sft_rows(report: PairReport) -> Iterable[dict[str, Any]]:
    """Prompts that want worked examples, in the form in which they were read."""
    return (
        {"id": each.id, "task": each.task, "messages": each.messages, "tools": each.tools} for each in report.all_loop
    )


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines that appear whole."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class PreferencesSettings:
    """Pairs that are there already.

    Attributes:
        checkpoint: whose tokenizer and chat format they are written in.
        file: JSONL, JSON or Parquet in TRL's preference format.
    """

    checkpoint: str = stage_input("base")
    file: Path = field(kw_only=True)


@stage("preferences", PreferencesSettings, uses=())
def preferences(context: StageContext[PreferencesSettings]) -> dict[str, Any]:
    """Read a preference data set into token ids."""
    words = Tokenizer.load(context.output(context.settings.checkpoint, CHECKPOINT))
    rows = [row.ids(words) for row in read_preferences(context.settings.file)]
    write_json(context.folder / "ids.json", rows)
    loops = sum(row["kind"] == "loop" for row in rows)
    return {"pairs": len(rows), "loop_pairs": loops, "quality_pairs": len(rows) - loops}
