"""``minnow profile``: what models cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, Threads, emit
from minnow.device.card import device_card
from minnow.device.profile import profile as profile_models
from minnow.errors import UserError
from minnow.progress import track


def profile(
    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|FILE.gguf …")],
    /,
    threads: Threads = None,
    prompts: tuple[int, ...] = (32, 128, 512),
    depths: tuple[int, ...] = (32, 512),
    repeats: int = 5,
    as_json: AsJson = False,
) -> None:
    """Measure load time, time to first token, tokens per second and peak memory with llama.cpp.

    Args:
        models: GGUF files, or checkpoint, stage or run folders (exported as F16 for the moment).
        threads: of llama.cpp; by default all usable cores.
        prompts: prompt lengths in tokens.
        depths: tokens already in context when decoding is timed.
        repeats: timed repeats, at least 2.
    """
    if not models:
        raise UserError("name at least one GGUF file or model folder to profile")
    paths = [path if path.suffix == ".gguf" else resolve_model(path) for path in models]
    found: dict[str, Any] = {"files": []}
    with track(len(paths), "profile", "files") as bar:
        for path in paths:
            one = profile_models(path, threads, prompts, depths, repeats)
            found = {"machine": one["machine"], "files": found["files"] + one["files"]}
            bar.advance(1)
    emit(found, device_card(found), as_json)
