"""What a training step holds in memory, and how many rows go through the model at once so that it fits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    GatedLinear,
    Mixer,
    ModelConfig,
    ShortConv,
)
from minnow.train.precision import compute_dtype
from minnow.train.vocabulary import BYTES_PER_LOGIT, positions_at_once

# Bytes that plain torch keeps for the backward pass where the fused operations keep one value, by bytes of a value;
# counted on convolution, attention and mixed stacks. It works in float32 inside either way.
_UNFUSED_BYTES = {2: 5.5, 4: 6.2}

CONTROL_GROUP = Path("/sys/fs/cgroup")

USABLE = 0.9
"""Of the free memory, what a plan may count on: allocators keep some, and what else runs may want more."""


@dataclass(frozen=True)
class MicroBatch:
    """How a step's rows go through the model.

    Attributes:
        rows: at once; gradients of several such parts add up to the step's.
        needed: bytes that the step takes beside weights and optimiser, at its peak.
        free: bytes that were there for it.
    """

    rows: int
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= USABLE * self.free


def plan_micro_batch(
    config: ModelConfig,
    rows: int,
    length: int,
    muon: bool,
    free: int,
    device: str = "cpu",
    checkpointed: bool = False,
) -> MicroBatch:
    """The most rows at once, of ``rows`` and its halvings, with which a step fits ``free`` bytes; else one row.

    Args:
        free: see :func:`free_memory`, once weights and optimiser are there.
        checkpointed: see :func:`activation_bytes`.
    """
    at_once = rows
    while True:
        memory = training_memory(config, at_once, length, muon, device, checkpointed)
        sums = memory["masters"] if at_once < rows else 0  # gradients of several parts are added in float32
        needed = sums + memory["peak"] - sum(memory[name] for name in ("masters", "weights", "optimiser"))
        chosen = MicroBatch(at_once, needed, free)
        if chosen.fits or at_once == 1:
            return chosen
        at_once = (at_once + 1) // 2


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take on ``device``: of the system, and within its control group's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    system = _numbers(Path("/proc/meminfo")).get("MemAvailable:")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if system is None else 1024 * system
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or "max"
        return free
    cached = _numbers(CONTROL_GROUP / "memory.stat").get("inactive_file", 0)  # counts as used, and is given up first
    return min(free, limit - used + cached)


def _numbers(table: Path) -> dict[str, int]:
    """The first number of each line by the word before it."""
    lines = table.read_text().splitlines() if table.exists() else []
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def training_memory(
    config: ModelConfig, rows: int, length: int, muon: bool, device: str = "cpu", checkpointed: bool = False
) -> dict[str, int]:
    """Bytes that training holds, by purpose, for a step of ``rows`` rows of ``length`` tokens in one batch.

    ``update`` is what Muon needs beside the gradients; it comes when ``activations`` and ``logits`` have gone, so the
    ``peak`` holds the larger of the two.
    """
    with torch.device("meta"):
        model = Backbone(config)
    everything = sum(weight.numel() for weight in model.parameters())
    matrices = model.matrices() if muon else {}
    orthogonal = sum(weight.numel() for name, weight in model.named_parameters() if name in matrices)
    item = compute_dtype().itemsize
    memory = {
        "masters": 4 * everything,
        "weights": item * everything if item < 4 else 0,
        "optimiser": 4 * everything + 4 * (everything - orthogonal),
        "gradients": item * everything,
        "activations": activation_bytes(config, rows * length, item, checkpointed=checkpointed),
        "logits": logit_bytes(
            config,
            min(rows * length, positions_at_once(config.vocab_size, torch.device(device))),
            2 if item == 2 else BYTES_PER_LOGIT,
        ),
        "update": (4 + 3 * item) * orthogonal,
    }
    held = sum(memory[name] for name in ("masters", "weights", "optimiser", "gradients"))
    return memory | {"peak": held + max(memory["activations"] + memory["logits"], memory["update"])}


def activation_bytes(
    config: ModelConfig, tokens: int, item: int, fused: bool | None = None, checkpointed: bool = False
) -> int:
    """Bytes kept between the forward and the backward pass of ``tokens`` tokens, ``item`` bytes a value.

    Counts the inputs that the fused operations and the linear maps save; pure torch keeps a fixed factor more.

    Args:
        fused: whether fused operations serve; None: as on this machine's processor.
        checkpointed: only what enters mixers and feed-forwards is kept, and what one of them makes when it runs again.
    """
    width = config.hidden_size
    parts = [part_values(part, width) for layer in config.layers for part in (layer.mixer, layer.feed_forward)]
    values = (3 + 4 * config.num_layers) * width + (max(parts) if checkpointed else sum(parts))
    if fused is None:
        fused = kernels.describe().startswith("fused")
    return round(tokens * values * (item if fused else _UNFUSED_BYTES[item]))


def part_values(part: Mixer | FeedForward, width: int) -> int:
    """Values per token that a mixer or feed-forward keeps for its backward pass; linear attention keeps more than this."""
    match part:
        case Attention():
            return 3 * part.head_dim * (part.heads + part.kv_heads)
        case ShortConv():
            return 4 * width
        case GatedDelta():
            return 12 * (part.key_heads * part.key_dim + part.value_heads * part.value_dim)
        case GatedLinear():
            return 12 * part.heads * (part.key_dim + part.value_dim)
        case Dense():
            return 3 * part.width
        case Experts():
            # The router's input and the experts' outputs are kept in float32, twice as long as the rest in half precision.
            return part.active * (3 * part.width + 3 * width) + 2 * width


def logit_bytes(config: ModelConfig, positions: int, each: int) -> int:
    """The logits of one chunk of positions and their gradients, ``each`` bytes a logit; the head's gradient in float32."""
    return each * positions * config.vocab_size + 4 * config.vocab_size * config.hidden_size
