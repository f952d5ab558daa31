"""Write an ``lfm2`` checkpoint as one GGUF file that llama.cpp opens.

Own writer over the ``gguf`` package: llama.cpp's converter is not on PyPI and refuses tokenizers it has not met.
Types per tensor:

- vectors (norms) and short-convolution kernels are always F32, as llama.cpp's converter has them;
- every other matrix takes the asked type where its row length is a multiple of the block, F16 otherwise;
- in Q4_0 the tied embedding is Q8_0. llama.cpp gives the head a finer type than the rest too (Q6_K, and Q8_0 where
  the width is not a multiple of 256); Q6_K cannot be written from Python.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minnow.errors import UserError
from minnow.files import read_json, whole_file
from minnow.model.config import ATTENTION, Attention, ModelConfig, ShortConv

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
PRE_TOKENIZER = "lfm2"  # llama.cpp's name for the Llama-3 split expression
_PADDED_ROWS = 128  # an embedding may be rounded up by fewer rows than this; a larger gap is another tokenizer
# Token types of tokenizer.ggml.token_type.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class GgufFile:
    """One exported file.

    ``tensors`` maps each GGUF tensor name to its type; ``kept_f16`` names the matrices that stayed F16 because their
    row length is not a multiple of the block of ``type``.
    """

    file: Path
    type: str
    bytes: int
    tensors: dict[str, str]
    kept_f16: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as GGUF stores it: tokens by id, their types, merges as "left right"."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    chat_template: str | None


def export_gguf(checkpoint: Path, file: Path, type: str = "F16") -> GgufFile:
    """Write ``checkpoint`` (Hugging Face ``lfm2`` folder) to ``file``, which appears whole or not at all.

    Args:
        type: one of :data:`TYPES`.

    Raises:
        UserError: the ``gguf`` package is missing; unknown type; a file of the checkpoint is missing or damaged; the
            network has no attention layer (llama.cpp would abort); tokenizer and embedding do not belong together.
    """
    if type not in TYPES:
        raise UserError(f"unknown GGUF type {type!r}; choose one of {', '.join(TYPES)}")
    if importlib.util.find_spec("gguf") is None:
        raise UserError('the "gguf" package is not installed; run: pip install "minnow[export]"')
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is not a checkpoint folder; give a folder with config.json and model.safetensors"
        )
    config = ModelConfig.from_hf(read_json(checkpoint / "config.json"))
    if config.family != "lfm2":
        raise UserError(
            f"{checkpoint} is a {config.family!r} model and 'minnow export' writes 'lfm2' files; convert other families "
            "with llama.cpp's own convert_hf_to_gguf.py"
        )
    if ATTENTION not in config.layer_types:
        raise UserError(
            f"{checkpoint} has no attention layer and llama.cpp runs lfm2 only with at least one; "
            "put a 'full_attention' entry in layer_types and train again"
        )
    vocabulary = read_vocabulary(checkpoint, config.vocab_size)
    weights = _read_weights(checkpoint)
    if len(weights["model.embed_tokens.weight"]) != config.vocab_size:
        raise UserError(
            f"{checkpoint}: config.json says vocab_size {config.vocab_size} but the embedding has "
            f"{len(weights['model.embed_tokens.weight'])} rows; restore the config.json written with these weights"
        )

    from gguf import GGUFWriter

    with whole_file(file) as temporary:
        writer = GGUFWriter(temporary, "lfm2")
        _add_hyperparameters(writer, config, checkpoint, type)
        _add_vocabulary(writer, vocabulary, config)
        tensors, kept = _add_tensors(writer, weights, config, type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        size = temporary.stat().st_size
    return GgufFile(file, type, size, tensors, tuple(kept))


def read_vocabulary(checkpoint: Path, vocab_size: int) -> Vocabulary:
    """Read ``tokenizer.json`` and the chat template of a checkpoint for an embedding of ``vocab_size`` rows.

    Raises:
        UserError: not a byte-level BPE, ids with holes, or a vocabulary that does not fit the embedding.
    """
    data = read_json(checkpoint / "tokenizer.json")
    model = data.get("model") or {}
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(data.get("pre_tokenizer")):
        raise UserError(
            f"{checkpoint / 'tokenizer.json'} is not a byte-level BPE; export reads the tokenizers that "
            "'minnow' and LFM2 use, train one with the recipe's tokenizer stage"
        )
    by_id = {index: (token, _NORMAL) for token, index in model["vocab"].items()}
    for added in data.get("added_tokens", []):
        by_id[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    count = len(by_id)
    if set(by_id) != set(range(count)):
        raise UserError(
            f"{checkpoint / 'tokenizer.json'} has holes in its ids; restore it or train the tokenizer again"
        )
    if not vocab_size - _PADDED_ROWS < count <= vocab_size:
        raise UserError(
            f"{checkpoint}: the tokenizer has {count} ids but config.json says vocab_size {vocab_size}; "
            "this tokenizer belongs to another checkpoint, put the right tokenizer.json back"
        )
    entries = [by_id[i] for i in range(count)]
    entries += [(f"<|unused_{i}|>", _UNUSED) for i in range(count, vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    return Vocabulary([t for t, _ in entries], [k for _, k in entries], merges, _chat_template(checkpoint))


def _chat_template(checkpoint: Path) -> str | None:
    own = checkpoint / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    settings = checkpoint / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.exists() else None
    return template if isinstance(template, str) else None


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for part in sorted(checkpoint.glob("*.safetensors")):
        try:
            weights |= load_file(part)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{part} is damaged or cut short ({error}); restore it or train the stage again") from error
    if "model.embed_tokens.weight" not in weights:
        raise UserError(f"{checkpoint} holds no lfm2 weights (model.safetensors); give a complete checkpoint folder")
    return weights


def _add_hyperparameters(writer: GGUFWriter, config: ModelConfig, checkpoint: Path, type: str) -> None:
    from gguf import LlamaFileType

    writer.add_name(checkpoint.resolve().name)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    mixers = [layer.mixer for layer in config.layers]
    attention = next(mixer for mixer in mixers if isinstance(mixer, Attention))
    writer.add_feed_forward_length(config.layers[0].feed_forward.width)
    writer.add_head_count(attention.heads)
    # A zero is how llama.cpp tells a convolution layer from an attention layer.
    writer.add_head_count_kv([mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers])
    writer.add_rope_freq_base(attention.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(next((mixer.kernel for mixer in mixers if isinstance(mixer, ShortConv)), 3))
    writer.add_file_type(LlamaFileType.ALL_F32 if type == "F32" else LlamaFileType[f"MOSTLY_{type}"])
    writer.add_quantization_version(2)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, config: ModelConfig) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(1 if config.bos_id is None else config.bos_id)
    writer.add_eos_token_id(config.eos_id)
    writer.add_pad_token_id(0 if config.pad_id is None else config.pad_id)
    # The chat template writes <|startoftext|> itself, and encode() adds nothing: so does llama.cpp with this key,
    # which outranks the pre-tokenizer's own default of true.
    writer.add_add_bos_token(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _add_tensors(
    writer: GGUFWriter, weights: dict[str, torch.Tensor], config: ModelConfig, type: str
) -> tuple[dict[str, str], list[str]]:
    from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants

    names = get_tensor_name_map(MODEL_ARCH.LFM2, config.num_layers)
    tensors: dict[str, str] = {}
    kept: list[str] = []
    for source, tensor in weights.items():
        if source == "lm_head.weight":
            if not torch.equal(tensor, weights["model.embed_tokens.weight"]):
                raise UserError(
                    "the head is not tied to the embedding; lfm2 files share one matrix, tie them and retrain"
                )
            continue
        name = names.get_name(source, try_suffixes=(".weight",))
        if name is None:
            raise UserError(f"tensor {source!r} is not part of an lfm2 network; export the checkpoint it came from")
        array = tensor.float().squeeze().numpy() if ".conv.conv." in source else tensor.float().numpy()
        kind = GGMLQuantizationType[type]
        if array.ndim == 1 or ".conv.conv." in source:
            kind = GGMLQuantizationType.F32
        else:
            if type == "Q4_0" and source == "model.embed_tokens.weight":
                kind = GGMLQuantizationType.Q8_0
            if array.shape[-1] % GGML_QUANT_SIZES[kind][0]:
                kind = GGMLQuantizationType.F16
                kept.append(name)
        tensors[name] = kind.name
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    return tensors, kept


def gguf_metadata(file: Path) -> dict[str, Any]:
    """What a GGUF file says of itself.

    Returns:
        ``architecture``, ``context_length``, ``vocab_size``, ``eos_id``, ``parameters`` and ``type`` (the one it was
        exported as).

    Raises:
        UserError: missing file, or not a whole GGUF file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError('the "gguf" package is not installed; run: pip install "minnow[export]"')
    from gguf import GGUFReader, LlamaFileType

    if not file.is_file():
        raise UserError(f"{file} does not exist; give a .gguf file written by 'minnow export'")
    try:
        reader = GGUFReader(file)
        architecture = reader.fields["general.architecture"].contents()
        file_type = LlamaFileType(reader.fields["general.file_type"].contents()).name
        return {
            "architecture": architecture,
            "context_length": int(reader.fields[f"{architecture}.context_length"].contents()),
            "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
            "eos_id": int(reader.fields["tokenizer.ggml.eos_token_id"].contents()),
            "parameters": int(sum(int(t.n_elements) for t in reader.tensors)),
            "type": file_type.removeprefix("MOSTLY_").removeprefix("ALL_"),
        }
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{file} is not a whole GGUF file ({error}); export the checkpoint again") from error
