from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minnow.device import profile as module
from minnow.device.bench import Bench, Timing, _buffers
from minnow.device.card import card_rows, device_card
from minnow.device.gguf_export import GgufFile
from minnow.device.profile import profile
from minnow.errors import UserError
from minnow.recipe.report.device_card import device_page


@pytest.fixture(scope="module")
def measured(exported: dict[str, GgufFile], checkpoint: Path) -> dict[str, Any]:
    models = [exported["Q4_0"].file, checkpoint]
    return profile(models, 1, prompts=(16, 64, 5000), decode_depths=(16, 1020), repeats=2, answer=8)


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
        assert isinstance(entry["noisy"], bool) and entry["noisy"] == bool(entry["noise"])
        for each in entry["prefill"]:
            assert each["tokens_per_second"] == pytest.approx(1e3 * each["tokens"] / each["p50_ms"])
            assert each["p95_ms"] >= each["p50_ms"] == each["ttft_ms"] > 0
        assert entry["decode"][0]["p95_ms"] >= entry["decode"][0]["p50_ms"] > 0
        assert set(entry["pipette"]) == {
            "prefill_throughput_16",
            "prefill_throughput_64",
            "decode_throughput_16_8",
            "end_to_end_latency_16_8",
            "max_memory_usage_16",
            "max_memory_usage_64",
        }


def test_memory_is_split_by_llama_cpps_own_buffers(measured: dict[str, Any], exported: dict[str, GgufFile]) -> None:
    for entry in measured["files"]:
        for memory in entry["memory"]:
            assert memory["peak"] == memory["before"] + sum(
                memory[part] for part in ("weights", "repacked", "state", "compute", "other")
            )
    (quantised, _), (plain, _) = (entry["memory"] for entry in measured["files"])
    assert quantised["repacked"] > 0 == plain["repacked"] and 0 < quantised["weights"] < exported["Q4_0"].bytes


def test_what_the_log_says_of_buffers() -> None:
    log = """load_tensors:   CPU_Mapped model buffer size =   100.50 MiB
load_tensors:   CPU_REPACK model buffer size =    60.00 MiB
llama_context:        CPU  output buffer size =     0.25 MiB
llama_kv_cache:        CPU KV buffer size =    12.00 MiB
llama_memory_recurrent:        CPU RS buffer size =     0.50 MiB
sched_reserve:        CPU compute buffer size =     6.00 MiB
llama_kv_cache: size =    12.00 MiB (  1024 cells)"""
    parts = {part: size / 2**20 for part, size in _buffers(log).items()}
    assert parts == {"weights": 100.5, "repacked": 60.0, "state": 12.5, "compute": 6.25}


def test_figures_from_known_times(exported: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up does not count; medians over repeats, spread over repeats, percentiles over tokens."""
    times: Iterator[tuple[float, float]] = iter([(99.0, 99.0), (2.0, 1.0), (4.0, 2.0), (3.0, 4.0)])

    def run(self: Bench, prompt: int, answer: int) -> Timing:
        self.last = {"runtime": "r", "runtime_build": "b", "memory": {"weights": 1}, "peak_bytes": 10**9}
        first, token = next(times)
        return Timing(first, np.full(answer, token), first, np.full(answer, token))

    monkeypatch.setattr(Bench, "run", run)
    (entry,) = profile(exported["F16"].file, 1, (30,), (30,), repeats=3, answer=10)["files"]
    assert entry["prefill"] == [
        {
            "tokens": 30,
            "tokens_per_second": pytest.approx(10_000),
            "ttft_ms": 3.0,
            "p50_ms": 3.0,
            "p95_ms": pytest.approx(3.9),
            "spread": pytest.approx((2 / 3) ** 0.5 / 3),
        }
    ]
    (decode,) = entry["decode"]
    assert (decode["depth"], decode["tokens_per_second"], decode["p50_ms"], decode["p95_ms"]) == (30, 500.0, 2.0, 4.0)
    assert decode["spread"] == pytest.approx((14 / 9) ** 0.5 / (7 / 3))
    assert entry["end_to_end"] == [{"tokens": 30, "answer": 10, "p50_ms": 24.0, "p95_ms": pytest.approx(41.1)}]
    assert entry["pipette"]["end_to_end_latency_30_10"]["mean"] == pytest.approx((12 + 24 + 43) / 3e3)
    assert entry["noisy"] and entry["noise"][0] == "repeats differ by 53%"


@pytest.mark.parametrize(
    ("share", "load", "why"),
    [(1.0, 64.0, "other processes held the cores at the start"), (0.5, 0.0, "the thread had to wait for its core")],
)
def test_a_busy_machine_is_flagged(
    exported: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch, share: float, load: float, why: str
) -> None:
    def run(self: Bench, prompt: int, answer: int) -> Timing:
        self.last = {"runtime": "r", "runtime_build": "b", "memory": {"weights": 1}, "peak_bytes": 10**9}
        return Timing(1.0, np.ones(answer), share, share * np.ones(answer))

    monkeypatch.setattr(Bench, "run", run)
    monkeypatch.setattr(module, "load_average", lambda: load)
    (entry,) = profile(exported["F16"].file, 1, (16,), (16,), repeats=2, answer=4)["files"]
    assert entry["noise"] == [why] and entry["load_average"]["before"] == load


def test_torch_runs_a_checkpoint_and_a_published_shape(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minnow.files import read_json
    from minnow.model import presets
    from minnow.model.config import ModelConfig

    monkeypatch.setitem(presets.PRESETS, "tiny", ModelConfig.from_hf(read_json(checkpoint / "config.json")))
    found = profile([checkpoint, "tiny"], 1, (8,), (8,), 2, 4, "torch")["files"]
    assert [file["type"] for file in found] == ["checkpoint", "random"]
    assert found[0]["parameters"] == found[1]["parameters"]
    assert found[0]["memory"][0]["weights"] == found[1]["memory"][0]["weights"] > 0
    (shape,) = profile("tiny", 1, (8,), (8,), 2, 4, kind="Q8_0")["files"]
    assert (shape["type"], shape["parameters"]) == ("Q8_0", found[0]["parameters"])


def test_refusals(exported: dict[str, GgufFile], tmp_path: Path) -> None:
    file = exported["F16"].file
    with pytest.raises(UserError, match="1 repeats give no spread"):
        profile(file, 1, repeats=1)
    with pytest.raises(UserError, match="4096 threads asked for"):
        profile(file, 4096)
    with pytest.raises(UserError, match="fits the context of 1024"):
        profile(file, 1, prompts=(2000,))
    with pytest.raises(UserError, match="does not exist"):
        profile(tmp_path / "none.gguf", 1)
    with pytest.raises(UserError, match="no published shape of that name"):
        profile("lfm9", 1)
    with pytest.raises(UserError, match="only llama.cpp runs"):
        profile(file, 1, engine="torch")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:60_000])
    with pytest.raises(UserError, match="not a whole GGUF file"):
        profile(cut, 1)


def test_a_runtime_that_aborts_is_a_sentence(exported: dict[str, GgufFile]) -> None:
    import os
    import signal

    with Bench("llama.cpp", exported["F16"].file, 64, 1) as bench:
        os.kill(bench._process.pid, signal.SIGABRT)
        with pytest.raises(UserError, match="the runtime died .signal 6. on .*tiny-F16.gguf"):
            bench.run(8, 2)


def test_card(measured: dict[str, Any]) -> None:
    why = {"noisy": True, "noise": ["repeats differ by 20%", "the thread had to wait for its core"]}
    files = [measured["files"][0] | why, measured["files"][1] | {"noisy": False, "noise": []}]
    files[1]["prefill"] = files[1]["prefill"][:1]
    document = dict(measured, files=files)
    card = device_card(document)
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in card.splitlines() if line.startswith("|")}) == 1
    assert "tiny-Q4_0.gguf (noisy) | tiny-F16.gguf |" in card
    cells = {row[0]: row[1:] for row in rows}
    assert cells["TTFT at 64"] == [f"{files[0]['prefill'][1]['ttft_ms']:.1f} ms", "–"]
    assert cells["energy"] == ["not measured"] * 2
    told = "tiny-Q4_0.gguf is noisy: repeats differ by 20%; the thread had to wait for its core. Run it again when"
    assert card.count(told) == 1 and "tiny-F16.gguf is noisy" not in card
    page = device_page(document)
    assert told in page and "http://" not in page and "https://" not in page and "<script" not in page
    for _, written in card_rows(files):
        assert all(f">{cell}<" in page for cell in written)
