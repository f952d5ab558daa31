"""Published shapes by name, in lower-case hub style; parameter counts equal the published ones to the parameter.

Shapes are those of the published ``config.json`` files. LFM3-1.7B is the default of transformers' ``Lfm3Config``.
"""

from __future__ import annotations

from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)

_SIXTEEN = (2, 5, 8, 10, 12, 14)  # attention layers of the 16-layer LFM2 sizes
_SIX_OF_24 = (2, 6, 10, 14, 18, 21)


def _lfm2(
    hidden: int,
    width: int,
    layers: int,
    attention: tuple[int, ...],
    *,
    vocab: int = 65_536,
    theta: float = 1e6,
    experts: Experts | None = None,
) -> ModelConfig:
    """Convolution layers but for those in ``attention``; with ``experts`` in all but the first two layers."""
    attends = Attention(heads=hidden // 64, kv_heads=8, head_dim=64, rope=Rope(theta))

    def layer(index: int) -> LayerConfig:
        mixer: Mixer = attends if index in attention else ShortConv()
        feed_forward: FeedForward = Dense(width) if experts is None or index < 2 else experts
        return LayerConfig(mixer, feed_forward)

    return ModelConfig(
        family="lfm2" if experts is None else "lfm2_moe",
        vocab_size=vocab,
        hidden_size=hidden,
        layers=tuple(layer(index) for index in range(layers)),
    )


def _lfm3() -> ModelConfig:
    """One global layer in four, one sliding one in four but the first, convolutions of seven taps between."""
    near = Attention(16, 4, 128, Rope(1e4), window=256, output_gate="head")
    far = Attention(16, 4, 128, Rope(1e6, share=0.5, proportional=True), output_gate="head")

    def mixer(index: int) -> Mixer:
        if index % 4 == 2:
            return far
        return near if index % 4 == 0 and index > 0 else ShortConv(7)

    return ModelConfig(
        family="lfm3",
        vocab_size=128_000,
        hidden_size=2048,
        layers=tuple(LayerConfig(mixer(index), Dense(7680)) for index in range(24)),
        sandwich=True,
        pad_id=124_893,
        bos_id=124_894,
        eos_id=124_900,
    )


def _gemma_3_270m() -> ModelConfig:
    """Five sliding layers, then a global one."""
    near = Attention(4, 1, 256, Rope(1e4), window=512)
    far = Attention(4, 1, 256, Rope(1e6))
    return ModelConfig(
        family="gemma3_text",
        vocab_size=262_144,
        hidden_size=640,
        layers=tuple(LayerConfig(near if (index + 1) % 6 else far, Dense(2048, "gelu")) for index in range(18)),
        norm_eps=1e-6,
        norm_offset=True,
        sandwich=True,
        embedding_scale=640**0.5,
        max_positions=32_768,
        pad_id=0,
        bos_id=2,
        eos_id=1,
    )


def _qwen3_600m() -> ModelConfig:
    layer = LayerConfig(Attention(16, 8, 128, Rope(1e6)), Dense(3072))
    return ModelConfig(
        family="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        layers=(layer,) * 28,
        norm_eps=1e-6,
        max_positions=40_960,
        pad_id=None,
        bos_id=151_643,
        eos_id=151_645,
    )


def _qwen3_5_800m() -> ModelConfig:
    """The language model alone; three gated delta nets, then a gated attention layer."""
    delta = GatedDelta(key_heads=16, value_heads=16, key_dim=128, value_dim=128, kernel=4)
    attention = Attention(8, 2, 256, Rope(1e7, share=0.25), output_gate="element")
    return ModelConfig(
        family="qwen3_5_text",
        vocab_size=248_320,
        hidden_size=1024,
        layers=tuple(LayerConfig(delta if (index + 1) % 4 else attention, Dense(3584)) for index in range(24)),
        norm_eps=1e-6,
        norm_offset=True,
        max_positions=262_144,
        pad_id=None,
        bos_id=None,
        eos_id=248_044,
    )


def _smollm2(hidden: int, width: int, layers: int) -> ModelConfig:
    attention = Attention(heads=hidden // 64, kv_heads=hidden // 192, head_dim=64, rope=Rope(1e5), qk_norm=False)
    return ModelConfig(
        family="llama",
        vocab_size=49_152,
        hidden_size=hidden,
        layers=(LayerConfig(attention, Dense(width)),) * layers,
        max_positions=8192,
        pad_id=None,
        bos_id=0,
        eos_id=0,
    )


_8B_EXPERTS = Experts(experts=32, active=4, width=1792)
_350M = _lfm2(1024, 4608, 16, _SIXTEEN)
_1200M = _lfm2(2048, 8192, 16, _SIXTEEN)

PRESETS: dict[str, ModelConfig] = {
    "lfm2-350m": _350M,
    "lfm2-700m": _lfm2(1536, 6912, 16, _SIXTEEN),
    "lfm2-1.2b": _1200M,
    "lfm2-2.6b": _lfm2(2048, 10_752, 30, (2, 5, 9, 13, 17, 21, 24, 27)),
    "lfm2.5-350m": _350M,
    "lfm2.5-1.2b": _1200M,
    "lfm2-8b-a1b": _lfm2(2048, 7168, 24, _SIX_OF_24, experts=_8B_EXPERTS),
    "lfm2.5-8b-a1b": _lfm2(2048, 7168, 24, _SIX_OF_24, vocab=128_000, theta=5e6, experts=_8B_EXPERTS),
    "lfm2-24b-a2b": _lfm2(2048, 11_776, 40, tuple(range(2, 40, 4)), experts=Experts(64, 4, 1536)),
    "lfm3-1.7b": _lfm3(),
    "gemma-3-270m": _gemma_3_270m(),
    "qwen3-0.6b": _qwen3_600m(),
    "qwen3.5-0.8b": _qwen3_5_800m(),
    "smollm2-135m": _smollm2(576, 1536, 30),
    "smollm2-360m": _smollm2(960, 2560, 32),
}

# What a published file holds beside the language model, from its safetensors header.
EXTRAS: dict[str, dict[str, int]] = {"qwen3.5-0.8b": {"vision tower": 100_592_896, "multi-token head": 20_452_864}}


def find_preset(name: str) -> ModelConfig | None:
    """The preset of that name; capitals do not matter."""
    return PRESETS.get(name.lower())
