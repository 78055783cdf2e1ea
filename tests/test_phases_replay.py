"""What the online phase learns from: halves and modes of the replay, and what interaction writes into it (T24)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import Fit, Run

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.methods.o2 import td3
from o2o_lightning.phases.online import Online
from o2o_lightning.replay.buffer import Replay
from o2o_lightning.replay.ring import Ring
from o2o_lightning.replay.store import TransitionStore

EMBEDDED = "embedded:hopper-medium"
MARK = 1e6


def store_of(dataset: str) -> TransitionStore:
    data = OfflineData(dataset=dataset)
    data.setup("fit")
    assert data.store is not None
    return data.store


def ring_of(count: int, observation_dim: int, action_dim: int, capacity: int = 1000) -> Ring:
    """``count`` transitions whose reward is MARK + their number."""
    ring = Ring(capacity, observation_dim, action_dim)
    for i in range(count):
        observation = np.full(observation_dim, i, np.float32)
        ring.add(observation, np.zeros(action_dim, np.float32), MARK + i, observation + 1, False, False)
    return ring


def half(store: TransitionStore, count: int = 40) -> Replay:
    """A buffer in the mode `half`, with ``count`` online transitions."""
    buffer = Replay(store)
    buffer.mix("half", store, ring_of(count, 11, 3))
    return buffer


def online(fit: Fit, chain: dict[str, Run], phase: type[Online] = Online, **options: Any) -> Run:
    settings = {"env_steps": 12, "warmup_steps": 0, "batch_size": 32, "eval_episodes": 1, **options}
    return fit(lambda: phase(td3.Online(), str(chain["align"].checkpoint)), lambda: OnlineData(**settings))


class Keeping(Online):
    """Keeps the rewards of each batch."""

    def learn(self, batch: Any, *where: int) -> Any:
        self.__dict__.setdefault("batches", []).append(batch["reward"].clone())
        return super().learn(batch, *where)


# ---- modes -------------------------------------------------------------------------------------------------------


def test_half_is_128_online_then_128_offline_transitions() -> None:
    store = store_of(EMBEDDED)
    buffer = half(store)
    known = {tuple(row) for row in store.leaves["observation"].tolist()}
    for seed in range(3):
        drawn = store.layout.columns(buffer.rows(256, torch.Generator().manual_seed(seed)))
        for batch in (drawn, buffer.sample(256)):
            assert batch["observation"].shape == (256, 11)
            assert (batch["reward"][:128] >= MARK).all()
            assert (batch["reward"][128:] < MARK).all()
            assert all(tuple(row) in known for row in batch["observation"][128:].tolist())


def test_what_was_drawn_of_the_dataset_and_not_used_is_part_of_the_state() -> None:
    store = store_of(EMBEDDED)
    first, second = (half(store) for _ in range(2))
    generator, other = torch.Generator().manual_seed(0), torch.Generator()
    for taken in range(18):  # one block of 16 and the start of the next
        second.rule.load_state_dict(first.rule.state_dict())
        other.set_state(generator.get_state())
        assert torch.equal(second.rows(32, other), first.rows(32, generator)), taken


def test_the_dataset_never_changes_while_fine_tuning(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    before = store_of(pendulum).leaves.clone()
    run = online(fit, chain, dataset=pendulum, mix="half", reward_scale=3.0)
    after = run.trainer.datamodule.store.leaves  # type: ignore[attr-defined]
    assert run.module.updates > 0
    for key in before.keys(include_nested=True, leaves_only=True):
        assert torch.equal(before[key], after[key]), key


def test_all_starts_with_the_whole_dataset_and_adds_to_it(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = online(fit, chain, dataset=pendulum, mix="all")
    buffer, store = run.trainer.datamodule.interaction.buffer, store_of(pendulum)  # type: ignore[attr-defined]
    # 60 episodes of 8 steps without next_observations: each episode's last successor is unknown
    assert len(buffer) == 60 * 7 + 12
    assert torch.equal(buffer.leaves["observation"][: 60 * 7], store.leaves["observation"][store.td_rows])


def test_part_starts_with_the_50_best_episodes(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = online(fit, chain, dataset=pendulum, mix="part")
    with h5py.File(pendulum) as file:
        rewards = file["rewards"][:].reshape(60, 8)
    best = np.sort(np.argsort(-rewards.sum(1))[:50])
    buffer = run.trainer.datamodule.interaction.buffer  # type: ignore[attr-defined]
    assert len(buffer) == 50 * 7 + 12
    np.testing.assert_array_equal(buffer.leaves["reward"][: 50 * 7].numpy(), rewards[best, :7].ravel())


@pytest.mark.parametrize("dataset", [True, False])
def test_none_learns_from_the_environment_alone(fit: Fit, chain: dict[str, Run], pendulum: str, dataset: bool) -> None:
    source = {"dataset": pendulum} if dataset else {"env_id": "Pendulum-v1"}
    run = online(fit, chain, Keeping, mix="none", **source)
    seen = set(run.trainer.datamodule.interaction.buffer.leaves["reward"][:12].tolist())  # type: ignore[attr-defined]
    assert len(run.module.batches) == 11
    assert all(batch.shape == (32,) and set(batch.tolist()) <= seen for batch in run.module.batches)


def test_rewards_are_mapped_for_learning_and_stored_raw(fit: Fit, chain: dict[str, Run]) -> None:
    run = online(fit, chain, Keeping, mix="none", env_id="Pendulum-v1", reward_scale=10.0, reward_shift=-5.0)
    stored = run.trainer.datamodule.interaction.buffer.leaves["reward"][:12]  # type: ignore[attr-defined]
    allowed = set((stored * 10.0 - 5.0).tolist())
    assert set(torch.cat(run.module.batches).tolist()) <= allowed
    assert (stored <= 0).all() and (stored >= -16.3).all()  # Pendulum's own range


def test_a_full_buffer_overwrites_its_oldest_transitions() -> None:
    ring = ring_of(25, 3, 1, capacity=10)
    assert len(ring) == 10
    assert sorted(ring.leaves["reward"][:10].tolist()) == [MARK + i for i in range(15, 25)]


# ---- interaction -------------------------------------------------------------------------------------------------


def test_the_stored_action_is_the_noisy_one_that_the_environment_executed(
    fit: Fit, chain: dict[str, Run], pendulum: str
) -> None:
    run = online(fit, chain, dataset=pendulum, env_steps=30, warmup_steps=30)
    stored = run.trainer.datamodule.interaction.buffer.leaves[:30]  # type: ignore[attr-defined]
    # the stored actions, replayed from the same start in a plain environment, lead to the stored observations
    env = gym.make("Pendulum-v1")
    observation = env.reset(seed=0)[0]
    for i in range(30):
        np.testing.assert_allclose(stored["observation"][i].numpy(), observation, atol=1e-5)
        observation, reward, *_ = env.step(2.0 * stored["action"][i].numpy())
        assert float(stored["reward"][i]) == pytest.approx(float(reward), abs=1e-4)
        np.testing.assert_allclose(stored["next", "observation"][i].numpy(), observation, atol=1e-5)
    with torch.no_grad():
        policy = run.module.method.actor(run.module.normalizer(stored["observation"]))
    noise = stored["action"] - policy
    assert 0.05 < float(noise.std()) < 0.15  # σ = 0.1
    assert stored["action"].abs().max() <= 1.0


def test_a_time_out_keeps_its_bootstrap_and_its_own_successor(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = online(fit, chain, dataset=pendulum, env_steps=202, warmup_steps=202)
    data = run.trainer.datamodule  # type: ignore[attr-defined]
    stored = data.interaction.buffer.leaves[:202]
    # Pendulum never terminates, and Gymnasium cuts it after 200 steps
    assert not stored["next", "terminated"].any()
    assert stored["next", "truncated"].nonzero().flatten().tolist() == [199]
    assert torch.equal(stored["next", "observation"][198], stored["observation"][199])
    assert not torch.equal(stored["next", "observation"][199], stored["observation"][200])
    batch = data.prepare(data.interaction.buffer.gather(torch.tensor([199])), torch.device("cpu"))
    assert batch["next", "terminated"].tolist() == [0.0]


def test_a_fall_terminates_and_is_not_a_time_out(fit: Fit) -> None:
    run = fit(
        lambda: Online(td3.Online(hidden=(16, 16))),
        lambda: OnlineData(dataset=EMBEDDED, env_steps=120, warmup_steps=117, eval_episodes=1),
    )
    stored = run.trainer.datamodule.interaction.buffer.leaves[:120]  # type: ignore[attr-defined]
    falls = stored["next", "terminated"].nonzero().flatten().tolist()
    assert falls and not stored["next", "truncated"].any()
    # Hopper's own rule: it has fallen where the torso is below 0.7 or tilted by more than 0.2
    torso = stored["next", "observation"][:, :2]
    healthy = (torso[:, 0] > 0.7) & (torso[:, 1].abs() < 0.2)
    assert torch.equal(~healthy, stored["next", "terminated"])
    assert run.module.updates == 3
