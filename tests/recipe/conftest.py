from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minnow.recipe import registry, runner, schema

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers": ["conv", "attn"],
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
}


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, registry.StageKind]:
    """The toy stage kinds, in place of Minnow's own."""
    monkeypatch.setattr(registry, "STAGES", {})
    spec = importlib.util.spec_from_file_location("toy_stages", Path(__file__).with_name("toy_stages.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_stages", module)
    spec.loader.exec_module(module)
    toys = registry.STAGES
    monkeypatch.setattr(runner, "stage_kinds", lambda: toys)
    monkeypatch.setattr(schema, "stage_kinds", lambda: toys)
    return toys


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a recipe with the given stages and other keys, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write(stages: dict[str, Any], **keys: Any) -> Path:
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump({"name": "toy", "model": MODEL, **keys, "stages": stages}, sort_keys=False))
        return path

    return write
