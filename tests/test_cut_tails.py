"""Returns of episodes that a time limit or the recording cut: a deterministic chain whose values are known exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o_lightning.data.module import OfflineData
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.o2 import ppo
from o2o_lightning.objectives.returns import cut_returns
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.reevaluate import Reevaluate

REWARD, DISCOUNT = np.array([1.0, 2.0, 4.0]), 0.8
RING = np.roll(np.eye(3), 1, axis=1)  # state i goes to i + 1, and the last one to the first
VALUE = np.linalg.solve(np.eye(3) - DISCOUNT * RING, REWARD)
EPISODE = st.tuples(st.integers(0, 2), st.integers(1, 9), st.sampled_from(["terminated", "truncated", "lost", "open"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(EPISODE, min_size=1, max_size=8))
def test_a_return_with_the_value_behind_its_cut_is_the_value_itself(episodes: list[tuple[int, int, str]]) -> None:
    states, last, value, kinds = [], [], [], []
    for number, (start, length, kind) in enumerate(episodes):
        run = [(start + i) % 3 for i in range(length)]
        if kind == "open" and number < len(episodes) - 1:  # only a file's last episode can end without a flag
            kind = "truncated"
        gone = DISCOUNT ** np.arange(length, 0, -1) * VALUE[(run[-1] + 1) % 3] if kind == "terminated" else 0.0
        value += list(VALUE[run] - gone)  # of an episode that terminates, nothing comes behind its last row
        tail = run[-1] if kind in ("lost", "open") else (run[-1] + 1) % 3
        states, last, kinds = states + run, last + [tail] * length, kinds + [""] * (length - 1) + [kind]
    flags = {
        name: torch.tensor([kind == name for kind in kinds]) for name in ("terminated", "truncated", "lost", "open")
    }
    known = ~(flags["lost"] | flags["open"])
    reward = torch.from_numpy(REWARD)[states]
    returns, weight = cut_returns(reward, flags["terminated"], flags["truncated"] | flags["lost"], known, DISCOUNT)
    found = returns + weight * torch.from_numpy(VALUE)[last]
    torch.testing.assert_close(found, torch.tensor(value), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 episodes of the chain, 5 steps each, all cut by a time limit; the successor of the last step is not stored."""
    states = np.concatenate([(start + np.arange(5)) % 3 for start in range(90)])
    columns = {"observations": np.eye(3, dtype=np.float32)[states], "rewards": REWARD[states].astype(np.float32)}
    flags = {"terminals": np.zeros(450, bool), "timeouts": np.arange(450) % 5 == 4}
    path = tmp_path_factory.mktemp("data") / "ring.hdf5"
    return write(path, **columns, **flags, actions=np.linspace(-2, 2, 450, dtype=np.float32)[:, None])


@pytest.fixture(scope="module")
def source(fit, ring: Path) -> str:
    return str(fit(lambda: Offline(IQL(hidden=(8,))), lambda: OfflineData(str(ring), "Pendulum-v1"), 1).checkpoint)


@pytest.mark.parametrize("option", ["bootstrap_tails", "cut", "leak_returns"])
def test_v_is_exact_where_its_tails_are_bootstrapped_and_only_there(fit, ring: Path, source: str, option: str) -> None:
    options = {"bootstrap_tails": {}, "cut": {"bootstrap_tails": False}, "leak_returns": {"leak_returns": True}}[option]
    method = ppo.Reevaluate(hidden=(), discount=DISCOUNT, value_lr=0.05, **options)
    data = OfflineData(str(ring), "Pendulum-v1", batch_size=64, eval_every_updates=0, eval_episodes=1)
    module = fit(Reevaluate(method, source), data, 600).module
    with torch.no_grad():
        found = method.value(module.normalizer(torch.eye(3)))
    error = float((found - torch.from_numpy(VALUE)).abs().max() / VALUE.max())
    assert (error < 0.01) == (option == "bootstrap_tails"), error
