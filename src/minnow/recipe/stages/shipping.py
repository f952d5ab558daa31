"""Stages that hand a model over: export, profile, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.device.llama_engine import LlamaEngine
from minnow.device.parity import check_parity
from minnow.device.profile import profile
from minnow.device.quantise import TYPES
from minnow.errors import UserError
from minnow.evaluate.measure import score_tasks
from minnow.files import read_json
from minnow.recipe.context import StageContext
from minnow.recipe.registry import every_earlier, stage, stage_input
from minnow.recipe.report import build_report
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT, check_tasks, task_examples
from minnow.recipe.stages.texts import held_out_documents


@dataclass(frozen=True)
class ExportSettings:
    """Files to write, and how each is checked.

    Attributes:
        positions: about this many held-out positions are compared with torch, teacher-forced.
        tasks, examples: scored on every file; of a user's own prompts the first ``examples``.
    """

    checkpoint: str = stage_input("merge")
    types: tuple[str, ...] = ("F16", "Q8_0", "Q4_0")
    positions: int = 2000
    tasks: tuple[str, ...] = ("arithmetic", "extraction")
    examples: int = 40
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        unknown = sorted(set(self.types) - set(TYPES))
        if unknown or not self.types:
            asked = f"there is no GGUF type {unknown[0]!r}" if unknown else "types is empty"
            raise UserError(f"{asked}; choose from {', '.join(TYPES)}")


def _first_positions(sequences: Sequence[list[int]], positions: int) -> list[list[int]]:
    """The beginnings of ``sequences``, at most 256 tokens each, until they predict ``positions`` tokens."""
    kept: list[list[int]] = []
    for ids in sequences:
        if positions <= 0:
            break
        kept.append(ids[: min(256, positions + 1)])
        positions -= len(kept[-1]) - 1
    return kept


@stage("export", ExportSettings)
def export(context: StageContext[ExportSettings]) -> dict[str, Any]:
    """Write GGUF files and show what each keeps: token agreement, perplexity, task accuracy."""
    settings = context.settings
    checkpoint = context.output(settings.checkpoint, CHECKPOINT)
    words = Tokenizer.load(checkpoint)
    kind_of_data, examples = context.recipe.data.kind, []
    if kind_of_data == "pocket":
        asked = task_examples(context.recipe, (), "held_out", settings.positions // 600 + 1)
        asked.sort(key=lambda e: int(e.id.rsplit("-", 1)[1]))  # every task among the first ones
        sequences = [words.conversation([*e.messages, *e.reference], e.tools)[0] for e in asked]
        examples = task_examples(context.recipe, settings.tasks, "held_out", settings.examples)
    elif kind_of_data == "prompts":
        asked, _ = prompts_of(context.recipe).to_measure((), settings.positions, settings.positions)
        worked = [[*e.messages, *e.reference] for e in asked]
        sequences = [
            words.conversation(messages, e.tools)[0] if e.reference else words.prompt(messages, e.tools)
            for messages, e in zip(worked, asked, strict=True)
        ]
        examples = asked[: settings.examples]
    else:
        sequences = [ids.tolist() for ids in held_out_documents(context.recipe, words)]
    sequences = _first_positions(sequences, settings.positions)
    exported = [
        export_gguf(checkpoint, context.folder / f"{context.recipe.name}-{kind}.gguf", kind) for kind in settings.types
    ]
    files = []
    for made, parity in zip(exported, check_parity(checkpoint, [e.file for e in exported], sequences), strict=True):
        entry = {"file": made.file.name, "type": made.type, "bytes": made.bytes, **parity.as_dict()}
        if examples:
            with LlamaEngine(made.file, words) as engine:
                entry["tasks"] = score_tasks(engine, words, examples, settings.max_new_tokens).as_dict()
        files.append(entry)
    return {"files": files}


@dataclass(frozen=True)
class ProfileSettings:
    export: str = stage_input("export")
    prompts: tuple[int, ...] = (32, 128, 512)
    decode_depths: tuple[int, ...] = (32, 256)
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise UserError(f"repeats is {self.repeats}, which gives no spread; ask for at least 2 (5 is usual)")


@stage("profile", ProfileSettings, uses=())
def profile_files(context: StageContext[ProfileSettings]) -> dict[str, Any]:
    """Speed and memory of every exported file on this machine, each in its own process."""
    settings = context.settings
    folder = context.inputs[settings.export]
    names = [entry["file"] for entry in read_json(folder / "result.json")["files"]]
    return profile(
        [folder / name for name in names],
        threads=context.recipe.threads,
        prompts=settings.prompts,
        decode_depths=settings.decode_depths,
        repeats=settings.repeats,
    )


@dataclass(frozen=True)
class ReportSettings:
    pass


@stage("report", ReportSettings, needs=every_earlier, uses=(), publishes=("report.html",))
def report(context: StageContext[ReportSettings]) -> dict[str, Any]:
    """One self-contained page over everything before it."""
    return {"report": str(build_report(context.run_folder))}
