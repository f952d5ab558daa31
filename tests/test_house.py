"""The house rules that a machine can check: what may import what, and that the set-up names what is there."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/minnow"

# docs/architecture.md: a package may import from those in lower layers, and these few in its own.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "files", "machine", "native", "progress", "workers"}),
    frozenset({"data", "model", "loops"}),
    frozenset({"train", "rollout", "tasks"}),
    frozenset({"posttrain", "evaluate", "scaling", "device", "agent"}),
    frozenset({"recipe", "serve"}),
    frozenset({"cli"}),
)
SAME_LAYER = {
    ("files", "errors"),
    ("native", "errors"),
    ("native", "files"),  # a compiled library appears whole or not at all
    ("model", "data"),  # a checkpoint folder holds its tokenizer
    ("serve", "recipe"),  # a policy is read as strictly as a recipe
    ("posttrain", "evaluate"),  # checkpoints are chosen by task score and loop rate
}
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
FILES = sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            if node.module == "minnow":
                yield from (f"minnow.{name.name}" for name in node.names)
            elif node.module:
                yield node.module


def wrong_imports(package: str, modules: list[str]) -> list[str]:
    """The packages of Minnow among ``modules`` that ``package`` may not import."""
    wrong = []
    for module in modules:
        parts = module.split(".")
        if parts[0] != "minnow" or len(parts) == 1 or parts[1] == package:
            continue
        allowed = LEVEL[parts[1]] < LEVEL[package] or (package, parts[1]) in SAME_LAYER
        if not allowed:
            wrong.append(parts[1])
    return wrong


def test_every_package_has_a_layer() -> None:
    assert {package_of(path) for path in FILES} - {"__init__", "__main__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    package = package_of(path)
    if package not in ("__init__", "__main__"):
        assert wrong_imports(package, list(imported(path))) == []


def test_the_import_check_sees_a_wrong_import() -> None:
    assert wrong_imports("data", ["minnow.train.loop", "minnow.errors", "torch"]) == ["train"]
    assert wrong_imports("rollout", ["minnow.tasks"]) == ["tasks"]
    assert wrong_imports("cli", ["minnow.recipe.runner", "minnow.cli.main"]) == []


def test_loops_needs_numpy_and_the_standard_library_only() -> None:
    import sys

    folder = SOURCE / "loops"
    integrations = folder / "integrations"
    for path in folder.rglob("*.py"):
        names = set(imported(path))
        allowed = {"numpy", "minnow"}
        if path == integrations / "transformers.py":
            allowed |= {"torch", "transformers"}
        assert {name.split(".")[0] for name in names} - sys.stdlib_module_names <= allowed, path
        # Who imports ``minnow.loops`` gets none of the integrations.
        assert path.is_relative_to(integrations) or not any("integrations" in name for name in names), path


def test_the_pins_of_the_cpu_setup_name_what_the_package_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(
            item
            for name, extra in project["optional-dependencies"].items()
            if name not in ("gpu", "mlx", "executorch")
            for item in extra
        ),
    ]
    pins = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    names = {requirement.partition(">=")[0] for requirement in needed}
    assert names == {pin.partition("==")[0] for pin in pins if not pin.startswith("#")}
