"""What folders for other runtimes say: every family against transformers, as `minnow export --to` verifies them.

Small models of every family with random weights, and any finished checkpoint. Also how long each conversion took.

    python benchmarks/folders.py onnx|executorch|mlx [--families …] [--types …] [--checkpoint FOLDER …] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from export import shapes
from minnow.data.tokenizer import train_tokenizer
from minnow.device.folder_export import FORMATS, plan_folder
from minnow.device.parity import own_words, verify_files
from minnow.errors import UserError
from minnow.files import write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.tasks import PocketWorld


def compared(checkpoint: Path, to: str, types: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row for each type: bytes, seconds of the conversion, what verifying found; or why it was not written."""
    own = own_words(*load_checkpoint(checkpoint))
    rows = []
    for kind in types:
        began = time.perf_counter()
        try:
            made = plan_folder(checkpoint, FORMATS[to], kind).write(folder / f"{checkpoint.name}-{to}-{kind}")
        except UserError as error:
            rows.append({"type": kind, "refused": str(error)})
            continue
        seconds = time.perf_counter() - began
        (verdict,) = verify_files(checkpoint, [made], own)
        rows.append({"type": kind, "bytes": made.bytes, "seconds": seconds, **verdict.as_dict()})
    return rows


def show(name: str, row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {name} | {row['type']} | {row['refused']} | | | | |"
    ends, words = row["endings"], row["tokenizer"]
    asked = f"{ends['file']}/{ends['reference']}" if ends and ends["reference"] else "–"
    ties = f" (+{row['near_ties']} ties)" if row["near_ties"] else ""
    return (
        f"| {name} | {row['type']} | {row['bytes'] / 1e6:.2f} MB | {row['agreement']:.2%}{ties} of {row['positions']} | "
        f"{row['mean_kl']:.1e} | {words['agree']}/{words['texts']} | {asked} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("to", choices=sorted(FORMATS))
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--types", nargs="+")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    types = options.types or list(FORMATS[options.to].types)
    words = train_tokenizer(list(PocketWorld(1).documents(1000)), 1024)
    found: dict[str, Any] = {}
    print("| model | type | size | same token | mean KL | tokenizer | answers end |\n|---|---|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder, models = Path(scratch), {str(each): each for each in options.checkpoint}
        for family, config in shapes(words).items():
            if family in (options.families if options.families is not None else shapes(words)):
                model = Backbone(config)
                model.initialise(1)
                save_checkpoint(model, words, folder / family)
                models[f"{family}, random"] = folder / family
        for name, checkpoint in models.items():
            found[name] = compared(checkpoint, options.to, types, folder)
            for row in found[name]:
                print(show(name, row), flush=True)
    if options.json:
        write_json(options.json, {"to": options.to, "models": found})


if __name__ == "__main__":
    main()
