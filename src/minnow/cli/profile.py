"""``minnow profile``: what models, or their operators, cost on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, Threads, emit
from minnow.device.bench import Engine
from minnow.device.card import device_card
from minnow.device.profile import profile as profile_models
from minnow.device.remote import device_script, read_remote
from minnow.errors import UserError
from minnow.files import whole_file
from minnow.model.presets import find_preset


def profile(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|FILE.gguf|NAME …")] = (),
    /,
    engine: Engine = "llama.cpp",
    kind: Annotated[str, tyro.conf.arg(name="type", metavar="TYPE")] = "Q4_0",
    threads: Threads = None,
    prompts: tuple[int, ...] = (128, 512),
    depths: tuple[int, ...] = (128, 512),
    answer: int = 256,
    repeats: int = 5,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    print_script: bool = False,
    read: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    as_json: AsJson = False,
) -> None:
    """Measure time to first token, tokens per second, end-to-end latency, load time and peak memory on a device.

    Every model and length runs in a process of its own: one warm-up, then the repeats. Results that differ by more than
    10%, or were taken while other processes held the cores, are marked noisy.

    Args:
        models: GGUF files; checkpoint, stage or run folders; published shapes by name (lfm2-350m), with random weights.
        engine: llama.cpp, or Minnow's own kernels in torch.
        kind: GGUF type that folders and names are written in for llama.cpp.
        threads: for prefill and decode; by default all usable cores.
        prompts: prompt lengths in tokens.
        depths: tokens already in context when decoding is timed.
        answer: tokens decoded at each depth.
        repeats: timed repeats, at least 2.
        out: also write card.md, card.html and profile.json into this folder.
        print_script: print a shell script that measures on a phone or board with llama-bench, and measure nothing.
        read: what that script printed, to stand beside the models.
    """
    if print_script:
        emit({"script": device_script(prompts, depths, repeats)}, device_script(prompts, depths, repeats), as_json)
        return
    if not models and not read:
        raise UserError("name at least one GGUF file, model folder or published shape to profile")
    found: dict[str, Any] = {}
    if models:
        found = profile_models([_subject(m) for m in models], threads, prompts, depths, repeats, answer, engine, kind)
    for one in map(read_remote, read):
        found = {"machine": found.get("machine") or one["machine"], "files": [*found.get("files", []), *one["files"]]}
    card = device_card(found)
    if out is not None:
        _write(found, card, out)
    emit(found, card, as_json)


def _subject(model: str) -> Path | str:
    path = Path(model)
    if path.suffix == ".gguf":
        return path
    return model if find_preset(model) and not path.exists() else resolve_model(path)


def _write(found: dict[str, Any], card: str, folder: Path) -> None:
    from minnow.recipe.report.device_card import device_page

    texts = {"card.md": card, "card.html": device_page(found), "profile.json": json.dumps(found, indent=2) + "\n"}
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
