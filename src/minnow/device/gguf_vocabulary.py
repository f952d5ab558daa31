"""A checkpoint's tokenizer as GGUF stores it, and llama.cpp's name for the way it splits text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minnow.data.chat import BOS, END, PAD, SPECIAL_TOKENS
from minnow.data.tokenizer import LLAMA3_SPLIT, Tokenizer
from minnow.errors import UserError
from minnow.files import read_json
from minnow.model.config import ModelConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Types of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    LLAMA3_SPLIT: "llama-bpe",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+{_TAIL}": "qwen2",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+{_TAIL}": "qwen35",
}
"""Split expressions before byte-level BPE, and what llama.cpp calls them."""

_PADDED_SHARE = 20  # at most one in so many rows of an embedding may be padding; a larger gap is another tokenizer
_PADDED_ROWS = 128  # …or so many
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"  # SentencePiece's


@dataclass(frozen=True)
class Vocabulary:
    """A BPE as GGUF stores it.

    Attributes:
        model, pre: ``"gpt2"`` (byte-level) and the name of its split; or ``"llama"`` (SentencePiece's form) and
            ``"default"``.
        tokens, types: by id.
        merges: "left right" by rank (byte-level); ``scores``: by id (SentencePiece's form).
        ends: what ends an answer, the token that ends a turn first.
        adds_bos: a text that is encoded begins with ``bos``.
        space_prefix: a text that is encoded begins with a space; None where the form knows none.
        chat_template: one, or several by name, as ``tokenizer_config.json`` has them.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bos: int | None = None
    pad: int | None = None
    ends: tuple[int, ...] = ()
    adds_bos: bool = False
    space_prefix: bool | None = None
    chat_template: str | list[Mapping[str, str]] | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the keys of the vocabulary."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.bos is not None:
            writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.ends[0])
        if len(self.ends) > 1:
            writer.add_eot_token_id(self.ends[1])
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.adds_bos)  # outranks llama.cpp's own default for the pre-tokenizer
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(checkpoint: Path, config: ModelConfig) -> Vocabulary:
    """The tokenizer, end tokens and chat template of a checkpoint folder.

    Raises:
        UserError: not a BPE that llama.cpp reads, a split expression it does not know, ids with holes, or a
            vocabulary that does not fit the embedding.
    """
    file = checkpoint / "tokenizer.json"
    data = read_json(file)
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise UserError(f"{file} is a {model.get('type')} tokenizer and llama.cpp files are written for BPE only")
    entries = _entries(file, data, config.vocab_size)
    known = _ids(checkpoint, config, data) | {
        "tokens": [token for token, _ in entries],
        "types": [kind for _, kind in entries],
        "chat_template": _chat_template(checkpoint),
    }
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    if "ByteLevel" in json.dumps(data.get("pre_tokenizer")):
        pre = _pre_tokenizer(file, data.get("pre_tokenizer"))
        name = "lfm2" if pre == "llama-bpe" and config.family.startswith("lfm2") else pre
        return Vocabulary("gpt2", name, merges=merges, **known)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    scores = [-float(ranks.get(token, len(merges))) for token, _ in entries]
    return Vocabulary("llama", "default", scores=scores, space_prefix=_space_prefix(file, data), **known)


def _ids(checkpoint: Path, config: ModelConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Start, padding and end tokens, and whether a text begins with the first.

    A tokenizer of LFM2's form is known by its tokens; opening it would take more memory than writing the file.
    """
    special = {each["content"]: each["id"] for each in data.get("added_tokens", [])}
    if not all(token in special for token in SPECIAL_TOKENS):
        words = Tokenizer.load(checkpoint)
        bos, pad, adds_bos = words.bos_id, words.pad_id, words.adds_bos
        ends = dict.fromkeys((words.eos_id, *sorted(words.stop_ids)))
    else:
        steps = data.get("post_processor") or {}
        starts = [step["single"][0] for step in steps.get("processors", [steps]) if step.get("single")]
        adds_bos = any(start.get("SpecialToken", {}).get("id") == BOS for start in starts)
        bos, pad, ends = special[BOS], special[PAD], dict.fromkeys([special[END]])
    return {
        "bos": bos if config.bos_id is None else config.bos_id,
        "pad": pad if config.pad_id is None else config.pad_id,
        "ends": tuple(ends),
        "adds_bos": adds_bos,
    }


def _entries(file: Path, data: Mapping[str, Any], vocab_size: int) -> list[tuple[str, int]]:
    """Token and type by id, padded to the embedding's rows."""
    model = data["model"]
    byte, unknown = bool(model.get("byte_fallback")), model.get("unk_token")

    def kind(token: str) -> int:
        if byte and _BYTE.fullmatch(token):
            return BYTE
        return UNKNOWN if byte and token == unknown else NORMAL

    by_id = {index: (token, kind(token)) for token, index in model["vocab"].items()}
    for added in data.get("added_tokens", []):
        token, kept = added["content"], by_id.get(added["id"], ("", NORMAL))[1]
        # llama.cpp looks for what users defined in the text as it was written.
        plain = (token.replace(_SPACE, " "), USER_DEFINED)
        by_id[added["id"]] = (token, kept if kept == UNKNOWN else CONTROL) if added["special"] else plain
    count = len(by_id)
    if set(by_id) != set(range(count)):
        raise UserError(f"{file} has holes in its ids; restore it or train the tokenizer again")
    if not 0 <= vocab_size - count <= max(_PADDED_ROWS, vocab_size // _PADDED_SHARE):
        raise UserError(
            f"{file.parent}: the tokenizer has {count} ids but config.json says vocab_size {vocab_size}; "
            "this tokenizer belongs to another checkpoint, put the right tokenizer.json back"
        )
    return [by_id[i] for i in range(count)] + [(f"<|unused_{i}|>", UNUSED) for i in range(count, vocab_size)]


def _pre_tokenizer(file: Path, written: Mapping[str, Any]) -> str:
    """llama.cpp's name for what comes before byte-level BPE."""
    parts = written.get("pretokenizers", [written])
    *before, last = parts
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if last.get("use_regex", True):
            if not before:
                return "gpt-2"
            if before == [{"type": "Digits", "individual_digits": True}]:
                return "smollm"
        elif len(before) == 1 and before[0].get("type") == "Split":
            split = before[0]
            name = PRE_TOKENIZERS.get(split["pattern"].get("Regex", ""))
            if name and split["behavior"] == "Isolated" and not split["invert"]:
                return name
    shown = next(
        (part["pattern"] for part in parts if part.get("type") == "Split"), [part.get("type") for part in parts]
    )
    raise UserError(
        f"{file} splits text by {shown}, which llama.cpp has no name for, so it would cut texts elsewhere; use a "
        f"tokenizer with the split of {', '.join(sorted({*PRE_TOKENIZERS.values(), 'gpt-2', 'smollm'}))} "
        "(Minnow's tokenizer stage trains llama-bpe's)"
    )


def _space_prefix(file: Path, data: Mapping[str, Any]) -> bool:
    """Whether SentencePiece's form puts a space before a text."""
    normalizer, pre = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    metaspace = pre.get("type") == "Metaspace"
    others = [step for step in steps if step != replaces and step != {"type": "Prepend", "prepend": _SPACE}]
    whole = not pre or metaspace or (pre.get("type") == "Split" and pre.get("pattern") == {"String": " "})
    if others or not whole or not data["model"].get("byte_fallback") or not (metaspace or replaces in steps):
        raise UserError(
            f"{file} is neither a byte-level BPE nor in SentencePiece's form ({_SPACE} for spaces, bytes for what is "
            "unknown), and llama.cpp reads no other BPE; use a checkpoint with such a tokenizer"
        )
    if metaspace:
        return pre.get("prepend_scheme", "always") != "never"
    return len(steps) > 1


def _chat_template(checkpoint: Path) -> Any:
    own = checkpoint / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    settings = checkpoint / "tokenizer_config.json"
    return read_json(settings).get("chat_template") if settings.exists() else None
