"""A model over ranks: experts on the expert axis, everything sharded by FSDP2 (`fully_shard`), and the way back to whole tensors.

The optimizer works on the local shards, which are plain tensors: every element of the model is on exactly one rank.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from zaya_core.model.decoder import Zaya
from zaya_core.ops.exchange import apply_experts_across
from zaya_core.train.ranks import AXES, Ranks

EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")


def shard_model(model: Zaya, ranks: Ranks, *, dtype: torch.dtype) -> None:
    """Make a model on the meta device one rank's part of it, in place; nothing to do for one rank alone.

    Experts' weights travel in `dtype`, in which the products take them anyway; everything else in float32.
    """
    if ranks.world == 1:
        return
    assert ranks.mesh is not None
    everyone, sharers = ranks.mesh[AXES]._flatten("all"), ranks.mesh["data", "context"]._flatten("sharers")
    for layer in model.model.layers:
        experts = layer.mlp.experts
        if ranks.expert > 1:
            for name, parameter in list(experts.named_parameters()):
                setattr(experts, name, nn.Parameter(_own_experts(parameter, ranks), requires_grad=parameter.requires_grad))
            experts.apply_experts = partial(apply_experts_across, group=ranks.group("expert"))
        policy = MixedPrecisionPolicy(param_dtype=dtype if dtype != model.dtype else None, reduce_dtype=model.dtype)
        placement = partial(_placement, num_shards=sharers.size())
        fully_shard(experts, mesh=sharers, mp_policy=policy, shard_placement_fn=placement)
        fully_shard(layer, mesh=everyone)
    fully_shard(model, mesh=everyone)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are sums over all ranks already
            module.set_force_sum_reduction_for_comms(True)


def local_part(parameter: Tensor) -> Tensor:
    """This rank's shard as a plain leaf that shares its memory; the parameter itself where there are no shards."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """The shard of `whole` that a rank holds of the parameter `like`, as a view."""
    if not isinstance(like, DTensor):
        return whole
    (placement,), mesh = like.placements, like.device_mesh
    chunks = whole.chunk(mesh.size(), placement.dim)
    mine = mesh.get_local_rank()
    return chunks[mine] if mine < len(chunks) else whole.narrow(placement.dim, 0, 0)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The whole of which every rank gives its shard `part`, laid out as the parameter `like`."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()


def cut_stored(name: str, stored: Tensor, like: Tensor, ranks: Ranks) -> Tensor:
    """A rank's part of a stored tensor."""
    return cut(_own_experts(stored, ranks) if name.endswith(EXPERTS) else stored, like)


def joined_to_store(name: str, part: Tensor, like: Tensor, ranks: Ranks) -> Tensor:
    """The stored tensor of which every rank gives its part; all ranks call this in the same order."""
    whole = joined(part, like)
    if ranks.expert == 1 or not name.endswith(EXPERTS):
        return whole
    slices = [torch.empty_like(whole) for _ in range(ranks.expert)]
    dist.all_gather(slices, whole.contiguous(), group=ranks.group("expert"))
    return torch.cat(slices)


def _own_experts(stacked: Tensor, ranks: Ranks) -> Tensor:
    per_rank = stacked.shape[0] // ranks.expert
    return stacked[ranks.expert_rank * per_rank : (ranks.expert_rank + 1) * per_rank]


def _placement(parameter: nn.Parameter, *, num_shards: int) -> Shard:
    """Whole experts where they go round, else rows of every expert; only the first dimension can be cut unevenly."""
    for dim in (0, 1):
        if parameter.shape[dim] % num_shards == 0:
            return Shard(dim)
    return Shard(0)
