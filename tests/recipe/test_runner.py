from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minnow.errors import UserError
from minnow.recipe import folder as folders
from minnow.recipe import runner
from minnow.recipe.registry import StageKind
from minnow.recipe.schema import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("kinds")
STAGES = {"count": {"steps": 4}, "other": {"kind": "count", "steps": 2}, "double": {}, "report": {}}


@pytest.fixture
def recipe(recipe_file: Callable[..., Path]) -> Callable[..., Recipe]:
    def load(*overrides: str, stages: dict[str, Any] = STAGES, **keys: Any) -> Recipe:
        return load_recipe(recipe_file(stages, **keys), overrides)

    return load


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in summary["stages"]}


def all_of(status: str, names: Any = STAGES) -> dict[str, str]:
    return dict.fromkeys(names, status)


def result(stage: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/toy/{stage}/result.json").read_text())


def test_a_run_leaves_the_documented_files(recipe: Callable[..., Recipe]) -> None:
    summary = runner.run(recipe(seed=3))
    folder = Path("runs/toy")
    assert sorted(path.name for path in (folder / "count").iterdir()) == [
        "config.json",
        "count.txt",
        "done.json",
        "inputs.json",
        "metrics.jsonl",
        "result.json",
    ]
    config = json.loads((folder / "count/config.json").read_text())
    assert config == {"kind": "count", "steps": 4, "seconds_per_step": 0.0, "rate": 0.001}
    assert len((folder / "count/metrics.jsonl").read_text().splitlines()) == 4
    assert result("double") == {"count": 8, "seed": folders.stage_seed(3, "double")}
    record = json.loads((folder / "recipe.json").read_text())
    assert record["recipe"]["seed"] == 3 and record["recipe"]["stages"]["double"]["source"] == "count"
    assert record["versions"]["python"] and record["machine"]["cores"] >= 1
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["status"] == "finished" and summary["report"] == "runs/toy/report.html"
    assert all(row["seconds"] >= 0 and row["peak_rss_bytes"] > 2**20 for row in summary["stages"])


def test_finished_stages_are_kept_and_the_user_is_told(
    recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    runner.run(recipe())
    capsys.readouterr()
    assert statuses(runner.run(recipe())) == all_of("kept")
    assert re.search(r"^count: done \d+ s ago, kept$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("stages.count.rate=0.5", {"count", "double", "report"}),
        ("stages.other.steps=3", {"other", "report"}),
        ("stages.double.factor=3", {"double", "report"}),
        ("stages.report.title=new", {"report"}),
        ("seed=9", {"count", "other", "double", "report"}),
        ("model.rope_theta=5e5", {"count", "other", "double", "report"}),
        ("threads=null", set()),
    ],
)
def test_an_edit_runs_its_stage_and_dependants_again_and_no_other(
    recipe: Callable[..., Recipe], override: str, again: set[str]
) -> None:
    runner.run(recipe())
    edited = recipe(override)
    expected = {name: "ran" if name in again else "kept" for name in STAGES}
    planned = {row["stage"]: row["action"] for row in runner.survey(edited)}
    assert {name for name, action in planned.items() if action != "keep"} == again
    assert statuses(runner.run(edited)) == expected


def test_the_reason_names_what_changed(recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    runner.run(recipe())
    runner.run(recipe("stages.double.factor=3"))
    assert "double: settings.factor changed, runs again" in capsys.readouterr().err
    assert result("double")["count"] == 12


def test_a_part_of_the_recipe_that_a_kind_does_not_use_leaves_it_alone(recipe: Callable[..., Recipe]) -> None:
    stages = {"count": {}, "double": {}}
    first = recipe(stages=stages)
    finished = {"count": {"hash": "h", "outputs": {"digest": "d"}}}

    def hashed(recipe: Recipe, stage: str) -> str:
        spec = recipe.stages[stage]
        needed = {name: finished[name] for name in spec.needs}
        return folders.stage_inputs(recipe, spec, runner.stage_kinds()[spec.kind], needed)["hash"]

    wider = recipe("model.rope_theta=5e5", stages=stages)
    assert hashed(first, "double") == hashed(wider, "double")
    assert hashed(first, "count") != hashed(wider, "count")


def test_the_content_of_the_data_counts_and_not_its_place(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    stages = {"count": {}, "double": {}}
    (tmp_path / "a.txt").write_text("one")
    runner.run(recipe("data.kind=text", "data.path=a.txt", stages=stages))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    moved = runner.run(recipe("data.kind=text", "data.path=b.txt", stages=stages))
    assert statuses(moved) == all_of("kept", stages)
    (tmp_path / "b.txt").write_text("two")
    changed = runner.run(recipe("data.kind=text", "data.path=b.txt", stages=stages))
    assert statuses(changed) == all_of("ran", stages)


def test_a_raised_code_version_runs_the_kind_again(
    recipe: Callable[..., Recipe], kinds: dict[str, StageKind], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.run(recipe())
    old = kinds["double"]
    newer = StageKind(old.settings_class, old.run, old.needs, old.version + 1, old.uses)
    monkeypatch.setitem(kinds, "double", newer)
    assert statuses(runner.run(recipe())) == {**all_of("kept"), "double": "ran", "report": "ran"}


def test_an_output_that_was_changed_or_removed_is_made_again(recipe: Callable[..., Recipe]) -> None:
    runner.run(recipe())
    output = Path("runs/toy/double/count.txt")
    for tamper in (output.unlink, lambda: output.write_text("9")):
        tamper()
        # What depends on it is kept: the same bytes came out again.
        assert statuses(runner.run(recipe())) == {**all_of("kept"), "double": "ran"}
        assert output.read_text() == "8"
    os.utime(output, (1, 1))
    assert statuses(runner.run(recipe())) == all_of("kept")


def test_from_runs_that_stage_and_all_later_ones(recipe: Callable[..., Recipe]) -> None:
    runner.run(recipe())
    planned = {row["stage"]: row["action"] for row in runner.survey(recipe(), restart_from="other")}
    assert planned == {"count": "keep", "other": "run", "double": "run", "report": "run"}
    again = statuses(runner.run(recipe(), restart_from="other"))
    assert again == {**all_of("ran"), "count": "kept"}


def test_only_runs_one_stage_over_finished_inputs(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="--only double: runs after count, which must be finished first"):
        runner.run(recipe(), only="double")
    summary = runner.run(recipe(), only="count")
    assert statuses(summary) == {**all_of("left out"), "count": "ran"}
    runner.run(recipe())
    edited = recipe("stages.double.factor=5", "stages.other.steps=7")
    assert statuses(runner.run(edited, only="double")) == {
        "count": "kept",
        "other": "left out",
        "double": "ran",
        "report": "left out",
    }
    assert statuses(runner.run(edited, only="double", restart_from="double"))["double"] == "ran"


def test_unknown_stage_names_get_the_nearest(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"--from cuont: the recipe has no such stage; did you mean count\?"):
        runner.run(recipe(), restart_from="cuont")


def test_a_failing_stage_leaves_earlier_ones_whole_and_starts_again(
    recipe: Callable[..., Recipe], kinds: dict[str, StageKind]
) -> None:
    stages = {"count": {}, "fail": {}}
    with pytest.raises(RuntimeError, match="no"):
        runner.run(recipe(stages=stages))
    summary = json.loads(Path("runs/toy/summary.json").read_text())
    assert summary["status"] == "failed" and statuses(summary) == {"count": "ran", "fail": "failed"}
    seen: list[list[str]] = []
    old = kinds["fail"]

    def mended(context: Any) -> dict[str, Any]:
        seen.append(sorted(path.name for path in context.folder.iterdir()))
        return {}

    kinds["fail"] = StageKind(old.settings_class, mended, old.needs, old.version, old.uses)
    assert statuses(runner.run(recipe(stages=stages))) == {"count": "kept", "fail": "ran"}
    assert seen == [["config.json", "inputs.json"]]


def test_a_stage_with_state_continues_and_its_metrics_are_rewound(
    recipe: Callable[..., Recipe], kinds: dict[str, StageKind], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"count": {"steps": 6}}
    old = kinds["count"]

    def dies_after_step_3(context: Any) -> dict[str, Any]:
        record = context.metrics.record

        def watched(**values: Any) -> None:
            record(**values)
            if values["step"] == 3:
                raise RuntimeError("killed")

        context.metrics.record = watched
        return old.run(context)

    monkeypatch.setitem(kinds, "count", StageKind(old.settings_class, dies_after_step_3, old.needs))
    with pytest.raises(RuntimeError):
        runner.run(recipe(stages=stages))
    monkeypatch.setitem(kinds, "count", old)
    summary = runner.run(recipe(stages=stages))
    assert summary["stages"][0]["resumed"] is True
    assert result("count") == {"count": 6, "resumed_at": 2}
    lines = [json.loads(line) for line in Path("runs/toy/count/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not Path("runs/toy/count/state").exists()


def test_an_edit_after_a_stop_does_not_continue_from_the_old_state(
    recipe: Callable[..., Recipe], kinds: dict[str, StageKind]
) -> None:
    stages = {"count": {"steps": 6}, "fail": {}}
    with pytest.raises(RuntimeError):
        runner.run(recipe(stages=stages))
    state = Path("runs/toy/count/state")
    state.mkdir()
    (state / "step").write_text("4")
    Path("runs/toy/count/done.json").unlink()
    del stages["fail"]
    runner.run(recipe("stages.count.rate=0.7", stages=stages))
    assert result("count")["resumed_at"] == 0


def test_a_folder_with_files_of_the_user_is_left_alone(recipe: Callable[..., Recipe]) -> None:
    theirs = Path("runs/toy/count/thesis.tex")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years of work")
    with pytest.raises(UserError, match="holds files that no stage wrote"):
        runner.run(recipe())
    assert theirs.read_text() == "years of work"


def test_leftovers_of_a_killed_run_are_swept(recipe: Callable[..., Recipe]) -> None:
    runner.run(recipe())
    leftovers = [Path("runs/toy/.count.0123abcd.old/checkpoint"), Path("runs/toy/double/.model.0123abcd.tmp")]
    leftovers.append(Path("runs/toy/double/.checkpoint.0123abcd.old"))
    for leftover in leftovers:
        leftover.mkdir(parents=True)
    half = Path("runs/toy/.summary.json.0123abcd.tmp")
    half.write_text("{")
    kept = Path("runs/toy/.counted.0123abcd.old")
    kept.mkdir()
    assert statuses(runner.run(recipe())) == all_of("kept")
    assert not any(leftover.exists() for leftover in [*leftovers, half]) and kept.exists()


@pytest.mark.parametrize("full_at", range(1, 14))
def test_a_disk_that_fills_at_any_sync_loses_nothing_that_was_finished(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    stages = {"count": {"steps": 4}, "double": {}}
    runner.run(recipe(stages={"count": {"steps": 4}}))
    before = {path: path.read_bytes() for path in Path("runs/toy/count").iterdir() if path.is_file()}
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        runner.run(recipe(stages=stages))
    assert {path: path.read_bytes() for path in Path("runs/toy/count").iterdir() if path.is_file()} == before
    monkeypatch.setattr(os, "fsync", real)
    assert statuses(runner.run(recipe(stages=stages)))["count"] == "kept"
    assert result("double")["count"] == 8


def test_seeds_differ_between_stages_and_recipes_and_fit_31_bits() -> None:
    seeds = {folders.stage_seed(seed, name) for seed in range(20) for name in ("pretrain", "sft", "dpo")}
    assert len(seeds) == 60 and all(0 <= seed < 2**31 for seed in seeds)
