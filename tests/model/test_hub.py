"""Checkpoints by name: nothing is fetched unless a hub id is written, and what the hub refuses is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from minnow.errors import UserError
from minnow.model.hub import fetch


def test_a_hub_id_is_fetched_without_code_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("hf://LiquidAI/LFM2-350M") == tmp_path == fetch("hf://LiquidAI/LFM2-350M@v2")
    assert [each[:2] for each in asked] == [("LiquidAI/LFM2-350M", None), ("LiquidAI/LFM2-350M", "v2")]
    assert "*.safetensors" in asked[0][2] and not {"*.bin", "*.py", "*"} & set(asked[0][2])
    assert fetch(str(tmp_path)) == tmp_path and len(asked) == 2


def test_what_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("401 Client Error.\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"the hub does not give a/b \(401 Client Error.\)"):
        fetch("hf://a/b")
    with pytest.raises(UserError, match="there is no checkpoint folder"):
        fetch(str(tmp_path / "gone"))
