"""A rank's costs measured on the machine at hand: each kind of layer, the head and loss, the optimiser, communication.

Every mixer and feed-forward of a model is run by itself, forward and back, at two numbers of rows. Several ranks measure
at the same time, as they would train, and a step waits for the slowest of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from minnow.data.rows import Batch
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.model.config import Attention, FeedForward, ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.model.feed_forward import build_feed_forward
from minnow.model.mixers import build_mixer
from minnow.model.rotary import rotary_table
from minnow.scaling.job import Kind, Part
from minnow.scaling.measured import Measured, Timing, ends_name, part_name
from minnow.train.memory import free_memory
from minnow.train.objectives import next_token
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.precision import compute_dtype, peak_flops
from minnow.train.ranks import Ranks
from minnow.train.vocabulary import positions_at_once

_SIZES = (1 << 16, 1 << 20, 1 << 22)
"""Values of the tensors that are sent."""

_Passing = tuple[Callable[[], None], Callable[[], Sequence[Tensor]], Callable[[Sequence[Tensor]], None]]
"""What draws new inputs, and the passes forward and back."""

_UNITS = 4  # gathered one after the other, as layers are


def warm_up(ranks: Ranks) -> None:
    """Let the process load what any training loads, by a pass of a tiny one: libraries, kernels, the ranks' buffers."""
    model = Backbone(lfm2_config(64, 32, 64, ("conv", "full_attention"), num_heads=2, num_kv_heads=1, head_dim=16))
    model.initialise(0)
    ranks.spread(model, compute_dtype())
    optimizer = Optimizer(model, OptimizerSettings(), compute_dtype(), model.matrices())
    tokens = torch.arange(64).view(2, 32)
    next_token(model, Batch(tokens, tokens, torch.ones_like(tokens))).total.backward()
    optimizer.collect()
    optimizer.step(1e-4, 1.0)


class Calibration:
    """Everything there is to time for a model, set up; :meth:`round` times each once.

    Args:
        rows: two numbers, those that will go through the model at once between them or near.
        process: bytes that the process held before there was a model.
        ranks: that measure together and call the same methods.
    """

    def __init__(
        self, config: ModelConfig, length: int, rows: tuple[int, int], muon: bool, process: float, ranks: Ranks
    ) -> None:
        self.config, self.length, self.rows, self.muon, self.process, self.ranks = (
            config, length, rows, muon, process, ranks,
        )  # fmt: skip
        self.device = (
            torch.device("cuda", ranks.rank % ranks.per_node) if torch.cuda.is_available() else torch.device("cpu")
        )
        self.dtype = compute_dtype()
        parts = dict.fromkeys(part for layer in config.layers for part in (layer.mixer, layer.feed_forward))
        self._timed: dict[str, _Timed] = {part_name(part, config.hidden_size): self._part(part) for part in parts}
        self._timed[ends_name(config)] = self._edges()
        self._sent: dict[Kind, dict[int, list[float]]] = {}
        self._senders: list[_Units] = [] if ranks.count == 1 else [_Units(size, self.device) for size in _SIZES]

    def round(self) -> None:
        """Time everything once more."""
        for timed in self._timed.values():
            timed.round()
        for units in self._senders:
            for kind, seconds in units.round():
                self._sent.setdefault(kind, {}).setdefault(units.size, []).append(seconds)

    def forget(self) -> None:
        """What was timed so far: a first round also waits for memory."""
        self._sent.clear()
        for timed in self._timed.values():
            timed.times.clear()

    def measured(self, machine: str) -> Measured:
        """What was timed so far; on every rank the slowest one's."""
        rows, item = self.rows, self.dtype.itemsize
        free = free_memory(self.device) / (self.ranks.per_node if self.device.type == "cpu" else 1)
        mine = Measured(
            machine, self.ranks.count, self.length, rows, self.muon, item, peak_flops(self.device), free, self.process,
            positions_at_once(1, self.device), {name: timed.timing() for name, timed in self._timed.items()},
            {kind: _line(kind, item, times) for kind, times in self._sent.items()},
        )  # fmt: skip
        return _slowest(self.ranks.everyone(mine))

    def _part(self, part: Part) -> _Timed:
        config, width = self.config, self.config.hidden_size
        module = build_feed_forward(part, width) if isinstance(part, FeedForward) else build_mixer(part, config)
        with torch.no_grad():
            for weight in module.parameters():
                weight.normal_(0, width**-0.5)
        module.to(self.device)
        optimizer = Optimizer(module, OptimizerSettings(muon=self.muon), self.dtype, module.blocks())
        norm = torch.ones(width, dtype=self.dtype, device=self.device)
        table = None
        if isinstance(part, Attention):
            table = rotary_table(torch.arange(self.length, device=self.device), part)

        def passing(rows: int) -> _Passing:
            shape = rows, self.length, width
            update, stream = (torch.randn(shape).to(self.device, self.dtype).requires_grad_() for _ in range(2))
            documents = torch.ones(shape[:2], dtype=torch.int64, device=self.device)
            gradient = torch.randn(shape).to(self.device, self.dtype)

            def draw() -> None:  # other values go to other experts, in numbers that the libraries have not met
                with torch.no_grad():
                    stream.normal_()

            def forward() -> Sequence[Tensor]:
                left, normed = kernels.add_rms_norm(update, stream, norm, config.norm_eps)
                made = module(normed) if isinstance(part, FeedForward) else module(normed, table, documents)
                return left, made

            def backward(made: Sequence[Tensor]) -> None:
                torch.autograd.backward(made, [gradient, gradient])
                update.grad = stream.grad = None

            return draw, forward, backward

        return _Timed([passing(rows) for rows in self.rows], optimizer, self.device)

    def _edges(self) -> _Timed:
        model = Backbone(replace(self.config, layers=()))
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.02)
        model.to(self.device)
        optimizer = Optimizer(model, OptimizerSettings(muon=self.muon), self.dtype, {})

        def passing(rows: int) -> _Passing:
            tokens = torch.randint(self.config.vocab_size, (rows, self.length), device=self.device)
            batch = Batch(tokens, tokens.roll(-1, 1), torch.ones_like(tokens))
            return lambda: None, lambda: [next_token(model, batch).total], lambda made: made[0].backward()

        return _Timed([passing(rows) for rows in self.rows], optimizer, self.device)


class _Timed:
    """One part's forward and backward pass at two numbers of rows, and its update."""

    def __init__(self, passes: Sequence[_Passing], optimizer: Optimizer, device: torch.device) -> None:
        self.passes, self.optimizer, self.device = passes, optimizer, device
        self.times: dict[str, list[float]] = {}

    def round(self) -> None:
        for number, (draw, forward, backward) in enumerate(self.passes):
            draw()
            made = self._time(f"forward {number}", forward)
            self._time(f"backward {number}", partial(backward, made))
            self._time(f"collect {number}", self.optimizer.collect)
        self._time("update", lambda: self.optimizer.step(1e-4, 1.0))

    def _time(self, name: str, work: Callable[[], Any]) -> Any:
        begin = _clock(self.device)
        made = work()
        self.times.setdefault(name, []).append(_clock(self.device) - begin)
        return made

    def timing(self) -> Timing:
        found = {name: statistics.median(times) for name, times in self.times.items()}
        return Timing(
            (found["forward 0"], found["forward 1"]),
            (found["backward 0"], found["backward 1"]),
            found["update"],
            found["collect 1"],
        )


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Touch(Function):
    """Passes values on, and gives a weight the gradient that lies ready: nothing is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> Any:
        return d_x, ctx.gradient, None


class _Unit(nn.Module):
    def __init__(self, size: int, device: torch.device, gradient: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size // 256, 256, device=device))
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return _Touch.apply(x, self.weight, self.gradient)


class _Units:
    """Units of ``size`` weights that FSDP2 gathers and reduces as it does a model's layers, and tensors as large that
    are exchanged and added up."""

    def __init__(self, size: int, device: torch.device) -> None:
        import torch.distributed as dist
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.size, self.device, self.dist = size, device, dist
        dtype = compute_dtype()
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        gradient = torch.zeros(size // 256, 256, device=device, dtype=dtype)
        self.model = nn.Sequential(*(_Unit(size, device, gradient) for _ in range(_UNITS)))
        for unit in self.model:
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.x = torch.ones(1, device=device, requires_grad=True)
        self.values = torch.zeros(size, device=device, dtype=dtype)
        self.received = torch.zeros_like(self.values)
        self.sums = torch.zeros(size, device=device)

    def round(self) -> Iterable[tuple[Kind, float]]:
        self.dist.barrier()
        begin = _clock(self.device)
        made = self.model(self.x)
        middle = _clock(self.device)
        made.sum().backward()
        end = _clock(self.device)
        for unit in self.model.parameters():
            unit.grad = None
        gather = (middle - begin) / _UNITS
        yield "gather", gather
        yield "reduce", max(0.0, (end - middle) / _UNITS - gather)
        self.dist.barrier()
        begin = _clock(self.device)
        self.dist.all_to_all_single(self.received, self.values)
        middle = _clock(self.device)
        self.dist.all_reduce(self.sums)
        yield "exchange", middle - begin
        yield "all-reduce", _clock(self.device) - middle


def _line(kind: Kind, item: int, times: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Seconds before the first byte and per byte, through the medians; both at least 0."""
    width = item if kind in ("gather", "exchange") else 4
    sizes = [width * size for size in times]
    seconds = [statistics.median(taken) for taken in times.values()]
    slope, start = statistics.linear_regression(sizes, seconds)
    slope = max(0.0, slope)
    return max(0.0, min(start, min(seconds))), slope


def _slowest(everyone: Sequence[Measured]) -> Measured:
    first = everyone[0]

    def worst(values: Sequence[tuple[float, ...]]) -> Any:
        return tuple(max(column) for column in zip(*values, strict=True))

    parts = {
        name: Timing(
            worst([one.parts[name].forward for one in everyone]),
            worst([one.parts[name].backward for one in everyone]),
            max(one.parts[name].update for one in everyone),
            max(one.parts[name].sums for one in everyone),
        )
        for name in first.parts
    }
    sending = {kind: worst([one.sending[kind] for one in everyone]) for kind in first.sending}
    return replace(first, parts=parts, sending=sending, memory=min(one.memory for one in everyone))
