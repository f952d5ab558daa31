"""Published LFM2 shapes; parameter counts equal the published ones to the parameter."""

from __future__ import annotations

from minnow.model.config import ATTENTION, CONV, ModelConfig


def _lfm2(hidden: int, width: int, layers: int, attention: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(
        vocab_size=65_536,
        hidden_size=hidden,
        intermediate_size=width,
        layer_types=tuple(ATTENTION if i in attention else CONV for i in range(layers)),
        num_heads=hidden // 64,
        num_kv_heads=8,
        head_dim=64,
    )


_SIXTEEN = (2, 5, 8, 10, 12, 14)

PRESETS: dict[str, ModelConfig] = {
    "LFM2-350M": _lfm2(1024, 4608, 16, _SIXTEEN),
    "LFM2-700M": _lfm2(1536, 6912, 16, _SIXTEEN),
    "LFM2-1.2B": _lfm2(2048, 8192, 16, _SIXTEEN),
    "LFM2-2.6B": _lfm2(2048, 10_752, 30, (2, 5, 9, 13, 17, 21, 24, 27)),
}
