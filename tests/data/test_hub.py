"""A file of the hub is fetched only where one is named, and what goes wrong is a sentence."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from minnow.data.hub import local_file
from minnow.errors import UserError


def test_a_path_is_itself() -> None:
    assert local_file("data/test.jsonl") == Path("data/test.jsonl")


def test_a_name_of_the_hub_is_its_cached_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def download(repository: str, path: str, repo_type: str) -> str:
        asked.append((repository, path, repo_type))
        return "/cache/test.parquet"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert local_file("hf://datasets/openai/gsm8k/main/test.parquet") == Path("/cache/test.parquet")
    assert asked == [("openai/gsm8k", "main/test.parquet", "dataset")]
    with pytest.raises(UserError, match="names no file"):
        local_file("hf://datasets/openai/gsm8k")


def test_a_file_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: str, **__: str) -> str:
        raise OSError("no such file\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"cannot be fetched \(no such file\)"):
        local_file("hf://datasets/a/b/c")
