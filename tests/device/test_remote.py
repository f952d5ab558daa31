"""The script for phones and boards, run here by /bin/sh with a stand-in for llama-bench."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from minnow.device.card import device_card
from minnow.device.remote import device_script, read_remote
from minnow.errors import UserError

# Answers as llama-bench -o json does (fields of build b11549's JSON printer): prefill 2 ms a token, decoding 10.
BENCH = r"""#!/bin/sh
while [ $# -gt 0 ]; do case $1 in -p) p=$2;; -n) n=$2;; -t) t=$2;; -d) d=$2;; esac; shift; done
sleep 0.2
echo "build: noise on stderr" >&2
ns=$((p * 2000000 + n * 10000000))
printf '[{"build_commit": "abc", "build_number": 11549, "cpu_info": "Cortex", "backends": "CPU", "model_type": "lfm2 350M Q4_0",
"model_size": 1000, "model_n_params": 354483968, "n_threads": %s, "n_prompt": %s, "n_gen": %s, "n_depth": %s,
"samples_ns": [%s, %s, %s], "avg_ts": 1.0}]\n' "$t" "$p" "$n" "${d:-0}" $ns $ns $((ns + 2000000))
"""


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    (tmp_path / "llama-bench").write_text(BENCH)
    (tmp_path / "llama-bench").chmod(0o755)
    (tmp_path / 'a "model".gguf').write_bytes(b"GGUF" * 10)
    (tmp_path / "profile.sh").write_text(device_script((64, 128), (32,), 3))
    output = subprocess.run(
        ["sh", "profile.sh", 'a "model".gguf', "./llama-bench", "2"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    (tmp_path / "profile.json").write_bytes(output)
    return tmp_path / "profile.json"


def test_the_script_measures_and_its_json_is_read_back(printed: Path) -> None:
    found = read_remote(printed)
    (file,) = found["files"]
    assert (file["file"], file["bytes"], file["threads"], file["parameters"]) == ("a model.gguf", 40, 2, 354_483_968)
    assert [(each["tokens"], each["ttft_ms"]) for each in file["prefill"]] == [(64, 128.0), (128, 256.0)]
    assert [(each["depth"], each["tokens_per_second"]) for each in file["decode"]] == [(32, 100.0)]
    assert file["pipette"]["decode_throughput_32_100"]["mean"] == pytest.approx(100, rel=1e-3)
    assert file["peak_rss_bytes"] > 100_000 and file["runtime"] == "llama-bench 11549"
    assert "a model.gguf" in device_card(found) and json.loads(json.dumps(found)) == found


def test_the_script_stops_without_a_model_or_a_bench(tmp_path: Path) -> None:
    (tmp_path / "profile.sh").write_text(device_script((64,), (32,), 3))
    for arguments, said in (
        ([], "usage"),
        (["none.gguf"], "cannot be read"),
        (["profile.sh", "./none"], "does not run"),
    ):
        run = subprocess.run(
            ["sh", "profile.sh", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2 and said in run.stderr and not run.stdout


def test_output_that_is_not_the_scripts_is_refused(printed: Path, tmp_path: Path) -> None:
    whole = json.loads(printed.read_text())
    for broken in (whole | {"minnow_profile": 2}, {"files": []}, whole | {"runs": []}, []):
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="is not what the script"):
            read_remote(tmp_path / "broken.json")
    with pytest.raises(UserError, match="at least one prompt length"):
        device_script((), (32,), 3)
