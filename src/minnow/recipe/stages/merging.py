"""The stage that merges checkpoints where that makes a better one: merge."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import whole_folder
from minnow.model.checkpoint import load_checkpoint, load_model
from minnow.posttrain.merge import Merge
from minnow.posttrain.merge_files import merge_folders
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.alignment import GateSettings, make_gate
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.train.precision import compute_dtype


@dataclass(frozen=True)
class MergeSettings:
    """Candidates to try; the last checkpoint named is the one to beat.

    Attributes:
        base: the stage that the checkpoints were trained from, for methods that merge what training changed.
        shares: of an earlier checkpoint in an average of it and the last one, each a candidate.
        methods: further candidates, each of all checkpoints.
        margin: by how much a candidate's task score must be the better one; less is noise.
    """

    checkpoints: tuple[str, ...] = stage_input(("dpo", "grpo"))
    base: str | None = stage_input(None)
    shares: tuple[float, ...] = (0.25, 0.5)
    methods: tuple[Merge, ...] = ()
    margin: float = 0.01
    gate: GateSettings = field(default_factory=GateSettings)

    def __post_init__(self) -> None:
        for method in self.methods:
            method.shares(len(self.checkpoints))
            if method.needs_base and self.base is None:
                raise UserError(f"{method.method} merges what training changed; name the stage it began from as base")


@stage("merge", MergeSettings, version=2)
def merge(context: StageContext[MergeSettings]) -> dict[str, Any]:
    """Merge checkpoints; a candidate is kept only if it scores clearly better than the last one and loops no more."""
    settings = context.settings
    last = settings.checkpoints[-1]
    folder = context.output(last, CHECKPOINT)
    model, words = load_checkpoint(folder)
    model.to(compute_dtype())
    gate = make_gate(context, settings.gate, model, words)

    def measure(name: str) -> dict[str, Any]:
        loop_rate, task_score = gate.measure()
        return {"name": name, "loop_rate": loop_rate, "task_score": task_score}

    measured = [measure(last)]
    best, to_beat = measured[0], measured[0]["task_score"] + settings.margin
    common = None if settings.base is None else context.output(settings.base, CHECKPOINT)
    for name, members, how in _candidates(context):
        made = context.state / "candidate"
        merge_folders(members, how, made, common if how.needs_base else None)
        model.load_state_dict(load_model(made).state_dict())
        measured.append(measure(name))
        if measured[-1]["task_score"] > to_beat and measured[-1]["loop_rate"] <= measured[0]["loop_rate"]:
            best, to_beat, folder = measured[-1], measured[-1]["task_score"], context.state / "best"
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    with whole_folder(context.folder / CHECKPOINT) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
    return {"kept": best is not measured[0], "chosen": best["name"], "candidates": measured}


def _candidates(context: StageContext[MergeSettings]) -> Iterator[tuple[str, list[Path], Merge]]:
    settings = context.settings
    *earlier, last = settings.checkpoints
    folders = {name: context.output(name, CHECKPOINT) for name in settings.checkpoints}
    for name in earlier:
        for share in settings.shares:
            members = [folders[last], folders[name]]
            yield f"{1 - share:.2f} {last} + {share:.2f} {name}", members, Merge(weights=(1 - share, share))
    for method in settings.methods:
        weights = f" ({', '.join(f'{w:g}' for w in method.weights)})" if method.weights else ""
        yield f"{method.method} of {', '.join(settings.checkpoints)}{weights}", list(folders.values()), method
