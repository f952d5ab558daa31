"""The architectures that a search chooses from, and the limits that cost nothing to check: size, memory, widths."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from minnow.errors import UserError
from minnow.model.config import ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.model.footprint import peak_memory

HEAD = 64
"""Width of a head, LFM2's."""

_GRAIN = {"Q4_0": 32, "Q8_0": 32, "F16": 1}
_FEED_FORWARD_GRAIN = 64


@dataclass(frozen=True)
class Budget:
    """What a design must meet.

    Attributes:
        memory: bytes that llama.cpp may hold, repacked copy, state and buffers included; the host process comes on top.
        params: smallest and largest number of parameters.
        decode: tokens per second after ``decode_depth`` tokens; None for no limit.
        ttft_ms: milliseconds until the first token of a prompt of ``ttft_tokens``; None for no limit.
        context: positions that the memory must hold.
    """

    memory: int
    params: tuple[int, int]
    decode: float | None = None
    decode_depth: int = 128
    ttft_ms: float | None = None
    ttft_tokens: int = 64
    context: int = 4096

    def __post_init__(self) -> None:
        if not 0 < self.params[0] <= self.params[1]:
            raise UserError(f"params run from {self.params[0]:,} to {self.params[1]:,}; give the smaller number first")
        if min(self.decode_depth, self.ttft_tokens) < 1 or self.context < max(self.decode_depth, self.ttft_tokens):
            raise UserError(
                f"a context of {self.context} has no room for a prompt of {max(self.decode_depth, self.ttft_tokens)} "
                "tokens; raise --context or shorten the prompt"
            )


@dataclass(frozen=True)
class Space:
    """The choices; every combination of them is a design. Heads are 64 wide, the head is tied (as LFM2 files store it).

    Attributes:
        attention: shares of the layers that attend, the others are short convolutions; spread evenly, at least one.
        ratios: feed-forward's width over the model's.
    """

    vocab: tuple[int, ...] = (32_768, 65_536)
    widths: tuple[int, ...] = (384, 448, 512, 576, 640, 704, 768, 896, 1024)
    depths: tuple[int, ...] = tuple(range(6, 33, 2))
    attention: tuple[float, ...] = (0.17, 0.25, 0.375, 0.5, 1.0)
    kv_heads: tuple[int, ...] = (1, 2, 4, 8)
    ratios: tuple[float, ...] = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
    kernels: tuple[int, ...] = (3,)
    kinds: tuple[str, ...] = ("Q4_0",)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in _GRAIN:
                raise UserError(f"designs are searched in {', '.join(_GRAIN)}, not in {kind!r}")
            bad = [width for width in self.widths if width % _GRAIN[kind] or width % HEAD]
            if bad:
                raise UserError(
                    f"a width of {bad[0]} is no multiple of {HEAD}, which heads of {HEAD} and blocks of {_GRAIN[kind]} in "
                    f"{kind} ask for; use {max(HEAD, bad[0] // HEAD * HEAD)}"
                )


@dataclass(frozen=True)
class Design:
    """One architecture and the type of its file."""

    width: int
    depth: int
    attention_layers: int
    kv_heads: int
    feed_forward: int
    vocab: int
    kernel: int = 3
    kind: str = "Q4_0"

    @property
    def name(self) -> str:
        """Such as ``640w20d5a4kv-2560f-32768v``, unique within one kernel and type."""
        return f"{self.width}w{self.depth}d{self.attention_layers}a{self.kv_heads}kv-{self.feed_forward}f-{self.vocab}v"

    @property
    def layers(self) -> tuple[bool, ...]:
        """Which layers attend: evenly spread, none at the very start where there is a choice, as in LFM2."""
        places = {int((i + 0.5) * self.depth / self.attention_layers) for i in range(self.attention_layers)}
        return tuple(i in places for i in range(self.depth))

    @property
    def parameters(self) -> int:
        """In closed form; the accounting of :func:`config` says the same."""
        d, heads = self.width, self.width // HEAD
        conv = (self.depth - self.attention_layers) * (4 * d * d + d * self.kernel)
        attention = self.attention_layers * (2 * d * heads * HEAD + 2 * d * self.kv_heads * HEAD + 2 * HEAD)
        return self.vocab * d + d + self.depth * (3 * d * self.feed_forward + 2 * d) + conv + attention

    def config(self, shrink: int = 1) -> ModelConfig:
        """The LFM2 shape; with attention in all layers Qwen3's, which is the same and which llama.cpp runs.

        Args:
            shrink: divides widths and heads' widths, not their number; layers and proportions stay.
        """
        config = lfm2_config(
            self.vocab,
            self.width // shrink,
            self.feed_forward // shrink,
            tuple("full_attention" if attends else "conv" for attends in self.layers),
            self.width // HEAD,
            self.kv_heads,
            HEAD // shrink,
            self.kernel,
        )
        return replace(config, family="qwen3") if all(self.layers) else config

    def memory(self, context: int) -> int:
        """Bytes that llama.cpp holds at most, see :func:`minnow.model.footprint.peak_memory`."""
        return peak_memory(self.config(), self.kind, context)["total"]

    def prior(self) -> float:
        """A first guess at quality, smaller is better: the size term of Hoffmann's law (2203.15556) over the parameters
        outside the embedding, and 2% for every e-fold squared between width over depth and 32 (2402.14905 finds small
        models best deep and thin, 2001.08361 that the shape matters little)."""
        outside = self.parameters - self.vocab * self.width
        return float(406.4 * outside**-0.339 * (1 + 0.02 * math.log(self.width / self.depth / 32) ** 2))


def designs(space: Space) -> Iterator[Design]:
    """Every combination, each design once."""
    choices = (space.kinds, space.vocab, space.widths, space.depths, space.attention, space.kv_heads, space.ratios)
    seen = set()
    for kind, vocab, width, depth, share, kv, ratio, kernel in itertools.product(*choices, space.kernels):
        if (width // HEAD) % kv:
            continue
        attending = min(depth, max(1, round(share * depth)))
        wide = round(ratio * width / _FEED_FORWARD_GRAIN) * _FEED_FORWARD_GRAIN
        made = Design(width, depth, attending, kv, wide, vocab, kernel, kind)
        if made not in seen:
            seen.add(made)
            yield made


@dataclass(frozen=True)
class Fitting:
    """What the limits on size and memory leave.

    Attributes:
        cut: how many designs each limit cut.
    """

    kept: list[Design]
    cut: Counter[str]


def fitting(space: Space, budget: Budget) -> Fitting:
    """Designs within size and memory.

    Raises:
        UserError: none; the sentence says which limit, and by how much.
    """
    everything = list(designs(space))
    low, high = budget.params
    sized = [one for one in everything if low <= one.parameters <= high]
    if not sized:
        nearest = min(everything, key=lambda one: max(low / one.parameters, one.parameters / high))
        raise UserError(
            f"no design has {low:,} to {high:,} parameters: the nearest, {nearest.name}, has {nearest.parameters:,}; "
            "widen --params, or give other --vocab, --widths or --depths"
        )
    memory = {one: one.memory(budget.context) for one in sized}
    kept = [one for one in sized if memory[one] <= budget.memory]
    if not kept:
        raise UserError(too_large(memory, budget))
    cut = Counter({"params": len(everything) - len(sized), "memory": len(sized) - len(kept)})
    return Fitting(kept, cut)


def too_large(memory: Mapping[Design, int], budget: Budget) -> str:
    """What to say where no design of the right size meets the memory limit; ``memory`` in bytes."""
    least = min(memory, key=lambda one: memory[one])
    return (
        f"no design meets --memory {budget.memory / 1e6:,.0f}MB: the smallest within --params, {least.name} in "
        f"{least.kind}, needs {memory[least] / 1e6:,.0f} MB for {budget.context:,} positions, "
        f"{memory[least] / budget.memory - 1:.0%} more; lower --params, --context or --vocab, or raise --memory"
    )
