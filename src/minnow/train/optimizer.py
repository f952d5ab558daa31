"""One optimiser for a step: Muon for matrices, AdamW for the rest, fp32 masters behind the compute weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minnow.errors import UserError
from minnow.model import kernels
from minnow.model.language_model import LanguageModel
from minnow.train.sharding import Block, Sharded, Whole

_ITERATIONS = 5  # of Newton and Schulz


@dataclass(frozen=True)
class OptimizerSettings:
    """Peak rate and its companions; Muon and AdamW share the rate because Muon's update is scaled to AdamW's size.

    Attributes:
        muon: use Muon for the matrices; ``auto`` where a step has enough tokens, see :func:`choose_muon`.
        weight_decay: decoupled, on matrices only.
        clip: gradient norm above which gradients are scaled down.
        ema: decay per update of an exponential moving average of the weights, which a stage then saves; 0 for none.
    """

    learning_rate: float = 3e-3
    muon: bool | Literal["auto"] = "auto"
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema:g}; use a decay below 1, such as 0.999, or 0 for no average")


MUON_SHARE = 0.25
"""Of a step's other products, what Muon's own may cost and still pay: see docs/training.md."""


def muon_cost(model: LanguageModel, tokens: int) -> float:
    """FLOPs of orthogonalising a model's matrices over those of a pass forward and back over ``tokens`` tokens."""
    named = dict(model.named_parameters())
    weights = sum(weight.numel() for weight in named.values() if weight.dim() >= 2)
    work = 0.0
    for name, sizes in model.matrices().items():
        for rows in sizes:
            least, most = sorted((rows, named[name].shape[1]))
            work += _ITERATIONS * (4 * least**2 * most + 2 * least**3)
    return work / (6 * weights * tokens)


def choose_muon(settings: OptimizerSettings, model: LanguageModel, tokens: int) -> OptimizerSettings:
    """``settings`` with ``auto`` resolved for steps of ``tokens`` tokens: Muon where it costs at most MUON_SHARE."""
    if settings.muon != "auto":
        return settings
    return replace(settings, muon=muon_cost(model, tokens) <= MUON_SHARE)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices by the quintic Newton-Schulz iteration of Muon (Jordan et al. 2024).

    Args:
        matrices: ``[N, m, n]``, any float dtype; the iteration runs in it.

    Returns:
        ``[N, m, n]``; singular values above a hundredth of the matrix's norm come out near 1 (0.6 to 1.3), smaller
        ones grow but stay below.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizer:
    """Holds fp32 masters of a model's parameters and writes the compute weights after each update.

    Of a sharded model it holds this rank's rows; then :meth:`step`, :meth:`weights` and :meth:`averaged` are for all
    ranks to call together.

    Args:
        model: its parameters become the compute weights (cast to ``dtype``; where they are sharded, when gathered).
        blocks: row sizes of the logical matrices inside fused ones, by parameter name; the names in it are Muon's.
    """

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, dtype: torch.dtype, blocks: dict[str, list[int]]
    ) -> None:
        self.settings = settings
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.layout = Sharded(self.parameters) if hasattr(self.parameters[0], "placements") else Whole()
        self.dtype = dtype
        if isinstance(self.layout, Sharded):
            self.masters = self.shadows = [self.layout.local(parameter) for parameter in self.parameters]
        else:
            self.masters = [parameter.detach().float().clone() for parameter in self.parameters]
            model.to(dtype)
            if dtype == torch.float32:
                for parameter, master in zip(self.parameters, self.masters, strict=True):
                    parameter.data = master
            self.shadows = self.masters if dtype == torch.float32 else [weight.data for weight in self.parameters]
        self.muon = {i for i, name in enumerate(self.names) if settings.muon and name in blocks}
        self.groups: dict[tuple[int, int], list[Block]] = {}
        for i in sorted(self.muon):
            row = 0
            for size in blocks[self.names[i]]:
                columns = self.masters[i].shape[1]
                self.groups.setdefault((size, columns), []).append(Block(i, row, row + size))
                row += size
        self.adam = [i for i in range(len(self.names)) if i not in self.muon]
        self.first = [torch.zeros_like(master) for master in self.masters]
        self.second = {i: torch.zeros_like(self.masters[i]) for i in self.adam}
        self.ema = [master.clone() for master in self.masters] if settings.ema else []
        self.steps = 0
        self._sums: list[Tensor] | None = None

    def collect(self) -> None:
        """Take the gradients of one micro-batch; further calls before ``step`` add to them in float32."""
        gradients = [self.layout.local(parameter.grad) for parameter in self.parameters]  # type: ignore[arg-type]
        if self._sums is None:
            self._sums = gradients
        else:
            self._sums = [total.float().add_(gradient) for total, gradient in zip(self._sums, gradients, strict=True)]
        self.discard_micro_batch()

    def discard_micro_batch(self) -> None:
        """Forget gradients that were not collected yet."""
        for parameter in self.parameters:
            parameter.grad = None

    def discard(self) -> None:
        """Forget what was collected, and what was not."""
        self._sums = None
        self.discard_micro_batch()

    @torch.no_grad()
    def step(self, rate: float, weight: float) -> float:
        """Update from the collected gradient sums divided by ``weight``.

        Returns:
            The gradient norm before clipping; when it is not finite nothing is updated.
        """
        assert self._sums is not None, "collect() gradients before step()"
        gradients, self._sums = self._sums, None
        norm = self.layout.norm(kernels.grad_norm(gradients)) / weight
        if not math.isfinite(norm):
            return norm
        self.steps += 1
        scale = min(1.0, self.settings.clip / (norm + 1e-12)) / weight
        settings = self.settings
        for i in self.adam:
            decay = settings.weight_decay if self.masters[i].dim() == 2 else 0.0
            kernels.adamw(
                self.masters[i], self.shadows[i], gradients[i], self.first[i], self.second[i], rate, settings.betas,
                settings.eps, decay, self.steps, scale,
            )  # fmt: skip
        self._muon_step(gradients, rate, scale)
        if self.ema:
            torch._foreach_lerp_(self.ema, self.masters, 1 - settings.ema)
        return norm

    def _muon_step(self, gradients: list[Tensor], rate: float, scale: float) -> None:
        momentum, decay = self.settings.momentum, 1 - rate * self.settings.weight_decay
        nesterov: dict[int, Tensor] = {}
        for i in self.muon:
            gradient = gradients[i].float().mul_(scale)
            self.first[i].lerp_(gradient, 1 - momentum)
            nesterov[i] = gradient.lerp_(self.first[i], momentum)
        for (rows, columns), blocks in self.groups.items():
            update = orthogonalise(self.layout.gather(nesterov, blocks, self.dtype))
            # Scaled to the root-mean-square of an AdamW update (arXiv 2502.16982), so both share one rate.
            size = 0.2 * max(rows, columns) ** 0.5 * rate
            for i, part, block in self.layout.scatter(update, blocks):
                self.masters[i][part].mul_(decay).add_(block, alpha=-size)
        for i in self.muon:
            if self.shadows[i] is not self.masters[i]:
                self.shadows[i].copy_(self.masters[i])

    def weights(self) -> dict[str, Tensor]:
        """The fp32 masters by name."""
        return self._whole(self.masters)

    def averaged(self) -> dict[str, Tensor]:
        """Their moving average by name, where there is one; else themselves."""
        return self._whole(self.ema or self.masters)

    def _whole(self, parts: list[Tensor]) -> dict[str, Tensor]:
        return {name: self.layout.whole(i, parts[i]) for i, name in enumerate(self.names)}

    def state(self) -> dict[str, Any]:
        """Everything an exact resume needs; the tensors by parameter name, not copied."""
        return {"steps": self.steps} | {
            kind: {self.names[i]: self.layout.tagged(i, tensor) for i, tensor in tensors.items()}
            for kind, tensors in self._held().items()
        }

    def _held(self) -> dict[str, dict[int, Tensor]]:
        """All tensors that training goes on with, by kind and parameter index."""
        lists = {"masters": self.masters, "first": self.first, "ema": self.ema}
        return {kind: dict(enumerate(tensors)) for kind, tensors in lists.items()} | {"second": self.second}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state`.

        Raises:
            ValueError: a tensor is missing, surplus or of another shape.
        """
        for kind, tensors in self._held().items():
            theirs = state[kind]
            if other := {self.names[i] for i in tensors} ^ theirs.keys():
                raise ValueError(f"it does not hold the same {kind}: {min(other)}")
            for i, mine in tensors.items():
                shape, other_shape = self.parameters[i].shape, theirs[self.names[i]].shape
                if shape != other_shape:
                    raise ValueError(f"{self.names[i]} is {list(other_shape)} there and {list(shape)} here")
                mine.copy_(self.layout.part(i, theirs[self.names[i]]))
        self.steps = state["steps"]
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters into the compute weights."""
        for shadow, master in zip(self.shadows, self.masters, strict=True):
            if shadow is not master:
                shadow.copy_(master)
