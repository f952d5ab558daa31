"""``minnow merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, emit
from minnow.posttrain.merge import Merge


def merge(
    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL …")],
    /,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    settings: Annotated[Merge, tyro.conf.OmitArgPrefixes],
    base: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    as_json: AsJson = False,
) -> None:
    """Merge checkpoints of one family into one, a piece of a tensor at a time: models may be larger than memory.

    Args:
        models: checkpoint, stage or run folders; config and tokenizer are the first one's.
        out: folder that the merged checkpoint is written to.
        settings: how they become one.
        base: what the models were trained from, for the methods that merge what training has changed.
        dtype: of the file; by default that of the first model.
    """
    import torch

    from minnow.posttrain.merge_files import merge_folders

    folders = [resolve_model(model) for model in models]
    common = None if base is None else resolve_model(base)
    merge_folders(folders, settings, out, common, None if dtype is None else getattr(torch, dtype))
    document = {
        "out": str(out),
        "method": settings.method,
        "models": [str(folder) for folder in folders],
        "base": None if common is None else str(common),
    }
    emit(document, f"{out}: {settings.method} of {len(folders)} models", as_json)
