"""Published small models to compare with: parameters by part, counted from their safetensors headers."""

from __future__ import annotations

from dataclasses import dataclass

from minnow.model.accounting import parameter_parts
from minnow.model.presets import PRESETS


@dataclass(frozen=True)
class Reference:
    """One published model.

    Attributes:
        parts: parameters by part, as :func:`minnow.model.accounting.parameter_parts` names them; a tied embedding is
            counted once, and ``conv`` holds gated delta nets as well.
        checkpoint: parameters of the whole published file where it holds more than the language model.
    """

    name: str
    parts: dict[str, int]
    checkpoint: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())


REFERENCES: tuple[Reference, ...] = (
    Reference(
        "Gemma 3 270M",
        {"embedding": 167_772_160, "attention": 29_500_416, "conv": 0, "mlp": 70_778_880, "norms": 46_720},
    ),
    Reference(
        "Qwen3.5-0.8B (text)",
        {
            "embedding": 254_279_680,
            "attention": 44_043_264,
            "conv": 189_778_752,
            "mlp": 264_241_152,
            "norms": 50_176,
        },
        checkpoint=873_438_784,  # with the vision tower and the multi-token head
    ),
    Reference("LFM2-350M", parameter_parts(PRESETS["LFM2-350M"])),
)
