"""Peak memory and speed of merging two models of LFM2-1.2B's shape, in bfloat16, from folder to folder.

Models of random weights are written once into a temporary folder (three of 2.3 GB, and as much for the result); each
method then runs as ``minnow merge`` in a process of its own, whose resident memory at its highest is what is reported.

    python benchmarks/merge.py [--preset lfm2-1.2b] [--methods average,ties] [--folder DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from minnow.files import write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import SHARD_BYTES
from minnow.model.families import FAMILIES
from minnow.model.presets import PRESETS
from minnow.model.tensor_files import Stored, shard_names, shards, start_file, write_part

ASKED = 1.2e9
METHODS = ("average", "slerp", "task-arithmetic", "ties", "dare", "della")


def write_model(folder: Path, name: str, seed: int) -> int:
    """Random bfloat16 weights of a preset, a piece at a time; returns the parameters."""
    config = PRESETS[name]
    with torch.device("meta"):
        empty = Backbone(config).state_dict()
    shapes = {
        theirs: Stored(Path(), torch.bfloat16, tuple(part.shape), 0)
        for slot in FAMILIES[config.family].tensors(config)
        for theirs, part in zip(slot.theirs, slot.split(empty[slot.ours]), strict=True)
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_hf())
    (group,) = shards(shapes, SHARD_BYTES)
    generator = torch.Generator().manual_seed(seed)
    with (folder / shard_names(1)[0]).open("wb") as stream:
        start_file(stream, group)
        for tensor in group.values():
            left = tensor.entries
            while left:
                part = torch.randn(min(left, 1 << 22), generator=generator).bfloat16()
                write_part(stream, part)
                left -= len(part)
    return sum(tensor.entries for tensor in group.values())


def measure(method: str, folder: Path) -> dict[str, Any]:
    """One merge in a process of its own."""
    words = ["merge", "first", "second", "--method", method, "--out", "merged"]
    words += [] if method in ("average", "slerp") else ["--base", "base"]
    code = f"import sys; from minnow.cli.main import main; sys.exit(main({words!r}))"
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"minnow {' '.join(words)} failed")
    return {
        "method": method,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="lfm2-1.2b")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folder", type=Path, help="where the models are written; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for seed, each in enumerate(("base", "first", "second")):
            count = write_model(folder / each, options.preset, seed)
        size = (folder / "first/model.safetensors").stat().st_size
        print(
            f"two models of {options.preset}: {count:,} parameters, {size / 1e9:.2f} GB each; asked: {ASKED / 1e9:g} GB"
        )
        print(f"{'method':<17}{'peak memory':>13}{'CPU time':>11}{'time':>9}")
        rows = []
        for method in options.methods.split(","):
            row = measure(method, folder)
            rows.append(row)
            print(
                f"{method:<17}{row['peak_bytes'] / 1e9:>10.2f} GB{row['cpu_seconds']:>9.0f} s{row['seconds']:>7.0f} s",
                flush=True,
            )
    if options.json:
        document = {"preset": options.preset, "parameters": count, "asked_bytes": ASKED, "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
