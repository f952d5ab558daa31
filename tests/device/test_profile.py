from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minnow.device.card import device_card
from minnow.device.gguf_export import GgufFile
from minnow.device.llama_cpp import LlamaCpp
from minnow.device.profile import profile, profile_file
from minnow.errors import UserError


@pytest.fixture(scope="module")
def measured(exported: dict[str, GgufFile], checkpoint: Path) -> dict[str, Any]:
    models = [exported["Q4_0"].file, checkpoint]
    return profile(models, threads=1, prompts=(16, 64, 5000), decode_depths=(16, 1020), repeats=3)


def test_shape_that_the_report_reads(measured: dict[str, Any], exported: dict[str, GgufFile]) -> None:
    assert json.loads(json.dumps(measured)) == measured
    assert {"cpu", "cores", "memory_bytes", "system"} <= set(measured["machine"])
    quantised, folder = measured["files"]
    assert (quantised["file"], quantised["type"]) == ("tiny-Q4_0.gguf", "Q4_0")
    assert quantised["bytes"] == exported["Q4_0"].bytes
    assert (folder["file"], folder["type"]) == ("tiny-F16.gguf", "F16")
    for entry in measured["files"]:
        # Lengths beyond the context of 1024 are left out, not measured at another length.
        assert [each["tokens"] for each in entry["prefill"]] == [16, 64]
        assert [each["depth"] for each in entry["decode"]] == [16]
        assert entry["peak_rss_bytes"] > entry["peak_rss_before_bytes"] > 1e6
        assert entry["energy_joules"] is None and isinstance(entry["noisy"], bool)
        for each in entry["prefill"]:
            assert each["tokens_per_second"] == pytest.approx(1e3 * each["tokens"] / each["p50_ms"])
            assert each["ttft_ms"] >= each["p50_ms"] and each["p95_ms"] >= each["p50_ms"] > 0
        assert entry["decode"][0]["p95_ms"] >= entry["decode"][0]["p50_ms"] > 0


def test_figures_from_known_times(exported: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up does not count; medians over repeats, spread over repeats, percentiles over tokens."""
    prompt_ms, token_ms = iter([99.0, 2.0, 4.0, 3.0]), iter([99.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(
        LlamaCpp, "time_prefill", lambda self, ids: {"prefill_ms": (ms := next(prompt_ms)), "ttft_ms": ms + 0.5}
    )
    monkeypatch.setattr(LlamaCpp, "time_decode", lambda self, ids, n: [next(token_ms)] * n)
    entry = profile_file(exported["F16"].file, 1, (30,), (10,), repeats=3)
    assert entry["prefill"] == [
        {
            "tokens": 30,
            "tokens_per_second": pytest.approx(10_000),
            "ttft_ms": 3.5,
            "p50_ms": 3.0,
            "p95_ms": pytest.approx(3.9),
            "spread": pytest.approx((2 / 3) ** 0.5 / 3),
        }
    ]
    (decode,) = entry["decode"]
    assert (decode["depth"], decode["tokens_per_second"], decode["p50_ms"], decode["p95_ms"]) == (10, 500.0, 2.0, 4.0)
    assert decode["spread"] == pytest.approx((14 / 9) ** 0.5 / (7 / 3)) and entry["noisy"]


def test_load_of_other_processes_is_flagged(exported: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (64.0, 64.0, 64.0))
    entry = profile_file(exported["F16"].file, 1, (16,), (16,), repeats=2)
    assert entry["noisy"] and entry["load_average"] == {"before": 64.0, "after": 64.0}


def test_refusals(exported: dict[str, GgufFile], tmp_path: Path) -> None:
    file = exported["F16"].file
    with pytest.raises(UserError, match="1 repeats give no spread"):
        profile_file(file, 1, repeats=1)
    with pytest.raises(UserError, match="4096 threads asked for"):
        profile_file(file, 4096)
    with pytest.raises(UserError, match="fits the context of 1024"):
        profile_file(file, 1, prompts=(2000,))
    with pytest.raises(UserError, match="does not exist"):
        profile(tmp_path / "none.gguf", 1)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:60_000])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        profile_file(cut, 1)


def test_card(measured: dict[str, Any]) -> None:
    files = [dict(measured["files"][0], noisy=True), dict(measured["files"][1], noisy=False)]
    files[1]["prefill"] = files[1]["prefill"][:1]
    card = device_card(dict(measured, files=files))
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    assert rows[0][-3:] == ["TTFT at 16", "TTFT at 64", "tok/s at depth 16"]
    assert len({len(row) for row in rows}) == 1 and len(rows) == 4
    assert rows[2][0] == "tiny-Q4_0.gguf (noisy)" and rows[3][0] == "tiny-F16.gguf"
    assert rows[2][7] == f"{files[0]['prefill'][1]['ttft_ms']:.1f} ms" and rows[3][7] == "–"
    assert "run again when idle" in card
