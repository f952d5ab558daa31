from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minnow.errors import UserError
from minnow.recipe.schema import apply_overrides, load_recipe, load_yaml, parse_recipe

pytestmark = pytest.mark.usefixtures("kinds")
STAGES = {"count": {"steps": 3}, "again": {"kind": "double"}, "report": None}


def test_a_recipe_is_resolved_with_defaults_kinds_and_needs(recipe_file: Callable[..., Path]) -> None:
    recipe = load_recipe(recipe_file(STAGES, seed=7))
    assert (recipe.name, recipe.seed, recipe.run_folder, recipe.data.kind) == ("toy", 7, Path("runs/toy"), "pocket")
    assert recipe.model.layers == ("conv", "attn")
    assert [(s.kind, s.needs) for s in recipe.stages.values()] == [
        ("count", ()),
        ("double", ("count",)),
        ("report", ("count", "again")),
    ]
    assert recipe.stages["count"].settings.steps == 3


def test_the_resolved_form_reads_back_as_the_same_recipe(recipe_file: Callable[..., Path], kinds: Any) -> None:
    recipe = load_recipe(recipe_file(STAGES, threads=2))
    assert parse_recipe(recipe.as_dict(), kinds) == recipe


def test_overrides_are_yaml_typed_and_leave_the_document_alone(recipe_file: Callable[..., Path]) -> None:
    path = recipe_file(STAGES)
    overrides = ["stages.count.rate=3e-4", "stages.report.title=two words", "seed=5", "stages.again.source=count"]
    recipe = load_recipe(path, overrides, run_folder=Path("elsewhere"))
    assert recipe.stages["count"].settings.rate == 3e-4
    assert recipe.stages["report"].settings.title == "two words"
    assert (recipe.seed, recipe.run_folder) == (5, Path("elsewhere"))
    document = {"data": {"kind": "pocket"}}
    assert apply_overrides(document, ["data.kind=text"]) == {"data": {"kind": "text"}}
    assert document == {"data": {"kind": "pocket"}}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("stages.count.stpes=4", "stages.count.stpes: unknown key; did you mean steps?"),
        ("stages.conut.steps=4", "the recipe has no stage 'conut'; did you mean count?"),
        ("dta.kind=text", "dta: unknown key; did you mean data?"),
        ("data.pth=x", "data.pth: unknown key; did you mean path?"),
        ("seed.x=1", "--set seed.x=1: seed is a value and has no keys below it"),
        ("seed", "write it as key=value"),
        ("stages.count.steps=[1", "is not valid YAML"),
        ("stages.count.steps=many", "stages.count.steps: expected a whole number, got 'many'"),
        ("data.kind=text", "data: kind text reads a file"),
        ("data.path=nowhere.jsonl", "data.path: nowhere.jsonl does not exist"),
        ("model.heads=0", "model: heads is 0; it must be at least 1"),
        ("name=../up", "name: '../up' cannot name a folder"),
        ("threads=0", "threads is 0"),
        ("parallel.shard=0", "parallel.shard is 0"),
        ("stages.again.kind=dubble", "there is no stage kind 'dubble'; did you mean double?"),
        ("stages.again.source=conut", "reads stage 'conut', which the recipe does not have; did you mean count?"),
        ("stages.again.source=report", "reads stage 'report', which comes after it; move report before again"),
    ],
)
def test_a_wrong_override_is_one_sentence(recipe_file: Callable[..., Path], override: str, part: str) -> None:
    path = recipe_file(STAGES, seed=1)
    with pytest.raises(UserError) as caught:
        load_recipe(path, [override])
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "holds no recipe"),
        (b"- a\n", "holds no recipe"),
        (b"name: x\nname: y\n", "key 'name' appears twice (line 2)"),
        (b"a: [1\nb: 2\n", "is not valid YAML in line 2"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"name: x\nstages: {count: }\n", "model is missing"),
        (b"name: x\nstages: [count]\n", "stages: expected a mapping"),
        (b"name: x\nstages: {count: }\nmodel: {}\n", "model.hidden_size is missing"),
        (b"name: x\n1: y\n", "1: unknown key"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)


def test_numbers_without_a_point_are_numbers_as_in_yaml_1_2() -> None:
    assert load_yaml("[1e-4, 2.5E3, -1e+6, 3, 1e, 0.5]", "x") == [1e-4, 2500.0, -1e6, 3, "1e", 0.5]
