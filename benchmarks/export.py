"""What exporting costs, and what files say: a 350M checkpoint to Q4_0, and every family against transformers.

The first table is of `minnow export --no-verify` on the LFM2-350M shape with random bfloat16 weights, in a process of its
own: seconds, CPU seconds, and the most memory it ever held over the size of the file. The second compares files with
their checkpoint on text that the model writes itself, for small models of every family, with random weights and trained
on the pocket world for some steps, and for any finished checkpoint.

    python benchmarks/export.py [--preset lfm2-350m] [--type Q4_0] [--repeats 3] [--steps 300] [--checkpoint FOLDER …]
                                [--only cost|parity] [--json FILE]
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

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.data.tokenizing import tokenize_documents
from minnow.device.gguf_export import export_gguf
from minnow.device.parity import check_parity, own_sequences
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    GatedDelta,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    RopeScaling,
    ShortConv,
)
from minnow.model.presets import PRESETS
from minnow.tasks import PocketWorld
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings

WIDTH, HEADS, HEAD = 128, 4, 32
# VmHWM, because what wait4 gives counts the process that this one was forked from.
_RUN = (
    "import sys; from minnow.cli.main import main; from minnow.machine import peak_rss_bytes; "
    "code = main(sys.argv[1:]); print(peak_rss_bytes()); sys.exit(code)"
)
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def large_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE of ``size`` entries, most of them made up: pairs of bytes."""
    words = train_tokenizer(["a b"] * 3, 270)
    written = json.loads(words._serialised)
    vocabulary, merges = written["model"]["vocab"], written["model"]["merges"]
    letters = [token for token in vocabulary if len(token) == 1]
    for pair in ((a, b) for a in letters for b in letters):
        if len(vocabulary) == size:
            break
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(list(pair))
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(written)))


def cost(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Export one preset a few times, each in a process of its own."""
    torch.manual_seed(0)
    model = Backbone(PRESETS[options.preset])
    model.initialise(0)
    checkpoint = folder / options.preset
    save_checkpoint(model, large_tokenizer(model.config.vocab_size), checkpoint, dtype=torch.bfloat16)
    del model
    runs = []
    command = [sys.executable, "-c", _RUN, "export", str(checkpoint), "--type", options.type, "--no-verify"]
    for _ in range(options.repeats):
        began = time.perf_counter()
        process = subprocess.Popen([*command, "--out", str(folder), "--json"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        *document, peak_bytes = process.stdout.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, "the export failed"
        (made,), peak = json.loads(b"".join(document))["files"], int(peak_bytes)
        runs.append(
            {
                "type": made["type"],
                "bytes": made["bytes"],
                "seconds": time.perf_counter() - began,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_rss_bytes": peak,
                "peak_over_file": peak / made["bytes"],
            }
        )
        Path(made["file"]).unlink()
    return runs


def shapes(words: Tokenizer) -> dict[str, ModelConfig]:
    """A small model of every family that is exported."""
    dense = Dense(3 * WIDTH)
    far = Attention(HEADS, 2, HEAD, Rope(1e6))
    plain = Attention(HEADS, 2, HEAD, Rope(1e4, scaling=RopeScaling("llama3", 8.0, original=128)), qk_norm=False)
    near = Attention(HEADS, 2, HEAD, Rope(1e4), window=64)
    gated = Attention(HEADS, 2, HEAD, Rope(1e7, 0.25), output_gate="element")
    experts = Experts(8, 2, WIDTH)

    def config(family: str, mixers: list[Mixer], **more: Any) -> ModelConfig:
        layers = [LayerConfig(mixer, Dense(3 * WIDTH, "gelu") if more.get("sandwich") else dense) for mixer in mixers]
        if family == "lfm2_moe":
            layers[2:] = [LayerConfig(mixer, experts) for mixer in mixers[2:]]
        rows = -(-words.vocab_size // 32) * 32
        ids = {"pad_id": words.pad_id, "bos_id": words.bos_id, "eos_id": words.eos_id}
        return ModelConfig(family, rows, WIDTH, tuple(layers), max_positions=1024, **ids, **more)

    mixed: list[Mixer] = [ShortConv(), far, ShortConv(), far]
    delta = GatedDelta(2, 4, HEAD, HEAD)
    gemma = {"norm_offset": True, "sandwich": True, "embedding_scale": WIDTH**0.5}
    return {
        "lfm2": config("lfm2", mixed),
        "lfm2_moe": config("lfm2_moe", mixed),
        "llama": config("llama", [plain] * 4),
        "qwen3": config("qwen3", [far] * 4, tied=False),
        "gemma3_text": config("gemma3_text", [near, near, far, near], **gemma),
        "qwen3_5_text": config("qwen3_5_text", [delta, delta, gated, delta], norm_offset=True),
    }


def train(model: Backbone, loader: Loader, steps: int, folder: Path) -> None:
    settings = TrainSettings(steps, OptimizerSettings(learning_rate=4e-3, muon=False), save_seconds=1e9)
    Trainer(model, next_token, lambda step: [loader.batch(step)], settings, lambda **line: None, folder / "s").run()


def compared(checkpoint: Path, folder: Path, types: tuple[str, ...]) -> dict[str, Any]:
    files = [export_gguf(checkpoint, folder / f"{kind}.gguf", kind).file for kind in types]
    parities = check_parity(checkpoint, files, own_sequences(*load_checkpoint(checkpoint)))
    return {kind: each.as_dict() for kind, each in zip(types, parities, strict=True)}


def parity(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every family with random and with trained weights; then whatever checkpoints were named."""
    documents = list(PocketWorld(1).documents(3000))
    words = train_tokenizer(documents, 1024)
    rows = pack(((ids, None) for ids in tokenize_documents(documents, words)), 256, words.pad_id)
    found = {}
    for family, config in shapes(words).items():
        model = Backbone(config)
        model.initialise(1)
        for state in ("random", "trained"):
            if state == "trained":
                train(model, Loader(rows, 8, 1), options.steps, folder / family)
            save_checkpoint(model.float(), words, folder / family / state)
            found[f"{family}, {state}"] = compared(folder / family / state, folder / family, TYPES)
            print(json.dumps({"model": f"{family}, {state}", **found[f"{family}, {state}"]["F16"]}), flush=True)
    for checkpoint in options.checkpoint:
        found[str(checkpoint)] = compared(checkpoint, folder, TYPES)
    return found


def show(result: dict[str, Any]) -> None:
    for run in result.get("cost", []):
        print(
            f"{run['type']}: {run['bytes'] / 1e6:.0f} MB in {run['seconds']:.1f} s ({run['cpu_seconds']:.1f} s of CPU), "
            f"at most {run['peak_rss_bytes'] / 1e6:.0f} MB of memory: {run['peak_over_file']:.2f} times the file"
        )
    if "parity" in result:
        heads = [f"{kind} {what}" for kind in TYPES for what in ("same", "KL")]
        print(f"\n| model | positions | {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) + 1)}")
        for name, by_type in result["parity"].items():
            cells = [f(by_type[kind]) for kind in TYPES for f in (_same, lambda each: f"{each['mean_kl']:.1e}")]
            print(f"| {name} | {by_type['F32']['positions']} | {' | '.join(cells)} |")


def _same(each: dict[str, Any]) -> str:
    ties = f" (+{each['near_ties']} ties)" if each["near_ties"] else ""
    return f"{each['agreement']:.2%}{ties}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lfm2-350m")
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of training, for each family")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[])
    parser.add_argument("--only", choices=("cost", "parity"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "parity":
            result["cost"] = cost(options, Path(folder))
        if options.only != "cost":
            result["parity"] = parity(options, Path(folder))
    show(result)
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"options": settings, **result}, indent=2))


if __name__ == "__main__":
    main()
