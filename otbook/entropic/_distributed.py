"""Sinkhorn over several processes: each holds some rows, all hold the columns.

The semi-dual is a function of g alone, and g is replicated. Every process works on the rows that it
holds; their column sums are added over all processes, two vectors of length m in each iteration at
most. What the core loop decides on is the same everywhere, so all processes take the same steps.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from .. import _check
from .._check import ArrayLike
from .._result import ConvergenceWarning, OTResult
from ..costs import PointCloudCost
from ._agreement import agree, check_own
from ._dual import maximise, schedule
from ._kernel import PointCloudKernel
from ._rows import plan_rows, softmin
from ._sinkhorn import START


def sinkhorn_sharded(
    x_local: ArrayLike,
    y: ArrayLike,
    a_local: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    eps: float,
    tol: float = 1e-6,
    max_iter: int = 10_000,
    cost: str = "sqeuclidean",
    group: dist.ProcessGroup | None = None,
    progress: bool = False,
) -> OTResult:
    r"""Entropic optimal transport of a cloud that is spread over the processes of a group.

    Solves min_P ⟨C, P⟩ + ε KL(P ‖ a⊗b) subject to P1 = a, Pᵀ1 = b, as
    :func:`~otbook.entropic.sinkhorn` does, where C_ij = c(x_i, y_j) and the rows i of all processes,
    one process after the other, are the rows of the problem. Every process of the group calls this
    function. Each needs memory O(n_local + m), until it asks for its rows of the plan.

    Args:
        x_local: the source points of this process, shape (n_local, d); as many as it likes, at least one.
        y: target points, shape (m, d), the same on every process.
        a_local: the weights of these source points, shape (n_local,), sum 1 over all processes together;
            None everywhere means uniform. Zeros are allowed.
        b: target weights, shape (m,), sum 1, the same on every process; None means uniform.
        eps: weight ε of the KL term, in units of C.
        tol: stop when ‖P1 − a‖₁ + ‖Pᵀ1 − b‖₁ ≤ tol.
        max_iter: largest number of iterations, as for :func:`~otbook.entropic.sinkhorn`.
        cost: ``"sqeuclidean"`` (‖x − y‖², without ½), ``"euclidean"`` or ``"cosine"``.
        group: the processes that take part; None means all of them.
        progress: show a progress bar, on the first process of the group.

    Returns:
        An :class:`OTResult` without gradients. ``f``, shape (n_local,), and ``plan``, shape (n_local, m),
        belong to the points of this process; everything else is that of the whole problem and the
        same on every process. The potentials are normalised by ⟨a, f⟩ = ⟨b, g⟩.

    Raises:
        RuntimeError: without a process group, and where another process refused its arguments.
        ValueError: for arguments that make no problem, and for y, b or options that differ between
            processes; for points that require a gradient.

    Warns:
        ConvergenceWarning: if the tolerance is not reached, on every process.

    Note:
        Processes must compute alike, with the same hardware and number of threads, so that replicated
        numbers stay equal to the last bit; this is checked. The arguments are checked on all processes
        before the first iteration, so that an error in one ends all. A process that dies later leaves
        the others waiting until the timeout of ``init_process_group``. With NCCL, x_local lives on the
        GPU of the process, chosen before by ``torch.cuda.set_device``.

    Source:
        As for :func:`~otbook.entropic.sinkhorn`. The shards are those of data parallelism: of a product
        Tᵀw = Σ_k T_kᵀ w_k every process k computes its term.

    Example:
        >>> import torch, torch.distributed as dist
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> result = sinkhorn_sharded([[0.0], [1.0]], [[0.0], [2.0]], eps=1.0)
        >>> result.plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])
        >>> dist.destroy_process_group()
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "sinkhorn_sharded needs a process group: call torch.distributed.init_process_group('gloo'), on "
            "GPUs 'nccl', in every process, and start them with torchrun --nproc-per-node 2 script.py; "
            "for a single process there is sinkhorn(PointCloudCost(x, y), …)"
        )
    if dist.get_rank(group) < 0:
        raise ValueError("group does not hold this process; call sinkhorn_sharded in its processes only")
    own, refusal = {}, None
    try:
        own = check_own(x_local, y, a_local, b, eps, tol, max_iter, cost, progress, group)
    except Exception as error:
        refusal = error
    rows, mass = agree(own, refusal, group)
    C, a, b = own["C"], own["a"], own["b"]
    if a is None:
        a, mass = b.new_ones(len(C.x)), rows
    elif abs(mass - 1) > _check.MASS_TOLERANCE[C.dtype]:
        raise ValueError(
            f"a_local has mass {mass:.8g} over all processes, not 1; divide it by the sum over all of them"
        )
    a = a / mass

    kernel = ShardedKernel(C, a, b, group)
    eps, tol, max_iter = own["eps"], own["tol"], own["max_iter"]
    with tqdm(disable=not progress or not kernel.first, unit="it") as bar:

        def report(n_iter: int, error: Tensor, dual: Tensor) -> None:
            bar.update(n_iter - bar.n)
            bar.set_postfix_str(f"marginal error {error.item():.1e}", refresh=False)

        # The report takes a sum over all processes, so it runs on all or none of them.
        g, n_iter = maximise(
            kernel,
            torch.zeros_like(b),
            schedule(eps, START * kernel.largest(C.bound())),
            tol=0.8 * tol,  # the rest is for rounding the plan to its dtype
            max_iter=max_iter,
            report=report if progress else None,
        )
    return _result(kernel, g, eps, tol, n_iter, max_iter)


class ShardedKernel(PointCloudKernel):
    """The kernel of the rows of this process; sums over rows run over all processes."""

    def __init__(self, C: PointCloudCost, a: Tensor, b: Tensor, group: dist.ProcessGroup | None) -> None:
        super().__init__(C, a, b)
        self.group, self.first = group, dist.get_rank(group) == 0
        # Libraries need not factorise alike to the last bit on all processes, which must decide alike.
        self.factorisable = False

    def absorb(self, g: Tensor, eps: float, *, exact: bool) -> tuple[Tensor, Tensor]:
        """Remember g and the half-step f of these rows; returns f and the column sums over all rows."""
        f, c = super().absorb(g, eps, exact=exact)
        self.received = self.sum(c)
        self.rounding = self.largest(self.rounding)
        # A sweep starts from these column sums, which the processes together may count only once.
        self.c = self.received if self.first else torch.zeros_like(c)
        return f, self.received

    def measure(self, g: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What g leads to: f and the row sums of these rows, the column sums and the cost of all."""
        f, rows, _, transport = super().measure(g, eps)
        return f, rows, self.received, transport

    def columns(self, w: Tensor) -> Tensor:
        """The product Tᵀ w over all rows."""
        return self.sum(super().columns(w))

    def sweep(self, v: Tensor, near: bool | None = None) -> tuple[Tensor, Tensor]:
        """The product r = T v for these rows, and Tᵀ(a/r) over all rows."""
        r, product = super().sweep(v, near)
        return r, self.sum(product)

    def gram(self, w: Tensor, v: Tensor) -> Tensor:
        """The product Tᵀ diag(w) T v over all rows."""
        return self.sum(super().gram(w, v))

    def total(self, x: Tensor) -> Tensor:
        """The sum over all rows of all processes."""
        return self.sum(x.sum(-1))

    def transform(self, f: Tensor, eps: float) -> Tensor:
        """The entropic c-transform of f, g_j = −ε log Σ_i a_i exp((f_i − C_ij)/ε), over all rows."""
        E = -softmin(self.C.mT, f, self.a, eps) / eps  # −∞ if no row here has weight
        peak = E.clone()
        dist.all_reduce(peak, dist.ReduceOp.MAX, group=self.group)
        return -eps * (peak + self.sum((E - peak).exp()).log())

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        dist.all_reduce(x, group=self.group)
        return x

    def largest(self, number: float) -> float:
        """The largest of the processes' numbers."""
        x = torch.full_like(self.b[:1], number)
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x.item()


def _result(kernel: ShardedKernel, g: Tensor, eps: float, tol: float, n_iter: int, max_iter: int) -> OTResult:
    """Measure the plan of g, and wrap it up."""
    C, a, b, dtype = kernel.C, kernel.a, kernel.b, kernel.C.dtype
    f, rows, columns, transport = kernel.measure(g, eps)
    error = kernel.total((rows - a).abs()) + (columns - b).abs().sum(-1)
    if dtype == torch.float32:
        # Rounded to float32, an entry may be off by half a unit, and counts in both marginals.
        error = error + torch.finfo(dtype).eps
    if (b == 0).any():
        # The loop leaves g alone where there is no mass; the c-transform of f belongs there.
        g = torch.where(b > 0, g, kernel.transform(f, eps))
    in_f, in_g = kernel.total(a * f), (b * g).sum(-1)
    f, g = f - (in_f - in_g) / 2, g + (in_f - in_g) / 2

    converged = bool(error <= tol)
    if not converged:
        spent = "raise max_iter or eps" if n_iter >= max_iter else "tol is below rounding; raise tol or eps"
        warnings.warn(
            f"sinkhorn_sharded stopped after {n_iter} iterations with marginal error {error.item():.2g} "
            f"above tol = {tol:g}: {spent}{', or compute in float64' if dtype == torch.float32 else ''}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return OTResult(
        value=(in_f + in_g).to(dtype),
        cost=transport.to(dtype),
        f=f.to(dtype),
        g=g.to(dtype),
        n_iter=n_iter,
        marginal_error=error.to(dtype),
        converged=converged,
        _plan=lambda: plan_rows(C.dense(), a, b, f, g, eps),
    )
