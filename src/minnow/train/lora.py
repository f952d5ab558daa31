"""Training a low-rank adapter in place of the weights, behind the optimiser's interface."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minnow.errors import UserError
from minnow.model.adapter import Adapter, adaptable, module_name
from minnow.model.language_model import LanguageModel
from minnow.train.optimizer import Optimizer, OptimizerSettings


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter on every linear map, or on those named.

    Attributes:
        alpha: the update is ``alpha / rank`` times the factors' product.
        targets: module names as the checkpoint has them, such as ``q_proj``; none for all linear maps.
        seed: of the factors that do not begin at zero.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(f"rank is {self.rank} and alpha {self.alpha:g}; use at least rank 1 and an alpha above 0")


class LoraOptimizer:
    """AdamW on an adapter's factors, while the model computes with the merged weights.

    A matrix is ``W + scale * B A`` in training and in decoding alike, so every kernel and engine serves as it is and
    rollouts cost nothing more; the factors' gradients follow from the matrix's. All other weights are frozen.

    Raises:
        UserError: the model has no such target.
    """

    def __init__(
        self, model: LanguageModel, settings: OptimizerSettings, lora: LoraSettings, dtype: torch.dtype
    ) -> None:
        slots = adaptable(model)
        names = {module_name(name) for slot in slots for name in slot.theirs}
        for target in lora.targets:
            if target not in names:
                raise UserError(f"there is no linear map {target!r} to adapt; targets are {', '.join(sorted(names))}")
        wanted = set(lora.targets) or names
        self.slots = [slot for slot in slots if wanted & set(map(module_name, slot.theirs))]
        parameters = dict(model.named_parameters())
        self.bases = [parameters[slot.ours].detach().float().clone() for slot in self.slots]
        model.to(dtype)
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        self.matrices = [parameters[slot.ours].requires_grad_() for slot in self.slots]
        shapes = {
            name: part.shape
            for slot, base in zip(self.slots, self.bases, strict=True)
            for name, part in zip(slot.theirs, slot.split(base), strict=True)
            if module_name(name) in wanted
        }
        self.alpha, self.names = lora.alpha, list(shapes)
        self.factors = _drawn(list(shapes.values()), lora)
        # Muon's steps are as long as a whole matrix's, which a factor is not.
        self.inner = Optimizer(self.factors, replace(settings, muon=False), torch.float32, {})

    def adapter(self, weights: Mapping[str, Tensor]) -> Adapter:
        """The factors among what :meth:`weights` or :meth:`averaged` gave."""
        pairs = {name: (weights[f"{name}.lora_A"], weights[f"{name}.lora_B"]) for name in self.names}
        return Adapter(self.alpha, pairs)

    @torch.no_grad()
    def collect(self) -> None:
        """Take the gradients of one micro-batch over to the factors."""
        scale = self.adapter(self._named(self.inner.masters)).scale
        place = {name: i for i, name in enumerate(self.names)}
        for slot, matrix in zip(self.slots, self.matrices, strict=True):
            assert matrix.grad is not None, "collect() follows a backward pass"
            for name, gradient in zip(slot.theirs, slot.split(matrix.grad), strict=True):
                if name in place:
                    a, b = self.factors.a[place[name]], self.factors.b[place[name]]
                    a.grad = scale * (b.T @ gradient.float())
                    b.grad = scale * (gradient.float() @ a.T)
        self.discard_micro_batch()
        self.inner.collect()

    def discard_micro_batch(self) -> None:
        """Forget gradients that were not collected yet."""
        for matrix in self.matrices:
            matrix.grad = None

    def discard(self) -> None:
        """Forget what was collected, and what was not."""
        self.inner.discard()
        self.discard_micro_batch()

    def step(self, rate: float, weight: float) -> float:
        """As :meth:`Optimizer.step`; the gradient norm is the factors'."""
        norm = self.inner.step(rate, weight)
        if math.isfinite(norm):
            self.publish()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The merged matrices by the model's names, and the factors."""
        return self._merged(self._named(self.inner.masters))

    def averaged(self) -> dict[str, Tensor]:
        """As :meth:`weights`, of the factors' moving average where there is one."""
        return self._merged(self._named(self.inner.ema or self.inner.masters))

    def state(self) -> dict[str, Any]:
        """Everything an exact resume needs beside the checkpoint this began from."""
        return self.inner.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state`."""
        self.inner.restore(state)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write the merged matrices into the model."""
        merged = self.weights()
        for slot, matrix in zip(self.slots, self.matrices, strict=True):
            matrix.copy_(merged[slot.ours])

    def _named(self, factors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The optimiser's list of tensors, all ``A`` before all ``B``, by name."""
        count = len(self.names)
        sides = (("A", factors[:count]), ("B", factors[count:]))
        return {
            f"{name}.lora_{side}": tensor
            for side, tensors in sides
            for name, tensor in zip(self.names, tensors, strict=True)
        }

    @torch.no_grad()
    def _merged(self, factors: dict[str, Tensor]) -> dict[str, Tensor]:
        adapter = self.adapter(factors)
        matrices = {
            slot.ours: base + adapter.updates(slot, base) for slot, base in zip(self.slots, self.bases, strict=True)
        }
        return matrices | factors


class _Factors(nn.Module):
    """``A [rank, inputs]`` and ``B [outputs, rank]`` of every adapted matrix."""

    def __init__(self, a: list[Tensor], b: list[Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.ParameterList(a), nn.ParameterList(b)


def _drawn(shapes: Sequence[torch.Size], lora: LoraSettings) -> _Factors:
    """PEFT's beginning: ``A`` uniform within ``1 / sqrt(inputs)``, ``B`` zero."""
    generator = torch.Generator().manual_seed(lora.seed)
    a = [(2 * torch.rand(lora.rank, inputs, generator=generator) - 1) / inputs**0.5 for _, inputs in shapes]
    return _Factors(a, [torch.zeros(outputs, lora.rank) for outputs, _ in shapes])
