"""A device that stands in for a GPU where there is none: its tensors are arrays of the CPU in disguise.

It refuses what code that has only seen a CPU gets wrong on a GPU: two devices in one operation, NumPy
arrays of its tensors, random numbers from a generator of the CPU, products of integer matrices. So the
tests of "everything stays on the device of the data" run on any machine. What a kernel of CUDA computes,
and whether there is one, they do not show. Derivatives in forward mode do not work here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableTorchDispatch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class Module(_DummyBackendModule):
    """What ``torch.cuda`` is for a GPU: here a device without random numbers of its own."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


#: PyTorch allows letters and underscores only.
NAME = "stand_in"
_setup_privateuseone_for_python_backend(NAME, Module())
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten

#: What copies from one device to another.
MOVES = {aten._to_copy.default, aten.copy_.default}
#: Here indices may come from the CPU.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
#: Not elementwise by name, but a scalar of the CPU is welcome.
SCALARS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, *INDEXING}
#: GPUs multiply no matrices of integers.
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mv.default, aten.addmm.default, aten.baddbmm.default}


class Guest(Tensor):
    """A tensor that says it is on the stand-in; ``host`` has its entries."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> Guest:
        guest = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        guest.host = host
        return guest

    def __repr__(self) -> str:
        return f"Guest({self.host})"

    def __format__(self, spec: str) -> str:
        return format(self.host, spec)

    def tolist(self) -> Any:
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, operation: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(operation, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """Within it, the stand-in is a device like any other."""

    def __enter__(self) -> StandIn:
        # What torch.tensor(…, device=…) makes is then moved by an operation that is seen here.
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # A backward pass in a thread of its own, as devices have it, would leave this mode.
        self.threads = torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        self.threads.__exit__(*raised)
        super().__exit__(*raised)

    def __torch_dispatch__(
        self, operation: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return run(operation, args, kwargs or {})


def run(operation: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what the stand-in is asked for, if a GPU would do it."""
    leaves = tree_leaves((args, kwargs))
    guests = [t for t in leaves if isinstance(t, Guest)]
    device = kwargs.get("device")
    if device is not None:
        stays = torch.device(device).type == NAME
    else:
        stays = isinstance(args[0], Guest) if operation in MOVES else bool(guests)
    if stays or guests:
        refuse(operation, leaves, args)
    if stays and device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = operation(*tree_map(host, args), **tree_map(host, kwargs))
    if torch.Tag.inplace_view in operation.tags:
        with _DisableTorchDispatch():
            return operation(*args, **kwargs)  # the disguise takes the new shape too
    if not stays:
        return found
    here = {id(guest.host): guest for guest in guests}

    def guest(t: Any) -> Any:
        # What an operation in place returns is its argument itself.
        if not isinstance(t, Tensor):
            return t
        return here[id(t)] if id(t) in here else Guest(t)

    return tree_map(guest, found)


def host(t: Any) -> Any:
    return t.host if isinstance(t, Guest) else t


def refuse(operation: OpOverload, leaves: list, args: tuple) -> None:
    """Raise where a GPU would."""
    tensors = [t for t in leaves if isinstance(t, Tensor)]
    strangers = [t for t in tensors if not isinstance(t, Guest)]
    if strangers and operation not in MOVES:
        if operation in INDEXING and isinstance(args[0], Guest):
            strangers = [t for t in args[2:3] if not isinstance(t, Guest)]
        scalars = torch.Tag.pointwise in operation.tags or operation in SCALARS
        if any(t.ndim or not scalars for t in strangers):
            raise RuntimeError(f"{operation}: tensors on the CPU and on another device")
    if any(isinstance(t, torch.Generator) for t in leaves):
        raise RuntimeError(f"{operation}: the generator is on the CPU")
    if operation in PRODUCTS and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        raise RuntimeError(f"{operation}: not on a GPU for {tensors[0].dtype}")
