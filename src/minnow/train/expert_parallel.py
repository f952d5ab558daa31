"""Expert parallelism, put on a model from outside: ranks share out the experts of a mixture, and tokens travel to them.

Router and all else stay whole on every rank. The rows that a rank's router has chosen experts for go to the experts'
ranks (all-to-all), through them there, and back (GShard, arXiv 2006.16668).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from minnow.errors import UserError
from minnow.model.feed_forward import Experts
from minnow.train.exchange import exchange


def share_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave of every mixture's experts those of this rank; ``mesh`` has one dimension, the ranks that share them.

    Raises:
        UserError: there are none, or ``mesh`` does not go into their number.
    """
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    if not mixtures:
        raise UserError(f"parallel.expert is {mesh.size()}, and the model has no experts; leave it out")
    for experts in mixtures:
        if experts.shape.experts % mesh.size():
            raise UserError(
                f"parallel.expert is {mesh.size()}, which does not go into {experts.shape.experts} experts; use a divisor "
                f"of {experts.shape.experts}"
            )
        for name in ("gate_up", "down"):
            here = getattr(experts, name).detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
            setattr(experts, name, nn.Parameter(DTensor.from_local(here, mesh, [Shard(0)], run_check=False)))
        experts.transform = partial(_transform, experts, mesh.get_group())  # type: ignore[method-assign]


def experts_apart(mesh: DeviceMesh) -> Callable[[nn.Parameter], Any]:
    """For ``fully_shard``: shared-out experts are split over ``data`` of ``mesh``, all else as it is told.

    Args:
        mesh: ``replicate``, ``data``, ``expert``.
    """
    # Not exported by torch.distributed.fsdp, whose documentation names it.
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo, ShardPlacementResult

    over: FSDPMeshInfo = FSDPMeshInfo(mesh["data"], shard_mesh_dim=0)
    if mesh.shape[0] > 1:
        over = HSDPMeshInfo(mesh["replicate", "data"], shard_mesh_dim=1, replicate_mesh_dim=0)
    return lambda parameter: ShardPlacementResult(Shard(0), over) if isinstance(parameter, DTensor) else None


def _transform(experts: Experts, group: Any, x: Tensor, counts: Tensor) -> Tensor:
    """As :meth:`Experts.transform`, where the experts are."""
    ours = counts.view(group.size(), -1)  # [ranks, experts of each]
    theirs = torch.empty_like(ours)  # rows from each rank for each expert here
    dist.all_to_all_single(theirs, ours, group=group)
    sent, received = ours.sum(1).tolist(), theirs.sum(1).tolist()
    rows = exchange(x, sent, received, group)
    here = torch.arange(theirs.shape[1], device=x.device).repeat(len(theirs)).repeat_interleave(theirs.flatten())
    order = here.argsort(stable=True)  # by expert, then by rank
    held: list[Any] = [experts.gate_up, experts.down]  # DTensors, as share_experts has left them
    gate_up, down = (weights.to_local() for weights in held)
    made = experts.through(gate_up, down, rows[order], theirs.sum(0))
    return exchange(made[order.argsort()], received, sent, group)
