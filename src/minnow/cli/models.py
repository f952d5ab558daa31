"""The model a command is given: a checkpoint, a stage or run folder, or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json
from minnow.recipe.mapping import nearest
from minnow.recipe.run_record import RunRecord, run_of
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.rollout import Engine

TokenizerFolder = Annotated[
    Path | None, tyro.conf.arg(metavar="FOLDER", help="model folder with the tokenizer of a GGUF file")
]
ModelThreads = Annotated[int | None, tyro.conf.arg(metavar="INT", help="of torch or llama.cpp")]

_STATE_BUDGET = 1 << 30  # bytes of decode state that rows decoded together may hold
_MOST_ROWS = 512
_PROMPT_TOKENS = 512  # assumed where rows are counted before prompts are known


def resolve_model(path: Path) -> Path:
    """The checkpoint folder that ``path`` means.

    Args:
        path: a checkpoint folder, a stage's folder, or a run folder: of this the last finished stage that made a model.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    if not path.exists():
        near = nearest(path.name, [each.name for each in path.parent.iterdir()]) if path.parent.is_dir() else ""
        hint = f"; {near}" if near.startswith("did you mean") else "; check the path"
        raise UserError(f"there is no model at {path}{hint}")
    if not path.is_dir():
        raise UserError(f"{path} is a file; name a checkpoint folder or a run folder")
    if _is_checkpoint(path):
        return path
    if _is_checkpoint(path / CHECKPOINT):
        return path / CHECKPOINT
    run = run_of(path)
    if run is None or run.folder.resolve() != path.resolve():
        raise UserError(
            f"{path} is neither a checkpoint folder (config.json and model.safetensors) nor a folder that 'minnow run' "
            "wrote; name one of these"
        )
    finished = [stage for stage in run.stages if (path / stage / "done.json").is_file()]
    for stage in reversed(finished):
        if _is_checkpoint(path / stage / CHECKPOINT):
            return path / stage / CHECKPOINT
    raise UserError(f"no stage of {path} that makes a model has finished yet; continue it with 'minnow run' first")


def _is_checkpoint(path: Path) -> bool:
    # A stage's own config.json has no model_type, and the tokenizer stage's checkpoint has no config.json at all.
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    return isinstance(config, dict) and "model_type" in config


@dataclass(frozen=True)
class OpenModel:
    """A model ready to answer.

    Attributes:
        path: the checkpoint folder or GGUF file.
        runtime: ``"torch"`` or ``"llama.cpp"``.
        context: positions a prompt and its answer may take.
        run: the run it (or the tokenizer of a GGUF file) belongs to.
        rows: prompts decoded side by side.
    """

    path: Path
    runtime: str
    engine: Engine
    tokenizer: Tokenizer
    context: int
    run: RunRecord | None
    rows: int


@contextmanager
def open_model(
    path: Path, tokenizer: Path | None = None, threads: int | None = None, max_new_tokens: int = 512
) -> Iterator[OpenModel]:
    """Open a checkpoint (see :func:`resolve_model`) with torch or a ``.gguf`` file with llama.cpp.

    Args:
        tokenizer: model folder with a GGUF file's tokenizer, where it does not lie beside the file and the file is not
            in the export stage of a run.
        threads: by default of torch the fastest number, measured, and of llama.cpp one.

    Raises:
        UserError: anything missing or damaged, or a tokenizer of another model.
    """
    if threads is not None and threads < 1:
        raise UserError(f"{threads} threads cannot run a model; use at least 1")
    if path.suffix == ".gguf":
        from minnow.device.gguf_export import gguf_metadata
        from minnow.device.llama_engine import LlamaEngine

        facts = gguf_metadata(path)
        folder = tokenizer_folder(path, tokenizer)
        words = Tokenizer.load(folder)
        if words.vocab_size > facts["vocab_size"] or words.eos_id != facts["eos_id"]:
            raise UserError(
                f"the tokenizer of {folder} has {words.vocab_size} ids and ends with id {words.eos_id}, but {path} has "
                f"{facts['vocab_size']} and {facts['eos_id']}; name the folder it was exported from with --tokenizer"
            )
        with LlamaEngine(path, words, threads=threads or 1) as engine:
            run = run_of(path) or run_of(folder)
            yield OpenModel(path, "llama.cpp", engine, words, facts["context_length"], run, engine.rows)
        return
    if tokenizer is not None:
        raise UserError("--tokenizer is for GGUF files; a checkpoint folder has its own tokenizer")
    from minnow.model.footprint import state_bytes
    from minnow.model.foreign import ForeignModel
    from minnow.recipe.stages.sources import engine_of
    from minnow.train.precision import choose_threads

    folder = resolve_model(path)
    choose_threads(threads)
    torch_engine, model, words = engine_of(folder)
    context = min(model.config.max_positions, _PROMPT_TOKENS + max_new_tokens)
    if isinstance(model, ForeignModel):
        row_bytes = model.state_bytes(context)
    else:
        row_bytes = sum(state_bytes(model.config, context).values())
    torch_engine.rows = max(1, min(_MOST_ROWS, _STATE_BUDGET // row_bytes))
    yield OpenModel(folder, "torch", torch_engine, words, model.config.max_positions, run_of(folder), torch_engine.rows)


def tokenizer_folder(file: Path, given: Path | None) -> Path:
    """Where the tokenizer of a GGUF file is: ``given``, beside the file, or in the run it was exported in.

    Raises:
        UserError: nowhere.
    """
    if given is not None:
        return given if (given / "tokenizer.json").is_file() else resolve_model(given)
    if (file.parent / "tokenizer.json").is_file():
        return file.parent
    stage = file.parent / "config.json"
    exported = read_json(stage) if stage.is_file() else {}
    if isinstance(exported, dict) and exported.get("kind") == "export":
        return file.parent.parent / exported["checkpoint"] / CHECKPOINT
    raise UserError(f"there is no tokenizer.json beside {file}; name the model it was exported from with --tokenizer")
