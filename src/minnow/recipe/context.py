"""What a stage is given when it runs, and its append-only metrics."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from minnow.errors import UserError
from minnow.files import write_text
from minnow.train.ranks import Ranks

if TYPE_CHECKING:
    from minnow.recipe.schema import Recipe

S = TypeVar("S")


class Metrics:
    """A stage's ``metrics.jsonl``: one JSON object a line, appended, rewound when training resumes from a checkpoint.

    Args:
        path: None where nothing is kept, as on every rank but the first.
        log: is given every line as well.
    """

    def __init__(self, path: Path | None, log: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.path, self._log = path, log
        if path is None:
            return
        # A kill in the middle of a write leaves half a line; what follows must not be glued to it.
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._keep(lambda record: True)

    def record(self, **values: Any) -> None:
        """Append one line. Numpy and torch scalars become plain numbers; numbers that are not finite become null."""
        if self.path is None:
            return
        plain = {name: _plain_number(value) for name, value in values.items()}
        line = json.dumps(plain, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._log is not None:
            self._log(plain)

    def rewind(self, step: int) -> None:
        """Drop every line whose ``step`` is beyond ``step``: they will be recorded again."""
        if self.path is not None and self.path.exists():
            self._keep(lambda record: record.get("step", 0) <= step)

    def read(self) -> Iterator[dict[str, Any]]:
        """Every complete line, oldest first."""
        if self.path is not None and self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        assert self.path is not None
        kept = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.read() if wanted(record)]
        write_text(self.path, "".join(kept))

    def sync(self) -> None:
        """Force what was recorded to disk."""
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def _plain_number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain_number(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_number(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class StageContext(Generic[S]):
    """One stage as it runs.

    Attributes:
        folder: the stage's own folder, ``runs/<name>/<stage>``; everything in it except :attr:`state` is an output.
        settings: the stage kind's dataclass, resolved.
        recipe: the whole resolved recipe.
        inputs: folders of the earlier stages this stage names, by stage name.
        seed: a seed of this stage's own, made from the recipe's seed and the stage's name; ``recipe.seed`` is the
            one that all stages share.
        ranks: the processes that run this stage together; each is given the same but for the metrics.
    """

    folder: Path
    settings: S
    recipe: Recipe
    inputs: dict[str, Path]
    seed: int
    metrics: Metrics
    ranks: Ranks

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.folder.name

    @property
    def run_folder(self) -> Path:
        """The folder of the whole run."""
        return self.folder.parent

    @property
    def state(self) -> Path:
        """Folder for what an interrupted stage needs to continue.

        It survives Ctrl-C and kill -9 and is removed once the stage has finished. A stage that left it empty starts
        again from nothing.
        """
        path = self.folder / "state"
        path.mkdir(exist_ok=True)
        return path

    def record(self, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``."""
        self.metrics.record(**values)

    def output(self, stage: str, file: str = "") -> Path:
        """Path of ``file`` (a file or folder) among the outputs of the earlier stage ``stage``.

        Raises:
            UserError: the stage left no such file.
        """
        path = self.inputs[stage] / file
        if not path.exists():
            raise UserError(f"stage {stage} left no {file} in {self.inputs[stage]}; run it again with --from {stage}")
        return path
