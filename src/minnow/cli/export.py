"""``minnow export``: a model as files for a device, checked against the checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, columns, emit, size_text
from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.device.parity import check_parity, check_tokenizer, own_sequences
from minnow.errors import UserError
from minnow.progress import track
from minnow.recipe.run_record import run_of
from minnow.recipe.stages.sources import CHECKPOINT

_UNQUANTISED = ("F32", "F16", "BF16")
_AGREEMENT = 0.99  # of greedy tokens, near ties granted, for a file that is not quantised


def export(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    types: Annotated[tuple[str, ...], tyro.conf.arg(name="type", metavar="TYPE …")] = ("F16", "Q8_0", "Q4_0"),
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("."),
    verify: bool = False,
    as_json: AsJson = False,
) -> int:
    """Write a model as GGUF files that llama.cpp runs.

    Args:
        model: a checkpoint folder, or a stage or run folder.
        types: F32, F16, BF16, Q8_0 or Q4_0; one file each.
        out: folder for the files.
        verify: run each file on texts the model writes itself and compare with transformers in float32, token by
            token; exit code 1 if the tokenizer differs or an unquantised file agrees on less than 99%.
    """
    if not types:
        raise UserError("--type names no type; give at least one, such as Q8_0")
    checkpoint = resolve_model(model)
    stem = _stem(checkpoint)
    files = [export_gguf(checkpoint, out / f"{stem}-{kind}.gguf", kind) for kind in types]
    entries: list[dict[str, Any]] = [
        {"file": str(made.file), "type": made.type, "bytes": made.bytes, "kept_f16": list(made.kept_f16)}
        for made in files
    ]
    if verify:
        words, sequences = Tokenizer.load(checkpoint), own_sequences(checkpoint)
        texts = [words.decode(ids) for ids in sequences]
        with track(len(entries), "verify", "files") as bar:
            for made, entry in zip(files, entries, strict=True):
                parity = check_parity(checkpoint, made.file, sequences)
                tokenizer = check_tokenizer(checkpoint, made.file, texts)
                granted = (parity.agree + parity.near_ties) / parity.positions
                entry |= parity.as_dict()
                entry["tokenizer"] = {"texts": tokenizer.texts, "agree": tokenizer.agree}
                entry["passed"] = tokenizer.agree == tokenizer.texts and (
                    made.type not in _UNQUANTISED or granted >= _AGREEMENT
                )
                bar.advance(1)
    emit({"model": str(checkpoint), "files": entries}, _export_text(entries, verify), as_json)
    failed = [entry["file"] for entry in entries if not entry.get("passed", True)]
    if failed:
        sys.stderr.write(f"minnow: {', '.join(failed)} does not say what the checkpoint says; do not ship it\n")
    return 1 if failed else 0


def _stem(checkpoint: Path) -> str:
    """A name for the files of a checkpoint: its run's, or its folder's."""
    run = run_of(checkpoint)
    if run is not None:
        return run.name
    folder = checkpoint.resolve()
    return folder.parent.name if folder.name == CHECKPOINT else folder.name


def _export_text(entries: list[dict[str, Any]], verified: bool) -> str:
    head = ["file", "size"] + (
        ["same token", "near ties", "perplexity", "of checkpoint", "tokenizer"] if verified else []
    )
    rows = [head]
    for entry in entries:
        row = [entry["file"], size_text(entry["bytes"])]
        if verified:
            row += [
                f"{entry['agreement']:.2%} of {entry['positions']}",
                str(entry["near_ties"]),
                f"{entry['perplexity']:.3f}",
                f"{entry['reference_perplexity']:.3f}",
                f"{entry['tokenizer']['agree']}/{entry['tokenizer']['texts']}",
            ]
        rows.append(row)
    kept = {name for entry in entries for name in entry["kept_f16"]}
    note = f"\n{len(kept)} matrices stay F16 in quantised files: their rows are no multiple of 32" if kept else ""
    return columns(rows) + note
