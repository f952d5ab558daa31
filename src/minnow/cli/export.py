"""``minnow export``: a model as files for a device, checked against the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, columns, emit
from minnow.data.documents import read_documents
from minnow.data.tokenizer import Tokenizer
from minnow.device.folder_export import FORMATS, FolderPlan, plan_folder
from minnow.device.gguf_export import Export, GgufFile, check_disk, plan_export
from minnow.device.importance import column_importance
from minnow.device.parity import check_memory, own_sequences, own_words, verify_files
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint
from minnow.model.language_model import LanguageModel
from minnow.progress import size_text
from minnow.recipe.run_record import run_of
from minnow.recipe.stages.sources import CHECKPOINT

_TYPES = {  # where none is asked for
    "gguf": ("F16", "Q8_0", "Q4_0"), "onnx": ("F32", "INT4"), "executorch": ("F32", "8da4w"), "mlx": ("F16", "Q4"),
}  # fmt: skip
_DOCUMENTS, _DOCUMENT_TOKENS = 256, 512  # of a text that importance is measured on


def export(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    to: Literal["gguf", "onnx", "executorch", "mlx"] = "gguf",
    types: Annotated[tuple[str, ...], tyro.conf.arg(name="type", metavar="TYPE …")] = (),
    embedding_type: str | None = None,
    importance: Annotated[str | None, tyro.conf.arg(metavar="own|FILE")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("."),
    verify: bool = True,
    as_json: AsJson = False,
) -> int:
    """Write a model as files that llama.cpp, onnxruntime-genai, ExecuTorch or mlx-lm runs, and check that they say the same.

    Exit code 1 if a file does not.

    Args:
        model: a checkpoint folder, or a stage or run folder.
        to: gguf files, or folders: onnx for onnxruntime-genai, executorch for ExecuTorch on XNNPACK, mlx for mlx-lm.
        types: for gguf F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, Q5_K_M or Q6_K (by default F16, Q8_0 and Q4_0); for onnx F32,
            INT8 or INT4 (F32 and INT4); for executorch F32, 8da8w or 8da4w (F32 and 8da4w); for mlx F32, F16, BF16, Q8 or Q4
            (F16 and Q4). One file or folder each.
        embedding_type: of embedding and head of GGUF files: those, or Q4_K, Q5_K; by default the file's, and Q8_0 or
            Q6_K in files of fewer bits.
        importance: of GGUF files: spend the error of Q4_0 and K-quants where it costs least on a text: the model's own,
            or a file's.
        out: folder for the files.
        verify: do not run the files. Otherwise each is compared with transformers in float32 on texts that the model
            writes itself (token by token), in its tokenizer and in where its answers end.
    """
    if to != "gguf" and (embedding_type or importance):
        raise UserError(f"--embedding-type and --importance are for GGUF files; leave them out with --to {to}")
    checkpoint = resolve_model(model)
    types = types or _TYPES[to]

    def plan(kind: str, costs: dict[str, Tensor] | None = None) -> Export | FolderPlan:
        if to == "gguf":
            return plan_export(checkpoint, kind, embedding_type, costs)
        return plan_folder(checkpoint, FORMATS[to], kind)

    plans = [plan(kind) for kind in types]
    check_disk(sum(each.bytes for each in plans), out)
    own = None
    if verify or importance or to != "gguf":
        check_memory(checkpoint)
    if verify or importance:
        network, words = load_checkpoint(checkpoint)
        if importance:
            costs = _importance(network, words, importance)
            plans = [plan(kind, costs) for kind in types]
        own = own_words(network, words) if verify else None
        del network  # files are written with the memory free
    ending = "-{}.gguf" if to == "gguf" else f"-{to}-{{}}"
    files = [each.write(out / (_stem(checkpoint) + ending.format(each.type))) for each in plans]
    entries: list[dict[str, Any]] = [
        {"file": str(made.file), "type": made.type, "bytes": made.bytes}
        | ({"kept_f16": list(made.kept_f16)} if isinstance(made, GgufFile) else {})
        for made in files
    ]
    if own is not None:
        for entry, verdict in zip(entries, verify_files(checkpoint, files, own), strict=True):
            entry |= verdict.as_dict()
    emit({"model": str(checkpoint), "files": entries}, _export_text(entries), as_json)
    failed = [entry for entry in entries if entry.get("faults")]
    for entry in failed:
        sys.stderr.write(f"minnow: {entry['file']} does not say what the checkpoint says, do not ship it: ")
        sys.stderr.write("; ".join(entry["faults"]) + "\n")
    return 1 if failed else 0


def _importance(model: LanguageModel, words: Tokenizer, text: str) -> dict[str, Tensor]:
    """What errors cost on text of the model's own, or on the beginnings of a file's documents."""
    sequences: Iterable[list[int]]
    if text == "own":
        sequences = own_sequences(model, words, count=64, length=256, seed=1)
    else:
        documents = islice(read_documents(text), _DOCUMENTS)
        sequences = ((words.begin + words.encode(each))[:_DOCUMENT_TOKENS] for each in documents)
    return column_importance(model, sequences)


def _stem(checkpoint: Path) -> str:
    """A name for the files of a checkpoint: its run's, or its folder's."""
    run = run_of(checkpoint)
    if run is not None:
        return run.name
    folder = checkpoint.resolve()
    return folder.parent.name if folder.name == CHECKPOINT else folder.name


def _export_text(entries: list[dict[str, Any]]) -> str:
    verified = "passed" in entries[0]
    head = ["file", "size"] + (["same token", "mean KL", "perplexity", "answers end", "tokenizer"] if verified else [])
    rows = [head]
    for entry in entries:
        row = [entry["file"], size_text(entry["bytes"])]
        if verified:
            ends = entry["endings"]
            row += [
                f"{entry['agreement']:.2%} of {entry['positions']}",
                f"{entry['mean_kl']:.2g}",
                f"{entry['perplexity']:.3f}",
                f"{ends['file']}/{ends['reference']}" if ends and ends["reference"] else "–",
                f"{entry['tokenizer']['agree']}/{entry['tokenizer']['texts']}",
            ]
        rows.append(row)
    notes = []
    if verified:
        notes.append(f"the checkpoint's own perplexity on the same tokens is {entries[0]['reference_perplexity']:.3f}")
        if entries[0]["endings"] is None:
            notes.append("where answers end was not compared: the model is not trained, and ends them by accident")
        elif not entries[0]["endings"]["reference"]:
            notes.append(
                "where answers end could not be compared: the checkpoint itself ends none of those it was asked"
            )
    kept = {name for entry in entries for name in entry.get("kept_f16", ())}
    if kept:
        notes.append(f"{len(kept)} matrices stay F16 in quantised files: their rows are no multiple of the block")
    return "\n".join([columns(rows), *notes])
