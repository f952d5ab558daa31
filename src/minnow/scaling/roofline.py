"""A rank's costs from published numbers: FLOPs over what products reach, bytes over what memory and links move."""

from __future__ import annotations

from minnow.model.accounting import mean_seen, recurrent_flops
from minnow.model.config import Attention, Experts, FeedForward
from minnow.model.inventory import part_tensors
from minnow.scaling.accelerators import Accelerator
from minnow.scaling.job import Group, Job, Kind, Part
from minnow.train.memory import part_values
from minnow.train.vocabulary import BYTES_PER_LOGIT, CHUNKS_IN_MEMORY

# What is reached of a published number: commonly seen, fitted to nothing.
MEMORY_RATE = 0.8  # of a pass over memory
LINK = 0.75  # of NVLink and of the network, by NCCL's large messages
SCORES = 0.4  # of the peak, by attention's and recurrent layers' kernels
EXPERTS = 0.6  # of the rate of dense products, by grouped ones: asked for, measured nowhere yet

RUNS = 0.77
"""Of the speed that follows from the shares above, what whole training runs reach: the geometric mean over five published
ones (benchmarks/cluster.py --published), of which each is foretold to between -26% and +38% by the other four."""

START, HOP = 15e-6, 3e-6
"""Seconds of a collective before its first byte, and per further rank."""

_TOUCHES = 4
"""Times that a kept activation goes over memory: written, read going back, its gradient written and read."""

_MOVED, _SUM = 28, 12
"""Bytes over memory per weight: of an update (master, gradient and moments read, and written back), and of a sum."""

_BASE = 1.5e9
"""Bytes of a GPU that the driver's context, libraries and NCCL's buffers take."""


class Roofline:
    """See :data:`minnow.scaling.cluster.Costs`; computes in bfloat16, compiled."""

    item, fused, logit, overlaps, process = 2, True, BYTES_PER_LOGIT, True, _BASE

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.peak, self.memory = accelerator.flops, accelerator.memory
        self._scores = accelerator.flops * SCORES * RUNS
        self._products = accelerator.flops * accelerator.products * RUNS
        self._bytes = accelerator.memory_rate * MEMORY_RATE * RUNS

    def chunk(self, vocabulary: int) -> int:
        return max(1, int(self.memory / CHUNKS_IN_MEMORY / BYTES_PER_LOGIT) // vocabulary)

    def passes(self, job: Job, part: Part, rows: float) -> tuple[float, float]:
        """Forward and backward; two of a backward pass's products to one of a forward pass."""
        tokens, width = rows * job.length, job.config.hidden_size
        weights = sum(tensor.active_parameters for tensor in part_tensors(part, width) if tensor.role == "matrix")
        rate = self._products * (EXPERTS if isinstance(part, Experts) else 1)
        forward = tokens * 2 * weights / rate
        if isinstance(part, Attention):
            scores = 4.0 * part.heads * part.head_dim * mean_seen(part, job.length)
        else:
            scores = 0 if isinstance(part, FeedForward) else recurrent_flops(part)
        forward += tokens * scores / self._scores
        traffic = tokens * self.item * _TOUCHES * (2 * width + part_values(part, width)) / self._bytes
        return forward + traffic / 3, 2 * forward + 2 * traffic / 3

    def ends(self, job: Job, rows: float) -> float:
        tokens, vocabulary, width = rows * job.length, job.config.vocab_size, job.config.hidden_size
        products = tokens * 6 * vocabulary * width / self._products
        return products + tokens * (2 * BYTES_PER_LOGIT * vocabulary + 8 * width) / self._bytes

    def update(self, job: Job) -> float:
        return _MOVED * job.parameters / self._bytes + job.orthogonal[1] / self._products

    def sums(self, job: Job) -> float:
        return _SUM * job.parameters / self._bytes

    def collective(self, kind: Kind, size: float, group: Group) -> float:
        n, inside, link, network = group.ranks, group.inside, self.accelerator.link, self.accelerator.network
        start = START + HOP * (n - 1)
        if kind == "exchange":  # what goes to other nodes takes a rank's own network card, beside the rest
            far = size * (n - inside) / n / (network * LINK) if n > inside else 0.0
            return start + max(far, size * (inside - 1) / n / (link * LINK))
        rate = LINK * (link if n <= inside else min(link, inside * network))  # a ring through all of a node's cards
        return (2 if kind == "all-reduce" else 1) * (start + size * (n - 1) / n / rate)
