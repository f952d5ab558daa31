"""The stage a recipe for a checkpoint that is there already begins with: checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint
from minnow.model.hub import fetch
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage
from minnow.recipe.stages.sources import CHECKPOINT


@dataclass(frozen=True)
class CheckpointSettings:
    pass


@stage("checkpoint", CheckpointSettings, uses=("checkpoint",))
def checkpoint(context: StageContext[CheckpointSettings]) -> dict[str, Any]:
    """Open the recipe's checkpoint and link to it: nothing is copied, and nothing in it is changed.

    Raises:
        UserError: the recipe names none, or it cannot be opened.
    """
    source = context.recipe.checkpoint
    if source is None:
        raise UserError(
            "this recipe starts from a checkpoint; name it with --set checkpoint=FOLDER (or hf://OWNER/NAME)"
        )
    folder = fetch(source)
    model, words = load_checkpoint(folder, dtype=None)
    link = context.folder / CHECKPOINT
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    return {
        "source": source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": words.vocab_size,
    }
