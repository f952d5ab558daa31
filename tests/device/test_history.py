from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minnow.device.history import compare_with_earlier
from minnow.device.profile import decode_entry, model_entry, prefill_entry

FACTS = {"file": "pocket-Q4_0.gguf", "type": "Q4_0", "bytes": 10, "parameters": 5, "engine": "llama.cpp",
         "threads": 1, "runtime": "llama.cpp 1", "runtime_build": "AVX2"}  # fmt: skip


def taken(first_ms: float, token_ms: float, loaded: bool = False, cpu: str = "a", **facts: Any) -> dict[str, Any]:
    speeds = {
        "prefill": [prefill_entry(128, [first_ms] * 3)],
        "decode": [decode_entry(64, [np.full(4, token_ms)] * 3)],
    }
    return {"machine": {"cpu": cpu}, "files": [model_entry(speeds, loaded, **FACTS | facts)]}


def noise(profile: dict[str, Any], file: Path) -> list[str]:
    compare_with_earlier(profile, file)
    (entry,) = profile["files"]
    assert entry["noisy"] == bool(entry["noise"])
    found: list[str] = entry["noise"]
    return found


def test_times_more_than_a_twentieth_from_an_earlier_profile_are_told_with_both(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "profiles.jsonl"
    assert noise(taken(100.0, 10.0), file) == []
    assert noise(taken(104.9, 9.53), file) == []
    (why,) = noise(taken(100.0, 8.0), file)  # 20% from the first, 16% from the second
    assert why.startswith("a token at depth 64 took 8.0 ms, and 10.0 ms on 20") and why.endswith("UTC")
    (why,) = noise(taken(130.0, 9.5), file)
    assert why.startswith("the first token after 128 took 130.0 ms, and 100.0 ms on ")


@pytest.mark.parametrize("other", [{"threads": 2}, {"runtime_build": "AVX512"}, {"bytes": 11}, {"cpu": "b"}])
def test_another_model_runtime_or_machine_is_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    file = tmp_path / "profiles.jsonl"
    noise(taken(100.0, 10.0), file)
    assert noise(taken(200.0, 20.0, **other), file) == []


def test_a_profile_that_was_noisy_in_itself_is_no_reference(tmp_path: Path) -> None:
    file = tmp_path / "profiles.jsonl"
    held = "other processes held the cores at the start"
    assert noise(taken(300.0, 30.0, loaded=True), file) == [held]
    assert noise(taken(100.0, 10.0), file) == []
    assert noise(taken(300.0, 30.0, loaded=True), file)[0] == held


def test_an_odd_profile_is_forgotten_after_ten_more(tmp_path: Path) -> None:
    file = tmp_path / "profiles.jsonl"
    noise(taken(100.0, 10.0), file)
    flagged = [bool(noise(taken(120.0, 12.0), file)) for _ in range(11)]
    assert flagged == [True] * 10 + [False]


def test_other_lengths_and_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "profiles.jsonl"
    noise(taken(100.0, 10.0), file)
    with file.open("a") as opened:
        opened.write('{"key": "cut sho')
    other = taken(200.0, 10.0)
    other["files"][0]["prefill"] = [prefill_entry(256, [200.0] * 3)]
    assert noise(other, file) == []


def test_a_history_that_cannot_be_written_costs_a_line_and_not_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert noise(taken(100.0, 10.0), tmp_path / "file" / "profiles.jsonl") == []
    assert "earlier profiles are neither compared with nor remembered" in capsys.readouterr().err
