"""What training on many ranks takes: the memory of a rank, the seconds of a step, and the mesh that is fastest.

Pure functions of a model's shape and of a machine's :class:`Costs`, which are published (:mod:`roofline`) or measured
(:mod:`measured`). What lies where is that of :mod:`minnow.train.sharding`: rows of float32 masters, gradients and moments
on every rank; a layer's weights gathered in the compute type while a pass goes through it; gradients reduced in float32
after every pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from minnow.errors import UserError
from minnow.model.config import Attention, Experts
from minnow.model.inventory import kv_values
from minnow.scaling.job import Group, Job, Kind, Mesh
from minnow.scaling.measured import Measured
from minnow.scaling.roofline import Roofline
from minnow.train.memory import USABLE, activation_bytes, logit_bytes

Costs = Roofline | Measured
"""What a machine needs, in seconds and bytes. Both have

- ``item``: bytes of a value in the compute type; ``logit``: per logit of a chunk; ``chunk(vocabulary)``: positions whose
  logits are there at once; ``fused``: whether fused operations keep little between the passes, None: as on this
  machine's processor; ``overlaps``: whether communication goes on beside computing;
- of a rank ``peak`` (FLOP/s, what MFU is a share of), ``memory``, and ``process``: what it holds before there is a model;
- ``passes(job, part, rows)``: forward and backward through one mixer or feed-forward and the norm before it;
  ``ends(job, rows)``: embedding, last norm, head and loss, forward and back; ``update(job)``: of all weights by one rank;
  ``sums(job)``: adding all gradients of one more pass to those before; ``collective(kind, size, group)``: ``size`` is the
  whole tensor's, for an exchange what one rank holds.
"""

_MASTER = 4  # bytes of a master, of a moment, and of a gradient once it is reduced


def rank_memory(job: Job, mesh: Mesh, costs: Costs) -> dict[str, float]:
    """Bytes that a rank holds, by purpose; ``peak`` has the larger of what the passes and the update need."""
    config, item, shard = job.config, costs.item, mesh.shard
    total, root, muon = job.parameters, job.root, job.orthogonal[0]
    tokens = mesh.rows * job.length // mesh.context
    several = mesh.passes(job.rows) > 1
    units = [shared + experts / mesh.expert for shared, experts in job.units]
    largest = max(units)
    if mesh.ranks == 1:
        weights = float(item * total) if item < _MASTER else 0.0
        gradients, reducing, last = float(item * total + (_MASTER * total if several else 0)), 0.0, 0.0
    else:
        # The next layer's are gathered while one computes; gradients are in both types while they are reduced.
        weights = item * (root + max(map(sum, zip(units, [*units[1:], 0], strict=True))))
        gradients = (2 if several else 1) * _MASTER * total / shard
        reducing = item * root + (item + _MASTER) * largest
        last = (2 * item + _MASTER) * root - weights
    memory: dict[str, float] = {
        "process": costs.process,
        "masters": _MASTER * total / shard,
        "weights": weights,
        "optimiser": _MASTER * (2 * total - muon) / shard,
        "gradients": gradients,
        "reducing": reducing,
        "activations": activation_bytes(config, tokens, item, costs.fused, mesh.checkpointing),
        "keys": item * mesh.rows * job.length * max(kv_values(layer.mixer) for layer in config.layers)
        if mesh.context > 1
        else 0,
        "logits": logit_bytes(config, min(tokens, costs.chunk(config.vocab_size)), costs.logit),
        "update": (_MASTER + 3 * item) * muon / shard,
    }
    held = sum(memory[name] for name in ("process", "masters", "weights", "optimiser", "gradients"))
    passing = sum(memory[name] for name in ("reducing", "activations", "keys", "logits"))
    return memory | {"peak": held + max(passing, last, memory["update"])}


@dataclass(frozen=True)
class Step:
    """Where a step's seconds go; communication as far as computing does not hide it.

    Attributes:
        compute: passes through layers, embedding, head and loss.
        again: what activation checkpointing computes a second time.
        shards: gathering weights and reducing gradients.
        experts: sending tokens to their experts and back.
        context: keys and values of other ranks' positions.
        update: the optimiser, with what Muon sends.
        sent: bytes that a rank sends per step, by collective; hidden or not.
    """

    compute: float
    again: float
    shards: float
    experts: float
    context: float
    update: float
    sent: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.compute + self.again + self.shards + self.experts + self.context + self.update


def step_time(job: Job, mesh: Mesh, costs: Costs) -> Step:
    """Seconds of one step."""
    config, item = job.config, costs.item
    rows, shard = mesh.rows / mesh.context, mesh.group(mesh.shard)
    owners = mesh.group(mesh.shard // mesh.expert, mesh.expert)  # of the same experts
    copies = mesh.group(mesh.copies, mesh.shard)
    tokens = rows * job.length
    sent: dict[str, float] = defaultdict(float)

    def timed(kind: Kind, size: float, group: Group, times: int = 1) -> float:
        if group.ranks == 1 or not size:
            return 0.0
        sent[kind] += times * size * (2 if kind == "all-reduce" else 1) * (group.ranks - 1) / group.ranks
        return times * costs.collective(kind, size, group)

    def gathered(shared: float, apart: float, times: int = 1) -> float:
        return timed("gather", item * shared, shard, times) + timed("gather", item * apart / mesh.expert, owners, times)

    def reduced(shared: float, apart: float, times: int = 1) -> float:
        within = [
            timed("reduce", _MASTER * size, group, times)
            for size, group in ((shared, shard), (apart / mesh.expert, owners))
        ]
        return sum(within) + timed("all-reduce", _MASTER * (shared + apart) / mesh.shard, copies, times)

    compute, again, shards, experts, context = costs.ends(job, rows), 0.0, 0.0, 0.0, 0.0
    halves = {part: costs.passes(job, part, rows) for part in job.parts}
    trips = 3 if mesh.checkpointing else 2  # forward, backward, and again
    for layer, number in job.layers.items():
        forward, backward = (
            number * (a + b) for a, b in zip(halves[layer.mixer], halves[layer.feed_forward], strict=True)
        )
        compute += forward + backward
        repeated = forward if mesh.checkpointing else 0.0
        again += repeated
        unit = job.unit(layer)
        there, back = gathered(*unit, number), gathered(*unit, number) + reduced(*unit, number)
        if costs.overlaps:
            there, back = max(0.0, there - forward), max(0.0, back - backward - repeated)
        shards += there + back
        if isinstance(layer.feed_forward, Experts):
            size = item * tokens * layer.feed_forward.active * config.hidden_size
            experts += timed("exchange", size, mesh.group(mesh.expert), 2 * trips * number)
        if isinstance(layer.mixer, Attention) and mesh.context > 1:
            size, ring = item * mesh.rows * job.length * kv_values(layer.mixer), mesh.group(mesh.context)
            context += timed("gather", size, ring, (trips - 1) * number) + timed("reduce", size, ring, number)
    if mesh.ranks > 1:
        shards += gathered(job.root, 0) + reduced(job.root, 0)
    passes = mesh.passes(job.rows)
    update = costs.update(job) / mesh.shard
    if passes > 1:
        update += (passes - 1) * costs.sums(job) / mesh.shard
    for kind in sent:
        sent[kind] *= passes
    if job.muon:
        update += 2 * timed("exchange", item * job.orthogonal[0] / mesh.shard, shard)
    return Step(
        passes * compute, passes * again, passes * shards, passes * experts, passes * context, update, dict(sent)
    )


@dataclass(frozen=True)
class Plan:
    """A mesh, what a rank holds in it and how fast it is.

    Attributes:
        mfu: the model's FLOPs over the peak of all ranks, nothing that is computed again counted.
    """

    mesh: Mesh
    memory: dict[str, float]
    step: Step
    tokens_per_second: float
    mfu: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "mesh": {**self.mesh.__dict__, "copies": self.mesh.copies},
            "memory": self.memory,
            "step": {**self.step.__dict__, "seconds": self.step.seconds},
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "days": self.seconds / 86_400,
        }


def assess(job: Job, mesh: Mesh, costs: Costs) -> Plan:
    """One mesh, whether it fits or not."""
    step = step_time(job, mesh, costs)
    rate = job.rows * job.length / step.seconds
    mfu = rate * job.flops / (mesh.ranks * costs.peak)
    return Plan(mesh, rank_memory(job, mesh, costs), step, rate, mfu, job.tokens / rate)


def plan_cluster(job: Job, ranks: int, per_node: int, costs: Costs) -> tuple[list[Plan], list[tuple[Mesh, str]]]:
    """The best way to use each division of the ranks, fastest first; and those that do not serve, with the reason.

    Raises:
        UserError: none serves.
    """
    plans: list[Plan] = []
    refused: list[tuple[Mesh, str]] = []
    for division in _divisions(job, ranks, per_node):
        readers = ranks // division.context
        if readers > job.rows:
            refused.append(
                (division, f"a step's {job.rows} rows are fewer than the {readers} ranks that read their own")
            )
            continue
        tried = [assess(job, mesh, costs) for mesh in _micro_batches(division, ceil(job.rows / readers))]
        fitting = [plan for plan in tried if plan.memory["peak"] <= USABLE * costs.memory]
        if fitting:
            plans.append(max(fitting, key=lambda plan: (plan.tokens_per_second, -plan.memory["peak"])))
        else:
            refused.append((division, _what_binds(min(tried, key=lambda plan: plan.memory["peak"]), costs.memory)))
    if not plans:
        mesh, reason = refused[-1]
        raise UserError(
            f"no mesh of {ranks} ranks serves; at {mesh.shard} ranks to a copy, {reason}; use more nodes, larger "
            "accelerators or shorter rows"
        )
    return sorted(plans, key=lambda plan: (-plan.tokens_per_second, plan.mesh.expert, plan.mesh.context)), refused


def _divisions(job: Job, ranks: int, per_node: int) -> Iterator[Mesh]:
    """Shard, expert and context sizes that go into each other and into the model."""
    counts = {layer.feed_forward.experts for layer in job.config.layers if isinstance(layer.feed_forward, Experts)}
    divisors = [number for number in range(1, ranks + 1) if ranks % number == 0]
    for shard in divisors:
        within = [number for number in divisors if shard % number == 0]
        for expert in within if counts else [1]:
            if any(count % expert for count in counts):
                continue
            for context in within:
                if job.length % context == 0:
                    yield Mesh(ranks, per_node, shard, expert, context)


def _micro_batches(mesh: Mesh, most: int) -> Iterator[Mesh]:
    rows = most
    while True:
        for checkpointing in (False, True):
            yield Mesh(mesh.ranks, mesh.per_node, mesh.shard, mesh.expert, mesh.context, rows, checkpointing)
        if rows == 1:
            return
        rows = (rows + 1) // 2


def _what_binds(plan: Plan, memory: float) -> str:
    """Why the leanest way does not fit."""
    parts = {name: size for name, size in plan.memory.items() if name != "peak"}
    worst = max(parts, key=lambda name: parts[name])
    return (
        f"a rank needs {plan.memory['peak'] / 1e9:,.1f} GB of {USABLE * memory / 1e9:,.1f} GB usable, "
        f"{parts[worst] / 1e9:,.1f} GB of it {worst}"
    )
