"""Trackers: asked for by name, one sentence where missing, the numbers of metrics.jsonl where there is one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from minnow.errors import UserError
from minnow.recipe.context import Metrics
from minnow.recipe.tracking import check_tracker, flat, tracked


@pytest.fixture
def stage_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "books" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "inputs.json").write_text("{}")
    return folder


def test_numbers_of_a_record_by_name() -> None:
    record = {"loss": 2.5, "count": 3, "sources": {"web": {"loss": 2.0}}, "note": "x", "bad": None, "list": [1]}
    assert flat(record) == {"loss": 2.5, "count": 3.0, "sources/web/loss": 2.0}


def test_a_tracker_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="track: trackio needs the package trackio; install it with: pip install trackio"
    ):
        check_tracker("trackio")


def test_none_is_imported_unless_asked(stage_folder: Path) -> None:
    with tracked(None, stage_folder, {}) as log:
        assert log is None
    code = (
        "import sys, minnow.recipe.runner, minnow.recipe.stages; "
        "print({'tensorboard', 'trackio', 'wandb'} & {name.split('.')[0] for name in sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_runs_of_the_shared_interface(name: Any, stage_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for both: a stage that goes on has its run's name again, one that starts afresh another."""
    calls: list[tuple[str, Any]] = []

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            calls.append(("log", (step, numbers)))

        def finish(self) -> None:
            calls.append(("finish", None))

    module = types.ModuleType(name)
    module.init = lambda **settings: (calls.append(("init", settings)), Run())[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)

    def once() -> str:
        with tracked(name, stage_folder, {"rows": 8}) as log:
            metrics = Metrics(stage_folder / "metrics.jsonl", log)
            metrics.record(step=3, loss=2.5, bad=float("nan"))
            metrics.record(note="no step")
        return str(calls[0][1]["name"])

    first = once()
    assert [kind for kind, _ in calls] == ["init", "log", "finish"] and calls[1][1] == (3, {"loss": 2.5})
    settings = calls[0][1]
    assert (settings["project"], settings["config"], settings["resume"]) == ("books", {"rows": 8}, "allow")
    assert len((stage_folder / "metrics.jsonl").read_text().splitlines()) == 2
    calls.clear()
    assert once() == first
    calls.clear()
    (stage_folder / "inputs.json").unlink()
    (stage_folder / "inputs.json").write_text(json.dumps({"again": True}))
    assert once() != first


def test_tensorboard_holds_the_numbers_and_forgets_what_a_resumed_stage_makes_again(stage_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (2, 3, 4)):
        with tracked("tensorboard", stage_folder, {}) as log:
            assert log is not None
            for step in steps:
                log({"step": step, "loss": step + len(steps) / 10, "parts": {"web": 1.0}})
    (folder,) = (stage_folder.parent / "tensorboard").iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4]
    assert found.Scalars("parts/web")[-1].value == 1.0
