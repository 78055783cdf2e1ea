"""AWAC, BC and 10 %-BC compose to CORL's numbers (facts 3.4, 3.5, 7.6), typed here by hand."""

from __future__ import annotations

import pytest
from test_configs_ppo import composed


@pytest.mark.parametrize(
    ("tokens", "temperature", "shift", "episodes"),
    [
        (("dataset=hopper-medium-v2",), 0.3333, 0.0, 10),
        (("dataset=walker2d-expert-v2",), 0.3333, 0.0, 10),
        (("dataset=antmaze-large-play-v2",), 0.1, -1.0, 100),
        (("--data.dataset", "d4rl:pen-cloned-v1"), 0.1, 0.0, 10),
        (("--data.dataset", "d4rl:maze2d-large-v1"), 0.1, 0.0, 100),
    ],
)
def test_awac_composes_to_corls_row(tokens: tuple[str, ...], temperature: float, shift: float, episodes: int) -> None:
    offline, data, whole = composed("offline", "offline=awac", *tokens)
    assert (offline["class"], offline["temperature"], offline["weight_cap"]) == ("awac.AWAC", temperature, 100.0)
    assert (offline["actor_lr"], offline["critic_lr"], offline["discount"], offline["polyak"]) == (
        3e-4, 3e-4, 0.99, 0.005
    )  # fmt: skip
    assert list(offline["hidden"]) == [256] * 3 and whole["trainer"]["max_steps"] == 1_000_000
    assert (data["batch_size"], data["normalize"], data["eval_episodes"]) == (256, True, episodes)
    assert (data["reward_scale"], data["reward_shift"]) == (1.0, shift)


@pytest.mark.parametrize(("source", "fraction"), [("bc", 1.0), ("bc10", 0.1)])
@pytest.mark.parametrize(
    ("online", "family"), [("o2td3", "deterministic"), ("o2sac", "squashed_gaussian"), ("o2ppo", "gaussian")]
)
def test_bc_makes_the_policy_that_goes_online(source: str, fraction: float, online: str, family: str) -> None:
    offline, data, whole = composed("offline", f"offline={source}", f"online={online}")
    assert (offline["class"], offline["family"], offline["fraction"]) == ("bc.BC", family, fraction)
    assert (offline["actor_lr"], offline["hidden"], whole["trainer"]["max_steps"]) == (3e-4, None, 1_000_000)
    assert (data["batch_size"], data["normalize"]) == (256, True)
