"""What a finished run says about itself, for those who are given one of its models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import read_json
from minnow.recipe.mapping import from_mapping
from minnow.recipe.schema import DataSettings
from minnow.tasks import PocketWorld


@lru_cache(maxsize=1)
def pocket_world(seed: int, entities: int) -> PocketWorld:
    """The world of a seed, made once."""
    return PocketWorld(seed, entities)


@dataclass(frozen=True)
class RunRecord:
    """What ``recipe.json`` says about a run."""

    folder: Path
    name: str
    seed: int
    data: DataSettings
    stages: tuple[str, ...]
    checkpoint: str | None = None

    def pocket_run(self) -> RunRecord | None:
        """The run on a pocket world that this one's model comes from: itself, or one before; None where it was text."""
        if self.data.kind == "pocket":
            return self
        before = run_of(Path(self.checkpoint)) if self.checkpoint else None
        return None if before is None or before.folder == self.folder else before.pocket_run()

    def world(self) -> PocketWorld | None:
        """The pocket world that the run's model was trained on; None where it was text."""
        run = self.pocket_run()
        return None if run is None else pocket_world(run.seed, run.data.entities)


def run_of(path: Path) -> RunRecord | None:
    """The run that ``path`` (a run folder or something at most three levels inside it) belongs to, if it does.

    Raises:
        UserError: its ``recipe.json`` cannot be read.
    """
    path = path.resolve()
    for folder in (path, *path.parents[:3]):
        file = folder / "recipe.json"
        if file.is_file():
            try:
                recipe: dict[str, Any] = read_json(file)["recipe"]
                data = from_mapping(DataSettings, recipe["data"], "data")
                stages, base = tuple(recipe["stages"]), recipe.get("checkpoint")
                return RunRecord(folder, recipe["name"], recipe["seed"], data, stages, base)
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{file} was not written by this version of 'minnow run' ({error!r}); run the recipe again"
                ) from error
    return None


def world_of(path: Path) -> PocketWorld:
    """The pocket world of the run that ``path`` belongs to.

    Raises:
        UserError: it belongs to none on a pocket world, or as :func:`run_of`.
    """
    run = run_of(path)
    world = None if run is None else run.world()
    if world is None:
        raise UserError(f"{path} belongs to no run on a pocket world; give a checkpoint of one")
    return world
