"""Context parallelism, put on a model from outside: each rank has consecutive positions of every row.

What a layer needs of the positions before comes from the ranks that have them: attention its keys and values, a
convolution the few inputs that its taps reach back to, linear attention the memory, which goes from rank to rank. Results
and gradients are those of whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.language_model import LanguageModel
from minnow.model.mixers import Attention, GatedDelta, GatedLinear, ShortConv
from minnow.train.exchange import exchange, receive, send
from minnow.train.parallel import Parallel


def split_context(model: LanguageModel, parallel: Parallel, group: Any) -> None:
    """Have ``model`` read parts of rows, one on each rank of ``group``.

    In training it is given its part of tokens and documents. Where no gradient is wanted it is given whole rows, alike on
    all ranks, takes its part of them, and gives hidden states of whole rows.

    Raises:
        UserError: the model is one of transformers.
    """
    if not isinstance(model, Backbone):
        raise UserError(
            f"parallel.context is {parallel.context}, and rows of a model that transformers computes are not split; leave "
            "it out"
        )
    part = _Part(parallel, group)
    for mixer in (layer.mixer for layer in model.layers):
        if isinstance(mixer, Attention):
            mixer.attend = partial(part.attend, mixer.attend, mixer.shape.window)  # type: ignore[method-assign]
        if isinstance(mixer, ShortConv):
            mixer.convolve = partial(part.convolve, mixer.convolve, mixer.kernel)  # type: ignore[method-assign]
        if isinstance(mixer, GatedDelta):
            taps = mixer.shape.kernel
            mixer.convolve = partial(part.convolve, mixer.convolve, taps)  # type: ignore[method-assign]
        if isinstance(mixer, GatedDelta | GatedLinear):
            mixer.recall = partial(part.recall, mixer.recall)  # type: ignore[method-assign]
    model.register_forward_pre_hook(part.enter, with_kwargs=True)
    model.register_forward_hook(part.leave)


class _Part:
    """The positions of this rank; mixers are given those and the documents of whole rows."""

    def __init__(self, parallel: Parallel, group: Any) -> None:
        self.parallel, self.group = parallel, group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)

    def enter(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(("tokens", "documents"), args, strict=False)) | kwargs
        tokens, documents = given["tokens"], given.get("documents")
        if documents is None:
            documents = torch.ones_like(tokens)
        if torch.is_grad_enabled():
            documents = self._joined(documents)
        else:
            tokens = tokens[:, self.parallel.positions(tokens.shape[1], self.rank)]
        return (tokens, documents), {"first": self.rank * tokens.shape[1]}

    def leave(self, model: Any, args: tuple[Any, ...], hidden: Tensor) -> Tensor | None:
        return None if torch.is_grad_enabled() else self._joined(hidden)

    def _joined(self, x: Tensor) -> Tensor:
        """All ranks' ``x [B, t, ...]`` one behind the other."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)

    def _from_before(self, x: Tensor, ranks: int) -> Tensor:
        """``x`` of up to ``ranks`` ranks before this one, ``[B, t, ...]`` each, one behind the other.

        Also where that is nothing, it has to be used: all ranks send its gradient together.
        """
        ahead = [int(0 < other - self.rank <= ranks) for other in range(self.count)]
        behind = [int(0 < self.rank - other <= ranks) for other in range(self.count)]
        arrived = exchange(x.expand(sum(ahead), *x.shape), ahead, behind, self.group)
        return arrived.movedim(0, 1).flatten(1, 2)

    def attend(
        self, attend: Callable[..., Tensor], window: int | None, q: Tensor, k: Tensor, v: Tensor, documents: Tensor
    ) -> Tensor:
        """As :meth:`Attention.attend`, with the keys and values of those ranks before that a query sees."""
        length = q.shape[1]
        ranks = self.count - 1 if window is None else -(-(window - 1) // length)
        own = torch.cat([k, v], dim=2)
        every = torch.cat([self._from_before(own, ranks), own], dim=1)
        end = (self.rank + 1) * length
        return attend(q, *every.chunk(2, dim=2), documents[:, end - every.shape[1] : end])

    def convolve(self, convolve: Callable[..., Tensor], taps: int, x: Tensor, documents: Tensor) -> Tensor:
        """As :meth:`ShortConv.convolve`, behind the last inputs of the rank before."""
        reach, start, end = taps - 1, self.rank * x.shape[1], (self.rank + 1) * x.shape[1]
        if reach > x.shape[1]:
            raise UserError(
                f"a convolution of {taps} taps reaches over more than the {x.shape[1]} positions of a rank; use longer rows "
                "or a smaller parallel.context"
            )
        before = self._from_before(x[:, x.shape[1] - reach :], 1)
        nothing = x.new_zeros(len(x), reach - before.shape[1], x.shape[2])
        near = F.pad(documents[:, max(0, start - reach) : end], (max(0, reach - start), 0), value=-1)
        return convolve(torch.cat([nothing, before, x], dim=1), near)[:, reach:]

    def recall(
        self, recall: Callable[..., tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...], documents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`GatedDelta.recall`, with the memory that the rank before has left."""
        _, k, v, *_ = inputs
        start, end = self.rank * v.shape[1], (self.rank + 1) * v.shape[1]
        shape, dtype = (len(v), v.shape[2], k.shape[3], v.shape[3]), torch.promote_types(v.dtype, torch.float32)
        if self.rank:
            memory = receive(v, shape, dtype, self.rank - 1, self.group)
            goes_on = documents[:, start - 1] == documents[:, start]
            memory = memory * goes_on[:, None, None, None]
        else:
            memory = v.new_zeros(shape, dtype=dtype)
        out, memory = recall(inputs, documents[:, start:end], memory)
        if self.rank + 1 < self.count:
            out = send(memory, out, self.rank + 1, self.group)
        return out, memory
