"""How evenly a mixture's experts are used: counted in each step, reported, and evened out without a loss of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minnow.errors import UserError
from minnow.model.feed_forward import Experts
from minnow.train.ranks import Ranks


@dataclass(frozen=True)
class ExpertSettings:
    """What keeps a mixture's experts in use; nothing to a model without any.

    Attributes:
        balance: after an update the selection bias of an expert with less than an even share of the tokens goes up by so
            much, that of one with more down (arXiv 2408.15664); 0 leaves it as it is.
        capacity: a rank's tokens of one micro-batch that an expert takes at most, in even shares; later ones go without
            it. None: all.
    """

    balance: float = 0.001
    capacity: float | None = None

    def __post_init__(self) -> None:
        if self.balance < 0 or (self.capacity is not None and self.capacity <= 0):
            raise UserError(
                f"experts: balance is {self.balance:g} and capacity {self.capacity}; balance is 0 or more, and capacity "
                "above 0 or left out"
            )


class ExpertLoads:
    """Counts what the experts of a model are given in training, padding apart, and moves their selection biases."""

    def __init__(self, model: nn.Module, settings: ExpertSettings) -> None:
        self.settings = settings
        self.experts = {name: module for name, module in model.named_modules() if isinstance(module, Experts)}
        self._real: Tensor | None = None
        self.reset()
        if not self.experts:
            return  # the compiler, which is to leave these alone, takes seconds to import
        see, route = torch.compiler.disable(self._see), torch.compiler.disable(self._route)
        model.register_forward_pre_hook(see, with_kwargs=True)
        for name, module in self.experts.items():
            module.route = partial(route, name, module.route)  # type: ignore[method-assign]

    def reset(self) -> None:
        """Forget what was counted."""
        self._counts = {
            name: torch.zeros(module.shape.experts + 1, dtype=torch.float64) for name, module in self.experts.items()
        }

    def _see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        documents: Tensor | None = args[1] if len(args) > 1 else kwargs.get("documents")
        self._real = None if documents is None else documents.flatten() > 0

    def _route(self, name: str, route: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Experts.route`; in training with a capacity, and counted once the gradient comes."""
        weights, chosen = route(x)
        if not weights.requires_grad:
            return weights, chosen
        experts, real = self.experts[name].shape.experts, self._real
        if real is None:
            real = chosen.new_ones(len(chosen), dtype=torch.bool)
        if self.settings.capacity is not None:
            limit = math.ceil(self.settings.capacity * int(real.sum()) * chosen.shape[1] / experts)
            chosen = chosen.masked_fill(~real[:, None], experts)  # padding takes nobody's room
            chosen = chosen.masked_fill(~_first(chosen, limit), experts)
        counts = torch.bincount(chosen[real].flatten(), minlength=experts + 1)

        def count(gradient: Tensor) -> None:
            self._counts[name] += counts.cpu()

        # Not at once: a layer that is computed again going back would count twice.
        weights.register_hook(count)
        return weights, chosen

    def gather(self, ranks: Ranks) -> None:
        """Add up what all ranks have counted."""
        if self.experts:
            sums = ranks.sum(*torch.cat(list(self._counts.values())).tolist())
            sizes = [len(counts) for counts in self._counts.values()]
            self._counts = dict(zip(self.experts, torch.tensor(sums, dtype=torch.float64).split(sizes), strict=True))

    @torch.no_grad()
    def balance(self) -> None:
        """Move the selection biases by what was gathered."""
        for name, module in self.experts.items():
            counts = self._counts[name][:-1]
            if module.selection_bias is not None:
                module.selection_bias += self.settings.balance * (counts.mean() - counts).sign().to(
                    module.selection_bias
                )

    def shares(self) -> dict[str, float]:
        """Of what was gathered: the heaviest and lightest load of an expert in any layer, in even shares, and the share
        that found no room where there is a capacity."""
        total = sum(float(counts.sum()) for counts in self._counts.values())
        if not total:
            return {}
        loads = [counts[:-1] / counts[:-1].mean() for counts in self._counts.values()]
        found = {
            "expert_load_max": max(float(load.max()) for load in loads),
            "expert_load_min": min(float(load.min()) for load in loads),
        }
        if self.settings.capacity is not None:
            found["expert_drops"] = sum(float(counts[-1]) for counts in self._counts.values()) / total
        return found

    def state(self) -> dict[str, Tensor]:
        """The selection biases by layer, not copied."""
        return {name: bias for name, module in self.experts.items() if (bias := module.selection_bias) is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        for name, bias in self.state().items():
            bias.copy_(state[name])


def _first(chosen: Tensor, limit: int) -> Tensor:
    """Which of ``chosen [N, active]`` are among the first ``limit`` of their number."""
    numbers = chosen.flatten()
    order = numbers.argsort(stable=True)
    ranked = numbers[order]
    place = torch.arange(len(ranked), device=ranked.device) - torch.searchsorted(ranked, ranked)
    found = torch.empty_like(numbers, dtype=torch.bool)
    found[order] = place < limit
    return found.view_as(chosen)
