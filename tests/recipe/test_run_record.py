"""A model of a run that began with another run's checkpoint knows the world it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minnow.recipe.run_record import run_of


def write(folder: Path, data: dict[str, Any], checkpoint: Path | None) -> Path:
    (folder / "sft/checkpoint").mkdir(parents=True)
    recipe = {"name": "x", "seed": 5, "data": data, "checkpoint": checkpoint and str(checkpoint), "stages": {"sft": {}}}
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    return folder / "sft/checkpoint"


def test_the_world_of_a_run_is_that_of_the_run_it_began_with(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"kind": "pocket", "entities": 300}, None)
    second = write(tmp_path / "second", {"kind": "prompts", "prompts": ["enumeration"]}, first)
    third = write(tmp_path / "third", {"kind": "prompts", "prompts": ["enumeration"]}, second)
    record = run_of(third)
    assert record is not None and record.folder == tmp_path / "third"
    world, own = record.world(), run_of(first)
    assert own is not None and world is own.world() is not None, "made once"
    other = run_of(write(tmp_path / "other", {"kind": "prompts", "prompts": ["enumeration"]}, tmp_path / "nowhere"))
    assert other is not None and other.world() is None and run_of(tmp_path) is None
