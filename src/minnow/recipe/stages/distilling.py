"""The stage that teaches a new model with an older one: distil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minnow.data.loader import Loader
from minnow.data.rows import Batch
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.checkpoint import weights_digest
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage
from minnow.recipe.stages.sources import CHECKPOINT, frozen_teacher
from minnow.recipe.stages.training import TextTrainingSettings, train_on_text
from minnow.train.distillation import Distillation, DistillationSettings, TeacherCache


@dataclass(frozen=True)
class DistilSettings(TextTrainingSettings):
    """Pre-training with a teacher.

    Attributes:
        teacher: checkpoint folder of a model with this recipe's tokenizer, for instance of another run.
        cached: ask the teacher once about every row, and keep its answers beside the corpus while the stage lasts;
            without it the teacher runs beside the student, which saves the disk and costs its time in every epoch.
    """

    teacher: Path = field(kw_only=True)
    cached: bool = True
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cached and self.input_dropout:
            raise UserError("a live teacher would be shown the dropped inputs too; set cached: true or leave it out")
        if self.cached and self.ramp.steps:
            raise UserError(
                "a ramp cuts rows that cached answers are kept for whole; set cached: false or leave it out"
            )


@stage("distil", DistilSettings, version=2, together=True)
def distil(context: StageContext[DistilSettings]) -> dict[str, Any]:
    """Train from random weights on the text and on what a teacher expects of it."""
    settings = context.settings
    words = Tokenizer.load(context.output(settings.tokenizer, CHECKPOINT))
    teacher = frozen_teacher(settings.teacher, words)
    if not settings.cached and context.ranks.parallel.context > 1:
        raise UserError("a live teacher would read parts of rows; set cached: true or leave parallel.context out")
    objective = Distillation(settings.distillation, None if settings.cached else teacher)

    def prepare(loader: Loader) -> Callable[[Batch], Batch]:
        if not settings.cached:
            return lambda batch: batch
        folder, k = context.state / "teacher", settings.distillation.k
        digest = f"{weights_digest(settings.teacher)} {words.digest} {k} {len(loader)} {loader.length}"

        def cache() -> TeacherCache:
            if folder.exists():
                return TeacherCache.open(folder, digest)
            return TeacherCache.build(teacher, loader, k, folder, digest)

        return context.ranks.after_first(cache).batch

    return train_on_text(context, objective, prepare)
