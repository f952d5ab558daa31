"""Exports that are folders: ONNX as onnxruntime-genai runs it, MLX, and programs for ExecuTorch.

The converters (the runtimes' own; for ExecuTorch Minnow's) read a Hugging Face folder and write weights, tokenizer and
settings in the names that their runtimes ask for. They run in a process of their own, and what they wrote is held to the
same checks as Minnow's own files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minnow.device.gguf_export import check_folder
from minnow.device.worker_process import worker_environment
from minnow.errors import UserError, require
from minnow.files import read_json, whole_folder
from minnow.model.checkpoint import weight_files
from minnow.model.config import Attention, ModelConfig, Rope
from minnow.model.foreign import is_foreign
from minnow.model.tensor_files import stored_tensors

FolderEngine = Literal["onnx", "executorch"]
"""What runs the folders written for it, and can be profiled."""

SETTINGS: dict[FolderEngine, str] = {"onnx": "genai_config.json", "executorch": "executorch.json"}
"""The file that a folder for each is known by; ExecuTorch's holds what its ``model.pte`` says of itself."""


def engine_of(folder: Path) -> FolderEngine | None:
    """What runs an exported folder; None where it is none of :data:`SETTINGS`."""
    return next((engine for engine, name in SETTINGS.items() if (folder / name).exists()), None)


_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "INT8": 4, "INT4": 4, "Q8": 2, "Q4": 2, "8da8w": 4, "8da4w": 4}
"""Of a weight that stays as it is: what quantised files keep of the embedding. At most, therefore."""


@dataclass(frozen=True)
class ExportedFolder:
    """One exported folder: ``file``, its ``type`` and the ``bytes`` of all that is in it."""

    file: Path
    type: str
    bytes: int


@dataclass(frozen=True)
class Format:
    """A format and the converter that writes it.

    Attributes:
        modules: that must be installed, as the extra of the format's name has them.
        families: that converter and runtime compute.
        types: and the converter's flags for each; rows must be whole groups of the ``group`` weights that those of fewer
            than 16 bits round together, or stay as they are.
        command: module and arguments of the converter.
        settings: what the converter expects otherwise in ``config.json``, of what stands there.
    """

    name: str
    modules: tuple[str, ...]
    families: tuple[str, ...]
    types: Mapping[str, tuple[str, ...]]
    group: int
    command: tuple[str, ...]
    settings: Callable[[Mapping[str, Any]], dict[str, Any]]


def _onnx_settings(written: Mapping[str, Any]) -> dict[str, Any]:
    # The builder reads one rotation, and that of Gemma's windows from a key of its own that transformers 5 has no more.
    if written["model_type"] != "gemma3_text":
        return {}
    mixers = [layer.mixer for layer in ModelConfig.from_hf(written).layers]
    ropes = {mixer.window is not None: mixer.rope for mixer in mixers if isinstance(mixer, Attention)}
    near, far = (ropes.get(windowed, Rope(1e4)) for windowed in (True, False))
    plain = {"rope_type": "default", "rope_theta": far.theta}
    if far.scaling is not None:
        plain |= {"rope_type": far.scaling.kind, "factor": far.scaling.factor}
    kinds = {"full_attention": plain, "sliding_attention": {"rope_type": "default", "rope_theta": near.theta}}
    return {"rope_parameters": {**kinds, **plain, "rope_local_base_freq": near.theta}}


def _mlx_settings(written: Mapping[str, Any]) -> dict[str, Any]:
    # What transformers 5 does not write, or writes elsewhere: without the first no LFM2 is loaded, and a Llama reads its
    # rotation only here.
    rope = written.get("rope_parameters") or {}
    found: dict[str, Any] = {"block_dim": written["hidden_size"]} if written["model_type"].startswith("lfm2") else {}
    if "rope_theta" in rope:
        found |= {"rope_theta": rope["rope_theta"]}
        found |= {"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {}
    return found


FORMATS = {
    "onnx": Format(
        "onnx",
        ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai"),
        ("lfm2", "lfm2_moe", "llama", "qwen3", "gemma3_text"),
        {"F32": ("-p", "fp32"), "INT8": ("-p", "int8"), "INT4": ("-p", "int4")},
        1,  # its last group may be short
        ("onnxruntime_genai.models.builder", "-e", "cpu", "-i", "{checkpoint}", "-o", "{out}", "-c", "{scratch}"),
        _onnx_settings,
    ),
    "mlx": Format(
        "mlx",
        ("mlx", "mlx_lm"),
        ("lfm2", "lfm2_moe", "llama", "qwen3"),
        {
            "F32": ("--dtype", "float32"),
            "F16": ("--dtype", "float16"),
            "BF16": ("--dtype", "bfloat16"),
            "Q8": ("--dtype", "float16", "-q", "--q-bits", "8"),
            "Q4": ("--dtype", "float16", "-q", "--q-bits", "4"),
        },
        64,
        ("mlx_lm", "convert", "--hf-path", "{checkpoint}", "--mlx-path", "{out}"),
        _mlx_settings,
    ),
    "executorch": Format(
        "executorch",
        ("executorch",),
        ("lfm2", "llama", "qwen3", "gemma3_text"),
        {"F32": ("F32",), "8da8w": ("8da8w",), "8da4w": ("8da4w",)},
        32,
        ("minnow.device.executorch_export", "{checkpoint}", "{out}"),
        lambda _: {},
    ),
}
"""Formats by name."""


@dataclass(frozen=True)
class FolderPlan:
    """A folder that could be written: all is checked but what the converter itself finds.

    Attributes:
        bytes: of the folder, at most, its graph left out.
    """

    checkpoint: Path
    format: Format
    type: str
    bytes: int

    def write(self, folder: Path) -> ExportedFolder:
        """Let the converter write ``folder``, which appears whole or not at all.

        Raises:
            UserError: the disk is full, or the converter failed; the sentence ends with its own last words.
        """
        with whole_folder(folder) as temporary, tempfile.TemporaryDirectory() as scratch:
            temporary.rmdir()  # MLX's converter wants to make it
            source = _restated(self.checkpoint, self.format, Path(scratch) / "checkpoint")
            places = {"checkpoint": source, "out": temporary, "scratch": scratch}
            command = [word.format(**places) for word in self.format.command] + [*self.format.types[self.type]]
            done = subprocess.run(
                [sys.executable, "-m", *command], check=False, capture_output=True, text=True, errors="replace",
                env=worker_environment() | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            if done.returncode or not temporary.is_dir():
                last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
                raise UserError(
                    f"the {self.format.name} converter could not write {self.checkpoint} as {self.type} "
                    f"({last.strip()}); choose another type, or --to gguf"
                )
            size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
        return ExportedFolder(folder, self.type, size)


def plan_folder(checkpoint: Path, format: Format, type: str) -> FolderPlan:
    """Check all that a folder of ``type`` needs before any of it is written.

    Raises:
        UserError: an unknown type, a package is missing, the checkpoint is none, or of a family that the runtime does
            not compute.
    """
    if type not in format.types:
        raise UserError(f"unknown {format.name} type {type!r}; choose one of {', '.join(format.types)}")
    for name in format.modules:
        require(name, format.name)
    settings = check_folder(checkpoint)
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    config = None if isinstance(settings, Mapping) and is_foreign(settings) else ModelConfig.from_hf(settings)
    if config is None or config.family not in format.families:
        raise UserError(
            f"{checkpoint} is a {kind!r} model, and as {format.name} {', '.join(map(repr, format.families))} are "
            "written; use the runtime's own converter, or --to gguf"
        )
    if not type.startswith(("F", "BF")) and config.hidden_size % format.group:
        raise UserError(
            f"{type} rounds {format.group} weights together, and the rows of {checkpoint} are {config.hidden_size} wide; "
            f"choose F32, or a width that is a multiple of {format.group}"
        )
    weights = weight_files(checkpoint)
    entries = (
        sum(tensor.entries for tensor in stored_tensors(weights).values()) + config.vocab_size * config.hidden_size
    )
    # Cosines and sines of all positions, of two rotations at most; tokenizer and settings.
    widest = max((layer.mixer.head_dim for layer in config.layers if isinstance(layer.mixer, Attention)), default=0)
    others = sum(file.stat().st_size for file in checkpoint.iterdir() if file.is_file() and file not in weights)
    return FolderPlan(checkpoint, format, type, _BYTES[type] * entries + 8 * config.max_positions * widest + others)


def _restated(checkpoint: Path, format: Format, place: Path) -> Path:
    """The checkpoint with ``config.json`` as the converter expects it; its other files are linked."""
    written = read_json(checkpoint / "config.json")
    place.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != "config.json":
            os.symlink(file.resolve(), place / file.name)
    (place / "config.json").write_text(json.dumps(written | format.settings(written)))
    return place
