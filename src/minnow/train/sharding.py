"""Sharding and activation checkpointing, put on a model from outside, and what its optimiser has to know of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from minnow.model.backbone import Backbone
from minnow.model.language_model import LanguageModel


def _units(model: LanguageModel) -> list[list[nn.Module]]:
    """The modules whose weights are gathered together, by layer.

    None for a model of transformers, which is then gathered whole: how often it runs inside one pass depends on its
    rows, so its layers cannot wait for those of other ranks.
    """
    return [[layer.mixer, layer.feed_forward] for layer in model.layers] if isinstance(model, Backbone) else []


def checkpoint_activations(model: LanguageModel) -> None:
    """Compute mixers and feed-forwards again in the backward pass (arXiv 1604.06174)."""
    if not isinstance(model, Backbone):
        model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in (module for unit in _units(model) for module in unit):
        again = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
        module.forward = again


def shard(model: LanguageModel, mesh: DeviceMesh, dtype: torch.dtype, experts: DeviceMesh | None = None) -> None:
    """Split a model's weights over ``mesh`` by rows (FSDP2); every rank must have made the same ones.

    They stay float32 in their shards, and are gathered, as plain tensors of type ``dtype``, only while a pass goes
    through their layer. Gradients are summed over the ranks in float32.

    Args:
        mesh: ``replicate`` copies of the weights, each over ``shard`` ranks.
        experts: the same ranks as ``replicate``, ``data``, ``expert``: the last share out the experts of mixtures, whose
            matrices are gathered from ``data`` alone.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard  # takes seconds

    apart = None
    if experts is not None:
        from minnow.train.expert_parallel import experts_apart, share_experts

        share_experts(model, experts["expert"])
        apart = experts_apart(experts)

    # Activations stay as they are: a rotary table, say, is float32 on purpose.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    model.float()
    over = mesh if mesh.shape[0] > 1 else mesh["shard"]
    for unit in _units(model):
        fully_shard(unit, mesh=over, mp_policy=policy, shard_placement_fn=apart)
    fully_shard(model, mesh=over, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loop divides once, by the weight of all ranks
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)


@dataclass(frozen=True)
class Block:
    """A logical matrix: rows ``start`` to ``end`` of the parameter ``index``."""

    index: int
    start: int
    end: int


class Whole:
    """A model that this process has to itself."""

    def local(self, parameter: Tensor) -> Tensor:
        """The part of a parameter or gradient that is here."""
        return parameter.detach()

    def part(self, index: int, theirs: Tensor) -> Tensor:
        """What is to be here of a tensor like the parameter ``index`` that was read, whole or as :meth:`tagged`."""
        return theirs

    def norm(self, here: float) -> float:
        """Of a vector of which a part with the norm ``here`` lies here."""
        return here

    def gather(self, parts: Mapping[int, Tensor], blocks: Sequence[Block], dtype: torch.dtype) -> Tensor:
        """Those of ``blocks``, alike in shape, that this rank is to work on, ``[n, rows, columns]``.

        Args:
            parts: by parameter index, the rows that are here.
        """
        return torch.stack([parts[block.index][block.start : block.end] for block in blocks]).to(dtype)

    def scatter(self, worked: Tensor, blocks: Sequence[Block]) -> Iterator[tuple[int, slice, Tensor]]:
        """What became of all of ``blocks``: parameter index, which of the rows here, and their new content."""
        for block, content in zip(blocks, worked, strict=True):
            yield block.index, slice(block.start, block.end), content

    def whole(self, index: int, here: Tensor) -> Tensor:
        """All rows of the parameter ``index``, of which ``here`` are those of this rank."""
        return here

    def tagged(self, index: int, here: Tensor) -> Tensor:
        """``here`` so that a sharded checkpoint knows which rows it is."""
        return here


class Sharded(Whole):
    """A model that :func:`shard` has split; each rank holds consecutive rows, all but the last ranks equally many.

    The rows of shared-out experts are cut among the expert ranks first and then among those that hold the same experts.

    Logical matrices are dealt out over the ranks of a copy, one by one: each is sent to its rank by those that hold its
    rows, worked on there, and sent back.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.like: list[Any] = list(parameters)
        mesh = self.like[0].device_mesh
        self.group = mesh.get_group(mesh.ndim - 1)
        self.count, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.sharing = [
            dict(zip(like.device_mesh.mesh_dim_names, like.device_mesh.shape, strict=True)).get("expert", 1)
            for like in self.like
        ]

    def local(self, parameter: Any) -> Tensor:
        return parameter.to_local().detach()

    def part(self, index: int, theirs: Any) -> Tensor:
        if hasattr(theirs, "placements"):
            return self.local(theirs)
        first, last = self._rows(index, self.rank)
        return theirs[first:last]

    def norm(self, here: float) -> float:
        total = torch.tensor([here**2], dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return float(total.sqrt())

    def _rows(self, index: int, rank: int) -> tuple[int, int]:
        """First and last row of a parameter on a rank; torch.chunk's, as FSDP2 cuts."""
        sharing = self.sharing[index]
        place, expert = divmod(rank, sharing)
        rows = _chunk(_chunk(range(len(self.like[index])), sharing, expert), self.count // sharing, place)
        return rows.start, rows.stop

    def _shared(self, block: Block, rank: int) -> slice:
        """Which of a block's rows a rank holds, counted from the block's first."""
        first, last = self._rows(block.index, rank)
        return slice(max(first, block.start) - block.start, max(first, block.start, min(last, block.end)) - block.start)

    def _exchange(self, outgoing: list[list[Tensor]], sizes: list[int], like: Tensor) -> list[Tensor]:
        """Send ``outgoing[r]`` to rank ``r`` and receive ``sizes[r]`` numbers from it."""
        flat = [torch.cat([part.flatten() for part in parts]) if parts else like.new_empty(0) for parts in outgoing]
        received = like.new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(flat), sizes, [len(part) for part in flat], group=self.group)
        return list(received.split(sizes))

    def gather(self, parts: Mapping[int, Tensor], blocks: Sequence[Block], dtype: torch.dtype) -> Tensor:
        outgoing: list[list[Tensor]] = [[] for _ in range(self.count)]
        for number, block in enumerate(blocks):
            held, first = self._shared(block, self.rank), self._rows(block.index, self.rank)[0] - block.start
            here = parts[block.index].to(dtype)
            outgoing[number % self.count].append(here[held.start - first : held.stop - first])
        mine, columns = blocks[self.rank :: self.count], self.like[blocks[0].index].shape[1]
        shared = [[self._shared(block, rank) for block in mine] for rank in range(self.count)]
        sizes = [sum(held.stop - held.start for held in row) * columns for row in shared]
        like = next(iter(parts.values())).to(dtype)
        received = self._exchange(outgoing, sizes, like)
        whole = like.new_empty(len(mine), blocks[0].end - blocks[0].start, columns)
        for row, sent in zip(shared, received, strict=True):
            pieces = sent.view(-1, columns).split([held.stop - held.start for held in row]) if mine else ()
            for matrix, held, piece in zip(whole, row, pieces, strict=True):
                matrix[held] = piece
        return whole

    def scatter(self, worked: Tensor, blocks: Sequence[Block]) -> Iterator[tuple[int, slice, Tensor]]:
        mine = blocks[self.rank :: self.count]
        outgoing = [
            [matrix[self._shared(block, rank)] for block, matrix in zip(mine, worked, strict=True)]
            for rank in range(self.count)
        ]
        columns = worked.shape[2]
        held = [self._shared(block, self.rank) for block in blocks]
        rows = [part.stop - part.start for part in held]
        sizes = [sum(rows[rank :: self.count]) * columns for rank in range(self.count)]
        for rank, sent in enumerate(self._exchange(outgoing, sizes, worked)):
            pieces = sent.view(-1, columns).split(rows[rank :: self.count]) if blocks[rank :: self.count] else ()
            for number, piece in zip(range(rank, len(blocks), self.count), pieces, strict=True):
                block, part = blocks[number], held[number]
                shift = block.start - self._rows(block.index, self.rank)[0]
                yield block.index, slice(part.start + shift, part.stop + shift), piece

    def whole(self, index: int, here: Tensor) -> Tensor:
        return self.tagged(index, here).full_tensor()  # type: ignore[attr-defined]

    def tagged(self, index: int, here: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        like = self.like[index]
        return DTensor.from_local(
            here, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )


def _chunk(rows: range, parts: int, part: int) -> range:
    size = -(-len(rows) // parts)
    return rows[part * size : (part + 1) * size]
