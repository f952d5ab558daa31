"""Families of models: how each writes its ``config.json`` and names its tensors in a Hugging Face folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minnow.errors import UserError
from minnow.model.config import ModelConfig
from minnow.model.families import lfm2, lfm3, llama, minnow, qwen3_5
from minnow.model.families.slots import Slot


@dataclass(frozen=True)
class Family:
    """One checkpoint format.

    Attributes:
        read, write: between ``config.json`` and a :class:`ModelConfig`.
        tensors: where each of Minnow's tensors stands.
        renamed: parts of tensor names that other writers use, and what they stand for here.
        ignored: beginnings and ends of names of tensors that are no part of the language model.
    """

    read: Callable[[Mapping[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    tensors: Callable[[ModelConfig], Iterator[Slot]]
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def name(self, theirs: str) -> str | None:
        """The name that :attr:`tensors` has for a checkpoint's tensor; None where it is ignored."""
        if any(theirs.startswith(part) or theirs.endswith(part) for part in self.ignored):
            return None
        for other, plain in self.renamed:
            theirs = theirs.replace(other, plain)
        return theirs


_VISION = ("model.visual.", "visual.", "vision_tower.", "model.vision_tower.", "multi_modal_projector.",
           "model.multi_modal_projector.", "mtp.")  # fmt: skip
_NESTED = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head", "lm_head"),
)

FAMILIES: dict[str, Family] = {
    "lfm2": Family(lfm2.read, lfm2.write, lfm2.tensors),
    "lfm2_moe": Family(lfm2.read, lfm2.write, lfm2.tensors),
    "lfm3": Family(lfm3.read, lfm3.write, lfm3.tensors, renamed=((".self_attn.g_proj.", ".self_attn.gate_proj."),)),
    "gemma3_text": Family(llama.read_gemma, llama.write_gemma, llama.tensors, _NESTED, _VISION),
    "qwen3": Family(llama.read, llama.write, llama.tensors),
    "qwen3_5_text": Family(qwen3_5.read, qwen3_5.write, qwen3_5.tensors, _NESTED, _VISION),
    "llama": Family(llama.read, llama.write, llama.tensors, ignored=("rotary_emb.inv_freq",)),
    "minnow": Family(minnow.read, minnow.write, minnow.tensors),
}

WHOLE = {"gemma3": "gemma3_text", "qwen3_5": "qwen3_5_text"}
"""Models that see as well; their ``text_config`` is the language model's."""


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read the ``config.json`` of any family.

    Raises:
        UserError: another model type, a key that is missing, or a form this backbone does not compute.
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else type(config).__name__
    if isinstance(config, Mapping) and kind in WHOLE:
        text = config.get("text_config")
        inner = dict(text) if isinstance(text, Mapping) else {}
        tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        config, kind = {**tied, **inner, "model_type": WHOLE[kind]}, WHOLE[kind]
    if not isinstance(config, Mapping) or kind not in FAMILIES:
        close = difflib.get_close_matches(str(kind), FAMILIES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"convert it to one of {', '.join(FAMILIES)}"
        raise UserError(f"model_type is {kind!r}, which Minnow's backbone does not read; {hint}")
    try:
        return FAMILIES[kind].read(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"config.json is not a complete {kind!r} config ({reason}); restore the file") from error


__all__ = ["FAMILIES", "Family", "Slot", "read_config"]
