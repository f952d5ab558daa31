"""A scaling sweep: its branches are runs of their own, a stopped one goes on to the same points, `fit` reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from minnow.cli import main
from minnow.errors import UserError
from minnow.model.accounting import flops_per_token, parameter_parts
from minnow.recipe import runner
from minnow.recipe.schema import ModelSettings, Recipe, load_recipe
from minnow.recipe.speed import takes_muon
from minnow.recipe.stages.ladder import LadderSettings, branches, peak_rate, scaled
from minnow.recipe.sweep import collect, sweep_recipe
from minnow.scaling.points import Columns, read_points
from minnow.train.loop import Trainer

Capture = pytest.CaptureFixture[str]
MODEL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "layers": ["conv", "attn"],
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "max_positions": 2048,
}
DOCUMENT: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "threads": 1,
    "data": {"kind": "pocket", "entities": 200},
    "model": MODEL,
    "stages": {
        "tokenizer": {"documents": 100},
        "pretrain": {
            "documents": 100,
            "row_length": 64,
            "rows": 4,
            "held_out_rows": 8,
            "training": {
                "steps": 1,
                "warmup": 0.1,
                "log_every": 1,
                "save_seconds": 0.0,
                "optimizer": {"learning_rate": 1e-2},
            },
        },
    },
}
FLAGS = ("--widths", "64", "32", "--ratios", "0.1", "0.2", "--decay", "0.3")


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


def write_recipe(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT, sort_keys=False))
    return path


def sweep(file: Path, *flags: str) -> int:
    return main(["scaling", "sweep", str(file), *FLAGS, *flags])


def test_a_sweep_writes_the_points_that_fit_reads(recipe_file: Path, capsys: Capture) -> None:
    assert sweep(recipe_file, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    points = document["points"]
    assert [(one["width"], one["ratio"]) for one in points] == [(32, 0.1), (32, 0.2), (64, 0.1), (64, 0.2)]
    for one in points:
        assert one["tokens"] / one["params"] == pytest.approx(one["ratio"], rel=0.1)
        assert one["learning_rate"] == pytest.approx(1e-2 * (64 / one["width"]) ** 0.5)
        assert one["params"] - one["params_no_embed"] == 512 * one["width"]
        assert one["bits_per_byte"] > 0 and 0 < one["unique"] <= one["tokens"]
    assert points[1]["loss"] < points[0]["loss"] < 6.3  # of a uniform guess: 6.24

    folder = Path("runs/small-sweep")
    assert document["file"] == str(folder / "points.csv")
    for source in (folder, folder / "points.csv"):
        read = read_points([source], Columns(unique="unique"))
        assert read.loss.tolist() == [one["loss"] for one in points]
    assert not list(folder.glob("*/state"))

    assert sweep(recipe_file, "--json") == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["points"] == points and again.err.count("kept") == 3


def test_a_branch_is_the_run_that_it_stands_for(recipe_file: Path) -> None:
    """Without warm-up, which sweeps share, the last of two branches equals a sweep of that run alone, bit for bit."""
    recipe = load_recipe(recipe_file, ("stages.pretrain.training.warmup=0",))
    found = []
    for name, ratios in (("both", (0.1, 0.2)), ("alone", (0.2,))):
        made = sweep_recipe(replace(recipe, run_folder=Path(name)), (32,), ratios, 0.3, 0.5)
        runner.run(made)
        found.append(collect(made)[-1])
    assert found[0] == found[1]


def test_most_flops_leaves_the_dear_runs_out(recipe_file: Path, capsys: Capture) -> None:
    recipe = load_recipe(recipe_file)

    def made(most: float) -> dict[int, tuple[float, ...]]:
        stages = sweep_recipe(recipe, (32, 64), (0.1, 0.2), 0.3, 0.5, most).stages.values()
        return {spec.settings.width: spec.settings.ratios for spec in stages if spec.kind == "ladder"}

    shape = scaled(recipe.shape, 64).config(512)
    size = sum(parameter_parts(shape).values())
    dearest = 0.2 * size * flops_per_token(shape, 32)
    assert made(dearest) == {32: (0.1, 0.2), 64: (0.1, 0.2)}
    assert made(0.99 * dearest) == {32: (0.1, 0.2), 64: (0.1,)}
    assert sweep(recipe_file, "--most-flops", f"{0.4 * dearest}") == 2
    assert "the shortest run of width 64 takes" in capsys.readouterr().err


def test_a_decay_over_the_whole_run_needs_no_trunk(recipe_file: Path) -> None:
    made = sweep_recipe(load_recipe(recipe_file), (32,), (0.1,), 1.0, 0.5)
    runner.run(made)
    assert not (made.run_folder / "width-32/trunk.jsonl").exists()
    assert collect(made)[0]["steps"] >= 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished sweep of one width and two runs."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = load_recipe(write_recipe(folder), (), folder / "run")
    made = sweep_recipe(recipe, (32,), (0.1, 0.2), 0.3, 0.5)
    runner.run(made)
    return made


@pytest.mark.parametrize("place", ["trunk", "first branch", "trunk again", "second branch"])
def test_a_stopped_sweep_goes_on_to_the_same_points(
    whole: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = (point["steps"] for point in collect(whole))
    branch = round(0.3 * first)
    # Steps are taken once each: the trunk to the first branch, that branch, the trunk to the second one, that one.
    stop_at = {
        "trunk": 3,
        "first branch": first - 1,
        "trunk again": first + 3,
        "second branch": second + branch - 1,
    }[place]
    made = replace(whole, run_folder=tmp_path / "run")
    taken, step = 0, Trainer._step

    def counted(self: Trainer) -> None:
        nonlocal taken
        taken += 1
        if taken == stop_at:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "_step", counted)
    with pytest.raises(runner.Stopped):
        runner.run(made)
    state = made.run_folder / "width-32/state"
    assert (state / f"branch-{first}.pt").exists() == (place == "first branch")
    assert (state / f"branch-{second}.pt").exists() == (place == "second branch")
    runner.run(made)
    assert taken == second + branch + 1  # the interrupted step twice, no other
    assert collect(made) == collect(whole)
    for name in ("trunk.jsonl", f"branch-{first}.jsonl", f"branch-{second}.jsonl"):
        steps = [
            [json.loads(line)["step"] for line in (recipe.run_folder / "width-32" / name).read_text().splitlines()]
            for recipe in (made, whole)
        ]
        assert steps[0] == steps[1]


def test_a_dry_run_writes_nothing(recipe_file: Path, capsys: Capture) -> None:
    assert sweep(recipe_file, "--dry-run", "--json") == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    assert [one["width"] for one in sizes] == [32, 64]
    assert all(one["seconds"] > 0 and len(one["runs"]) == 2 for one in sizes)
    first = sizes[0]["runs"]
    assert sizes[0]["steps"] < first[0]["steps"] + first[1]["steps"]
    assert sweep(recipe_file, "--dry-run") == 0
    assert "4 points in about" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_the_model_is_scaled_in_proportion() -> None:
    model = ModelSettings(256, 704, ("conv", "attn"), 8, 2, 32, 4096)
    shapes = {width: scaled(model, width) for width in (32, 96, 192, 256)}
    assert shapes[256] == model
    assert [(one.heads, one.kv_heads, one.intermediate_size) for one in shapes.values()] == [
        (1, 1, 96), (3, 1, 256), (6, 2, 512), (8, 2, 704),
    ]  # fmt: skip
    assert peak_rate(model, LadderSettings(64, (5.0,), 1.0)) == pytest.approx(4 * 3e-3)


def test_branches_share_a_trunk() -> None:
    found = branches((5, 20), 100_000, 1000.0, 0.2)
    assert [(one.start, one.steps) for one in found] == [(400, 500), (1600, 2000)]
    with pytest.raises(UserError, match=r"5 tokens for each of 1,000 parameters are 5 steps of 1,000 tokens, fewer"):
        branches((5,), 1000, 1000.0, 0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--widths", "40"), "a width of 40 is no multiple of 32"),
        (("--ratios", "-5"), "give positive, rising numbers of tokens per parameter"),
        (("--decay", "0"), "decay is 0; a branch needs a share above 0"),
        (("--ratios", "0.001"), "fewer than 10; raise the ratio or lower stages.pretrain.rows"),
        (("--set", "stages.pretrain.rows=0"), "rows 0"),
    ],
)
def test_sweeps_that_are_refused(recipe_file: Path, capsys: Capture, flags: tuple[str, ...], said: str) -> None:
    assert sweep(recipe_file, *flags) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("widths", "muon"), [((32, 64), True), ((32, 64, 256), False)])
def test_all_widths_share_an_optimiser(recipe_file: Path, widths: tuple[int, ...], muon: bool) -> None:
    """Muon on its own merits would update the small ones and not the large one."""
    recipe = load_recipe(recipe_file, ("stages.pretrain.rows=32",))
    found = recipe.stages["pretrain"].settings
    shapes = [scaled(recipe.shape, width) for width in widths]
    costs = [takes_muon(found.training.optimizer, s.config(512), found.rows * found.row_length) for s in shapes]
    assert costs == [width < 256 for width in widths]
    rungs = [spec.settings for spec in sweep_recipe(recipe, widths, (5.0,), 0.2, 0.5).stages.values()][1:]
    assert [rung.text.training.optimizer.muon for rung in rungs] == [muon] * len(widths)


def test_a_recipe_without_pretraining_has_nothing_to_sweep(recipe_file: Path) -> None:
    stages = {"tokenizer": DOCUMENT["stages"]["tokenizer"]}
    recipe_file.write_text(yaml.safe_dump(DOCUMENT | {"stages": stages}))
    with pytest.raises(UserError, match="the recipe has no pretrain stage"):
        sweep_recipe(load_recipe(recipe_file), (32,), (5.0,), 0.2, 0.5)
