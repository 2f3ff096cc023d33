"""Windows of experience against Gymnasium itself, returns by hand."""

import builtins
import math

import pytest
import torch

from otbook.learning import Rollout, returns_to_go, rollout, swing_ups, vector_environment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-10):
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    torch.testing.assert_close(a, b.expand_as(a), atol=tol, rtol=0)


def coin(seed=0):
    g = seeded(seed)
    return lambda s: torch.randint(2, (len(s),), generator=g)


def test_a_window_holds_whole_episodes_of_a_seeded_environment():
    pytest.importorskip("gymnasium")
    env = vector_environment("CartPole-v1", 4)
    run = rollout(env, coin(), n_steps=120, seed=3)
    again = rollout(env, coin(), n_steps=120, seed=3)
    for a, b in zip(run, again, strict=True):
        assert torch.equal(a, b)
    assert run.observations.shape == (121, 4, 4)
    assert run.observations.dtype == torch.get_default_dtype()
    assert run.ended.any(0).all()
    assert torch.equal(run.valid[1:], ~run.ended[:-1])  # the step after an end starts again
    assert torch.equal(run.rewards > 0, run.valid)
    angle = run.observations[1:, :, 2].abs()
    assert (angle[run.terminated] > 12 * math.pi / 180 - 1e-6).all()
    assert (run.observations[1:][~run.valid].abs() <= 0.05 + 1e-6).all()


def test_two_windows_are_one():
    pytest.importorskip("gymnasium")
    env, act = vector_environment("CartPole-v1", 3), coin()
    first = rollout(env, act, n_steps=40, seed=5)
    second = rollout(env, act, n_steps=40, after=first)
    whole = rollout(env, coin(), n_steps=80, seed=5)
    assert torch.equal(torch.cat([first.rewards, second.rewards]), whole.rewards)
    assert torch.equal(torch.cat([first.valid, second.valid]), whole.valid)
    assert torch.equal(second.observations, whole.observations[40:])


def test_environments_without_an_array_program_and_with_real_actions_work_too():
    pytest.importorskip("gymnasium")
    env = vector_environment("Pendulum-v1", 2, max_episode_steps=10)
    run = rollout(env, lambda s: torch.zeros(len(s), 1, dtype=torch.float32), n_steps=25, seed=0)
    assert run.actions.shape == (25, 2, 1)
    assert torch.equal(run.ended[:, 0].nonzero()[:, 0], torch.tensor([9, 20]))
    assert not run.terminated.any()


def test_rollout_refuses():
    pytest.importorskip("gymnasium")
    env = vector_environment("CartPole-v1", 2)
    run = rollout(env, coin(), n_steps=2, seed=0)
    for options in ({}, {"seed": 0, "after": run}):
        with pytest.raises(ValueError, match="either seed, to start again, or after"):
            rollout(env, coin(), n_steps=2, **options)
    with pytest.raises(ValueError, match="n_steps must be a whole number"):
        rollout(env, coin(), n_steps=0, seed=0)
    with pytest.raises(ValueError, match="n_envs must be a whole number"):
        vector_environment("CartPole-v1", 0)


def test_a_missing_gymnasium_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **options):
        if name == "gymnasium":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r'pip install "otbook\[rl\]"'):
        vector_environment("CartPole-v1", 1)


def test_returns_to_go_by_hand():
    """A terminal state after two steps, a start, a step; then the same with a time limit."""
    row = lambda *v: torch.tensor(v, dtype=torch.float64)[:, None]  # noqa: E731
    flags = lambda *v: torch.tensor(v, dtype=torch.bool)[:, None]  # noqa: E731
    values = row(10, 20, 30, 40, 50)
    ended, valid, rewards = flags(0, 1, 0, 0), flags(1, 1, 0, 1), row(1, 1, 0, 1)
    run = Rollout(torch.zeros(5, 1, 1), torch.zeros(4, 1), rewards, ended, ended, valid)
    close(returns_to_go(run, values, gamma=0.5)[:, 0], row(1.5, 1, 30, 26)[:, 0])
    limited = run._replace(terminated=torch.zeros_like(ended))
    close(returns_to_go(limited, values, gamma=0.5)[:, 0], row(9, 16, 30, 26)[:, 0])


def test_returns_to_go_refuses():
    no = torch.zeros(4, 1, dtype=torch.bool)
    run = Rollout(torch.zeros(5, 1, 1), torch.zeros(4, 1), torch.zeros(4, 1), no, no, ~no)
    with pytest.raises(ValueError, match=r"values must have shape \(5, 1\)"):
        returns_to_go(run, torch.zeros(4, 1), gamma=0.5)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\]"):
        returns_to_go(run, torch.zeros(5, 1), gamma=2)


# The pendulum


def test_the_array_of_pendulums_is_gymnasiums_pendulum_step_by_step():
    gymnasium = pytest.importorskip("gymnasium")
    torque = lambda s: 3 * s[:, 1] - s[:, 2]  # noqa: E731  beyond the limits, too
    run = swing_ups(torque, n_envs=6, n_steps=60, hold=2, generator=seeded(1))
    assert (run.actions.abs() > 2).any()
    for i in range(6):
        env = gymnasium.make("Pendulum-v1")
        env.reset(seed=0)
        first = run.observations[0, i].double()
        env.unwrapped.state = [torch.atan2(first[1], first[0]).item(), first[2].item()]
        for t in range(30):
            action = run.actions[t, i : i + 1].numpy()
            steps = [env.step(action) for _ in range(2)]
            close(sum(step[1] for step in steps), run.rewards[t, i], 2e-3)
            close(steps[-1][0], run.observations[t + 1, i], 2e-4)


def test_an_episode_of_pendulums_is_a_window():
    pytest.importorskip("gymnasium")
    still = lambda s: torch.zeros(len(s))  # noqa: E731
    run, again = (swing_ups(still, n_envs=300, n_steps=12, hold=4, generator=seeded(2)) for _ in range(2))
    for a, b in zip(run, again, strict=True):
        assert torch.equal(a, b)
    assert run.observations.shape == (4, 300, 3)
    assert run.observations.dtype == run.rewards.dtype == torch.get_default_dtype()
    assert run.valid.all()
    assert not run.terminated.any()
    assert torch.equal(run.ended.sum(0), torch.ones(300, dtype=torch.long))
    assert run.ended[-1].all()
    angle, speed = (
        torch.atan2(run.observations[0, :, 1], run.observations[0, :, 0]),
        run.observations[0, :, 2],
    )
    for value, end in ((angle, math.pi), (speed, 1.0)):
        assert value.abs().max() <= end + 1e-6
        assert value.abs().max() > 0.95 * end
        assert value.mean().abs() < 4 * end / math.sqrt(3 * 300)


def test_swing_ups_refuses():
    still = lambda s: torch.zeros(len(s))  # noqa: E731
    with pytest.raises(ValueError, match="hold must divide n_steps = 10, but is 4"):
        swing_ups(still, n_envs=1, n_steps=10, hold=4, generator=seeded())
    with pytest.raises(ValueError, match="n_envs must be a whole number"):
        swing_ups(still, n_envs=0, generator=seeded())
