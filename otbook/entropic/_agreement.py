"""What the processes of a sharded problem have to agree on before any of them waits for another."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _check
from .._check import ArrayLike
from ..costs import PointCloudCost


def check_own(
    x: ArrayLike,
    y: ArrayLike,
    a: ArrayLike | None,
    b: ArrayLike | None,
    eps: float,
    tol: float,
    max_iter: int,
    cost: str,
    progress: bool,
    group: dist.ProcessGroup | None,
) -> dict[str, Any]:
    """The arguments of this process, checked as far as one process can."""
    x = _check.points(x, "x_local", like=None if isinstance(x, Tensor) else _check.first_array(x, y))
    y = _check.points(y, "y", like=x)
    _check.same_dimension(x, y, ("x_local", "y"))
    for name, cloud in (("x_local", x), ("y", y)):
        if cloud.ndim > 2:
            raise ValueError(
                f"{name} has shape {tuple(cloud.shape)}, but only one problem, (n, d), can be spread over "
                "processes; solve the batch one by one"
            )
    for name, t in (("x_local", x), ("y", y), ("a_local", a), ("b", b)):
        if torch.is_grad_enabled() and getattr(t, "requires_grad", False):
            raise ValueError(
                f"{name} requires a gradient, which sinkhorn_sharded does not give; pass {name}.detach(), "
                "or use sinkhorn(PointCloudCost(x, y), …)"
            )
    if dist.get_backend(group) == "nccl" and not x.is_cuda:
        raise ValueError("x_local is on the CPU, where NCCL does not go; use x_local.cuda() or a gloo group")
    if a is not None:
        a = _check.tensor(a, "a_local", like=x).detach().double()
        if a.shape != x.shape[:1]:
            raise ValueError(f"a_local must have shape ({len(x)},), but has shape {tuple(a.shape)}")
        bad = ~(torch.isfinite(a) & (a >= 0))
        if bad.any():
            raise ValueError(f"a_local holds {a[bad][0].item():.6g}; weights are finite and not negative")
    b = _check.weights(b, len(y), "b", like=y).detach().double()
    return {
        "C": PointCloudCost(x.detach(), y.detach(), cost),
        "a": a,
        "b": b / b.sum(),
        "eps": _check.positive(eps, "eps", remedy="for the unregularised problem use emd"),
        "tol": _check.positive(tol, "tol"),
        "max_iter": _check.positive_int(max_iter, "max_iter"),
        "progress": bool(progress),
    }


def agree(
    own: dict[str, Any], refusal: Exception | None, group: dist.ProcessGroup | None
) -> tuple[int, float]:
    """The number of rows and their mass on all processes, or the same end for all of them.

    What one process refuses, and what should be replicated and is not, stops every process here, where
    none of them waits for another yet.
    """
    shared, rows, mass = {}, 0, 0.0
    if refusal is None:
        C, a = own["C"], own["a"]
        rows, mass = len(C.x), 0.0 if a is None else a.sum().item()
        shared = {
            "the dtype": str(C.dtype),
            "the machine": _machine(C.device),
            "y": _fingerprint(C.y),
            "b": _fingerprint(own["b"]),
            "a_local=None": a is None,
            "cost": C.cost,
        } | {name: own[name] for name in ("eps", "tol", "max_iter", "progress")}
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (refusal and str(refusal), shared, rows, mass), group=group)

    if refusal is not None:
        raise refusal
    for process, (message, *_) in enumerate(everyone):
        if message is not None:
            raise RuntimeError(f"process {process} of the group refused its arguments: {message}")
    for process, (_, others, *_) in enumerate(everyone):
        for name, value in everyone[0][1].items():
            if others[name] != value:
                raise ValueError(
                    f"{name} differs between processes: {value} on the first, {others[name]} on number "
                    f"{process}; all but x_local and a_local must be the same everywhere"
                )
    return sum(rows for _, _, rows, _ in everyone), sum(mass for *_, mass in everyone)


def _machine(device: torch.device) -> str:
    """What decides how sums are rounded."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} with PyTorch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability} with {torch.get_num_threads()} threads and PyTorch {torch.__version__}"


def _fingerprint(t: Tensor) -> tuple[torch.Size, float, float]:
    """The shape and two sums, which tell tensors apart that differ in an entry or in the order."""
    flat = t.double().flatten()
    order = torch.arange(len(flat), device=t.device)
    return t.shape, flat.sum().item(), (flat * order).sum().item()
