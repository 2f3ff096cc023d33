"""Experience for policies: environments of Gymnasium side by side, windows of their steps, and returns.

A learner asks for a window, computes returns from each step on, and changes its policy. All repetitions of
an experiment can share one vector of environments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import _check
from .._check import ArrayLike

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class Rollout(NamedTuple):
    """A window of T steps of N environments side by side.

    Attributes:
        observations: before each step and after the last, shape (T + 1, N, …).
        actions: what was done, shape (T, N) or (T, N, k).
        rewards: shape (T, N).
        terminated: whether the step led to a terminal state, whose value is 0, shape (T, N).
        ended: whether it ended the episode, there or at the time limit, shape (T, N).
        valid: False where the environment did not step but start again: there is no experience, shape (T, N).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    valid: Tensor


def _gymnasium():
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError('environments need Gymnasium: pip install "otbook[rl]"') from error
    return gymnasium


def vector_environment(name: str, n_envs: int, **options: object) -> VectorEnv:
    """Several copies of a Gymnasium environment that step together, as one array program where there is one.

    Args:
        name: of the environment, such as ``"CartPole-v1"``.
        n_envs: how many.
        options: of the environment, passed on.

    Returns:
        A vector environment, for :func:`rollout`.

    Raises:
        ImportError: where Gymnasium is missing.
        ValueError: for a number that is not positive.

    Example:
        >>> vector_environment("CartPole-v1", 3).reset(seed=0)[0].shape
        (3, 4)
    """
    n_envs = _check.positive_int(n_envs, "n_envs")
    gymnasium = _gymnasium()
    mode = "vector_entry_point" if gymnasium.spec(name).vector_entry_point else "sync"
    return gymnasium.make_vec(name, num_envs=n_envs, vectorization_mode=mode, **options)


def rollout(
    env: VectorEnv,
    act: Callable[[Tensor], Tensor],
    *,
    n_steps: int,
    seed: int | None = None,
    after: Rollout | None = None,
) -> Rollout:
    """Let N environments run for T steps; an environment whose episode ended starts again in the next step.

    Args:
        env: vector environment with Gymnasium's default autoreset, in the next step.
        act: maps observations (N, …), in PyTorch's default dtype, to actions (N,) or (N, k).
        n_steps: T, the steps that start an environment again included.
        seed: starts all environments again with this seed.
        after: goes on where this window of the same environments ended. Give one of both.

    Returns:
        The window, on the CPU.

    Raises:
        ValueError: for a number of steps that is not positive, or not exactly one of ``seed`` and ``after``.

    Example:
        >>> env = vector_environment("CartPole-v1", 2)
        >>> run = rollout(env, lambda s: (s[:, 2] > 0).long(), n_steps=50, seed=0)
        >>> run.observations.shape, int(run.rewards.sum()) == int(run.valid.sum())
        (torch.Size([51, 2, 4]), True)
    """
    n_steps = _check.positive_int(n_steps, "n_steps")
    if (seed is None) == (after is None):
        raise ValueError("give either seed, to start again, or after, the window to go on from")
    dtype = torch.get_default_dtype()
    if after is None:
        now = torch.as_tensor(env.reset(seed=seed)[0], dtype=dtype)
        fresh = torch.zeros(len(now), dtype=torch.bool)
    else:
        now, fresh = after.observations[-1], after.ended[-1]
    seen, rows = [now], []
    for _ in range(n_steps):
        action = act(now)
        after_step, reward, terminated, truncated, _ = env.step(action.detach().cpu().numpy())
        now = torch.as_tensor(after_step, dtype=dtype)
        end = torch.from_numpy(terminated | truncated)
        reward = torch.as_tensor(reward, dtype=dtype)
        rows.append((action.detach().cpu(), reward, torch.from_numpy(terminated.copy()), end, ~fresh))
        seen.append(now)
        fresh = end
    return Rollout(torch.stack(seen), *(torch.stack(column) for column in zip(*rows, strict=True)))


def returns_to_go(run: Rollout, values: ArrayLike, *, gamma: float) -> Tensor:
    """Discounted rewards from each step on, G_t = r_t + γ G_{t+1}, completed by values where they are unseen.

    After a terminal state there is nothing to come; at a time limit and at the end of the window the rest
    is V(s_{t+1}). Where ``run.valid`` is False the result is V(s_t).

    Args:
        run: a window of experience.
        values: V of all its observations, shape (T + 1, N), in units of the reward; zeros cut the sum off.
        gamma: discount γ, in [0, 1].

    Returns:
        Returns, shape (T, N), in units of the reward.

    Raises:
        ValueError: for values of another shape, or a discount outside [0, 1].

    Source:
        Sutton, Barto (2018), chapter 13.

    Example:
        >>> no, yes = torch.zeros(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool)
        >>> run = Rollout(torch.zeros(4, 1, 1), torch.zeros(3, 1), torch.ones(3, 1), no, no, yes)
        >>> returns_to_go(run, torch.zeros(4, 1), gamma=0.5)[:, 0]
        tensor([1.7500, 1.5000, 1.0000])
    """
    V = _check.tensor(values, "values", like=run.rewards).detach()
    n_steps, n = run.rewards.shape
    if V.shape != (n_steps + 1, n):
        raise ValueError(
            f"values must have shape {(n_steps + 1, n)}, one for each observation, but have {tuple(V.shape)}"
        )
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], but is {gamma:g}")
    result, later = torch.empty_like(run.rewards), V[-1]
    for t in reversed(range(n_steps)):
        rest = torch.where(run.ended[t], torch.where(run.terminated[t], 0.0, V[t + 1]), later)
        later = torch.where(run.valid[t], run.rewards[t] + gamma * rest, V[t])
        result[t] = later
    return result


def swing_ups(
    act: Callable[[Tensor], Tensor],
    *,
    n_envs: int,
    n_steps: int = 200,
    hold: int = 1,
    generator: torch.Generator,
) -> Rollout:
    """One episode each of N pendulums, ``Pendulum-v1`` of Gymnasium, in one array program.

    Gymnasium has no vector environment for the pendulum, and a loop over N copies costs as many calls. But
    the formulas of its class hold for arrays of states, so one copy is stepped with all states at once.

    Args:
        act: maps observations (N, 3), the cosine and sine of the angle and its speed, to torques (N,); the
            environment clips them to [−2, 2].
        n_envs: how many.
        n_steps: steps of the environment; its time limit is 200.
        hold: every torque is held for so many steps, a divisor of ``n_steps``.
        generator: of the first states, with the law of Gymnasium: angle in [−π, π], speed in [−1, 1].

    Returns:
        The window of n_steps / hold decisions; a reward is the sum over the steps of a decision. Nothing is
        terminal, and all episodes end with the window.

    Raises:
        ImportError: where Gymnasium is missing.
        ValueError: for numbers that are not positive, or a ``hold`` that does not divide ``n_steps``.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> run = swing_ups(lambda s: torch.zeros(len(s)), n_envs=5, n_steps=20, hold=4, generator=g)
        >>> run.observations.shape, run.rewards.shape, bool((run.rewards < 0).all())
        (torch.Size([6, 5, 3]), torch.Size([5, 5]), True)
    """
    n_envs, n_steps = _check.positive_int(n_envs, "n_envs"), _check.positive_int(n_steps, "n_steps")
    hold = _check.positive_int(hold, "hold")
    if n_steps % hold:
        raise ValueError(f"hold must divide n_steps = {n_steps}, but is {hold}")
    _check.generator(generator)
    env = _gymnasium().make("Pendulum-v1").unwrapped
    dtype = torch.get_default_dtype()
    angle, speed = 2 * torch.rand(2, n_envs, generator=generator, dtype=torch.float64) - 1
    angle = torch.pi * angle
    env.state = torch.stack([angle, speed]).numpy()
    seen = [torch.stack([angle.cos(), angle.sin(), speed], -1).to(dtype)]
    actions, rewards = [], []
    for _ in range(n_steps // hold):
        action = act(seen[-1]).detach().cpu()
        reward = torch.zeros(n_envs, dtype=dtype)
        for _ in range(hold):
            after, income, *_ = env.step(action.numpy()[None])
            reward = reward + torch.as_tensor(income, dtype=dtype)
        actions.append(action)
        rewards.append(reward)
        seen.append(torch.as_tensor(after, dtype=dtype).T)
    rewards = torch.stack(rewards)
    no = torch.zeros(rewards.shape, dtype=torch.bool)
    ended = no.clone()
    ended[-1] = True
    return Rollout(torch.stack(seen), torch.stack(actions), rewards, no, ended, ~no)
