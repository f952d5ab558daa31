"""What the report reads: the finished stages of one run folder, in the order a recipe runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import read_json
from minnow.model.accounting import accounting
from minnow.model.config import ModelConfig
from minnow.model.foreign import is_foreign

STAGE_LABELS = {
    "base": "Given",
    "pretrain": "Base",
    "sft": "SFT",
    "dpo": "DPO",
    "grpo": "RL",
    "rl": "RL",
    "merge": "Merged",
}
_AFTER = {"pretrain": "pre-training", "merge": "merging"}
_STAGE_ORDER = {stage: position for position, stage in enumerate(STAGE_LABELS)}


@dataclass(frozen=True)
class Stage:
    """One finished stage: its folder name, its kind, its numbers and its training curve."""

    name: str
    kind: str
    result: dict[str, Any]
    metrics: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run folder as the report sees it; everything but the name may be missing.

    ``costs`` is ``(stage, seconds, peak bytes)`` in the recipe's order; ``accounting`` has ``total`` and ``parts``.
    """

    name: str
    stages: dict[str, Stage] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    costs: list[tuple[str, float, float | None]] = field(default_factory=list)
    accounting: dict[str, Any] | None = None

    def first(self, kind: str) -> Stage | None:
        """The first finished stage of a kind, or None."""
        return next((stage for stage in self.stages.values() if stage.kind == kind), None)

    def measures(self) -> list[dict[str, Any]]:
        """Results of the ``measure`` and ``measure-text`` stages, from the base model to the last checkpoint."""
        results = [stage.result for stage in self.stages.values() if stage.kind.startswith("measure")]
        return sorted(results, key=lambda result: _STAGE_ORDER.get(result["stage"], len(_STAGE_ORDER)))

    def machine(self) -> dict[str, Any]:
        """The machine's description, from recipe.json or else from the profile."""
        profile = self.first("profile")
        return self.recipe.get("machine") or (profile.result.get("machine") if profile else None) or {}


def stage_label(stage: str) -> str:
    """``grpo`` → ``RL`` and so on; a name the report does not know stays as it is."""
    return STAGE_LABELS.get(stage, stage)


def after(stage: str) -> str:
    """``after SFT``, ``after merging``: how a sentence names a checkpoint."""
    return "as given" if stage == "base" else f"after {_AFTER.get(stage, stage_label(stage))}"


def load_run(folder: Path) -> Run:
    """Read every finished stage of ``folder`` (those with ``done.json``).

    Raises:
        UserError: the folder is missing, or one of its JSON files cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run folder at {folder}; give the folder that `minnow run` wrote")
    recipe = _read_optional(folder / "recipe.json")
    paths = [path for path in sorted(folder.iterdir()) if (path / "done.json").is_file()]
    named = list((recipe.get("recipe") or {}).get("stages") or ())
    if named:
        # A recipe that was edited leaves the folders of the stages it lost behind.
        paths = sorted((path for path in paths if path.name in named), key=lambda path: named.index(path.name))
    stages = {path.name: _load_stage(path) for path in paths if (path / "result.json").is_file()}
    if not stages:
        raise UserError(f"no stage of {folder} has finished yet; run `minnow run` on its recipe first")
    return Run(
        name=folder.resolve().name,
        stages=stages,
        recipe=recipe,
        costs=_costs(_read_optional(folder / "summary.json"), [folder / name for name in stages]),
        accounting=recipe.get("accounting") or _accounting(folder, stages),
    )


def _costs(summary: dict[str, Any], finished: list[Path]) -> list[tuple[str, float, float | None]]:
    """From summary.json; without it from each done.json."""
    rows = summary.get("stages") or [{"stage": path.name, **_read_optional(path / "done.json")} for path in finished]
    return [(row["stage"], row["seconds"], row.get("peak_rss_bytes")) for row in rows if row.get("seconds")]


def _accounting(folder: Path, stages: dict[str, Stage]) -> dict[str, Any] | None:
    """The parameter split of the first checkpoint, for a run whose recipe.json does not carry it."""
    for name in stages:
        config = folder / name / "checkpoint" / "config.json"
        if config.is_file() and not is_foreign(settings := read_json(config)):
            return accounting(ModelConfig.from_hf(settings))
    return None


def _load_stage(path: Path) -> Stage:
    result = read_json(path / "result.json")
    if not isinstance(result, dict):
        raise UserError(f"{path / 'result.json'} is not a JSON object; delete the folder {path} and run again")
    kind = _read_optional(path / "config.json").get("kind") or path.name.split("-")[0]
    metrics = list(_read_lines(path / "metrics.jsonl")) if (path / "metrics.jsonl").is_file() else []
    return Stage(path.name, str(kind), result, metrics)


def _read_optional(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    # Lines are appended while training runs, so a killed run may leave one half-written: it carries no number to show.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            yield value
