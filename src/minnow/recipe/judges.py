"""The judges that a recipe or a command names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from minnow.errors import UserError
from minnow.posttrain.jury import Judge, ModelJudge, RuleJudge
from minnow.recipe.stages.sources import engine_of
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import LocalTextEngine

RULES = "rules"
KEY_VARIABLE = "MINNOW_API_KEY"
_ROWS = 16  # a judge reads long prompts, so few of them side by side


def open_judges(names: Sequence[str]) -> list[Judge]:
    """Judges by name: ``rules``, a checkpoint folder, or ``NAME@URL`` for a model behind an OpenAI-compatible server.

    A server's key is taken from ``MINNOW_API_KEY``.

    Raises:
        UserError: a name that is none of these, or a name twice.
    """
    if len(set(names)) < len(names):
        raise UserError(f"a judge is named twice in {', '.join(names)}; its word would only count more")
    return [_open(name) for name in names]


def _open(name: str) -> Judge:
    model, _, url = name.partition("@")
    if name == RULES:
        return RuleJudge()
    if ServerEngine.is_address(url):
        return ModelJudge(name, ServerEngine(url, model, api_key=os.environ.get(KEY_VARIABLE)))
    if not Path(name).is_dir():
        raise UserError(f"there is no judge {name!r}; use {RULES}, a checkpoint folder, or NAME@http://HOST:PORT/v1")
    engine, _, words = engine_of(Path(name), _ROWS)
    return ModelJudge(name, LocalTextEngine(engine, words, _ROWS))
