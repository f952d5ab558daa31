"""Published small models to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from minnow.model.accounting import parameter_parts
from minnow.model.presets import EXTRAS, PRESETS


@dataclass(frozen=True)
class Reference:
    """One published model.

    Attributes:
        parts: parameters by part, as :func:`minnow.model.accounting.parameter_parts` names them.
        checkpoint: parameters of the whole published file where it holds more than the language model.
    """

    name: str
    parts: dict[str, int]
    checkpoint: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def _reference(name: str, preset: str) -> Reference:
    parts = parameter_parts(PRESETS[preset])
    extras = sum(EXTRAS.get(preset, {}).values())
    return Reference(name, parts, sum(parts.values()) + extras if extras else None)


REFERENCES: tuple[Reference, ...] = (
    _reference("Gemma 3 270M", "gemma-3-270m"),
    _reference("Qwen3.5-0.8B (text)", "qwen3.5-0.8b"),
    _reference("LFM2-350M", "lfm2-350m"),
)
