"""Every row of the O2SAC and CQL tables, and the data rails of O2TD3's (facts 7.1, 7.2, 7.4), typed here by hand."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import Any

import pytest

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, lightning_config
from o2o_lightning.cli.models import owners

PHASES = ("offline", "reevaluate", "align", "online")
MUJOCO = [f"{body}-{level}-v2" for body in ("halfcheetah", "hopper", "walker2d") for level in
          ("medium", "medium-replay", "medium-expert", "expert")]  # fmt: skip
THREE, FIVE = [256] * 3, [256] * 5

# α, τ start and end, λ₀, critics, depth, state norm, reward scale and shift, VA steps, warm-up, env steps,
# evaluation every, episodes, PR and VA every
MUJOCO_M = (0.2, 0.125, 2.0, 1.0, 2, THREE, True, 1.0, 0.0, 500_000, 1000, 100_000, 1000, 10, 5000)
MUJOCO_E = (0.5, 0.005, 0.125, 1.0, 2, THREE, True, 1.0, 0.0, 500_000, 1000, 100_000, 1000, 10, 5000)
UMAZE = (0.2, 0.125, 2.0, 1.0, 1, FIVE, False, 10.0, -5.0, 1_000_000, 5000, 200_000, 5000, 100, 50_000)
HARD = (0.5, 0.125, 2.0, 2.0, 1, FIVE, False, 10.0, -5.0, 1_000_000, 5000, 200_000, 5000, 100, 50_000)
O2SAC = {
    "halfcheetah-medium-v2": MUJOCO_M,
    "halfcheetah-medium-replay-v2": MUJOCO_M,
    "halfcheetah-medium-expert-v2": MUJOCO_E,
    "halfcheetah-expert-v2": MUJOCO_E,
    "hopper-medium-v2": MUJOCO_M,
    "hopper-medium-replay-v2": MUJOCO_M,
    "hopper-medium-expert-v2": MUJOCO_E,
    "hopper-expert-v2": MUJOCO_E,
    "walker2d-medium-v2": MUJOCO_M,
    "walker2d-medium-replay-v2": MUJOCO_M,
    "walker2d-medium-expert-v2": MUJOCO_E,
    "walker2d-expert-v2": MUJOCO_E,
    "antmaze-umaze-v2": UMAZE,
    "antmaze-umaze-diverse-v2": UMAZE,
    "antmaze-medium-play-v2": HARD,
    "antmaze-medium-diverse-v2": HARD,
    "antmaze-large-play-v2": HARD,
    "antmaze-large-diverse-v2": HARD,
}

# σ, τ start and end, LayerNorm, warm-up, VA steps, env steps, evaluation every, episodes, reward shift
TD3_M = (0.1, 0.0025, 0.04, True, 1000, 500_000, 100_000, 1000, 10, 0.0)
TD3_E = (0.05, 0.000025, 0.000625, True, 1000, 500_000, 100_000, 1000, 10, 0.0)
TD3_UMAZE = (0.1, 0.0025, 0.04, False, 1000, 1_000_000, 200_000, 5000, 100, -1.0)
O2TD3 = {name: TD3_E if "expert" in name else TD3_M for name in MUJOCO} | {
    "antmaze-umaze-v2": TD3_UMAZE,
    "antmaze-umaze-diverse-v2": TD3_UMAZE,
}


@cache
def composed(phase: str, *tokens: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The phase's composed and typed arguments: of the model, and of trainer, data, class and phases."""
    whole = compose(phase, split(list(tokens)))
    config = lightning_config(phase, whole)
    data, typed = config["data"]["init_args"], {}
    for owner in owners("model", config).values():  # the phase, then its method
        module, _, name = owner["class_path"].rpartition(".")
        family = getattr(importlib.import_module(module), name).__mro__  # a base class takes what it is passed
        parameters = [inspect.signature(base.__init__).parameters for base in reversed(family)]
        own = {key: parameter.default for found in parameters for key, parameter in found.items()}
        own = {key: asdict(value) if is_dataclass(value) else value for key, value in own.items()}
        for key, value in owner.get("init_args", {}).items():
            assert key in own, f"{name} has no {key}"
            own[key] = {**own[key], **value} if isinstance(own[key], dict) else value
        typed |= own
        name = f"{module.rpartition('.')[2]}.{name}"
    return typed, {**data, "class": name, "max_steps": config["trainer"]["max_steps"], "phases": whole["phases"]}


@pytest.mark.parametrize(("dataset", "row"), O2SAC.items(), ids=O2SAC.keys())
def test_o2sac_composes_to_its_row_of_the_table(dataset: str, row: tuple[Any, ...]):
    (alpha, start, end, multiplier, critics, hidden, normalize, scale, shift, align_steps, warmup, env_steps, every,
     episodes, updates) = row  # fmt: skip
    tokens = ("online=o2sac", "preset=paper", f"dataset={dataset}")
    (reevaluate, pr), (align, va), (online, cft) = (composed(phase, *tokens) for phase in PHASES[1:])
    assert (pr["class"], va["class"], cft["class"]) == ("sac.Reevaluate", "sac.Align", "sac.Online")
    assert reevaluate["temperature"] == align["temperature"] == online["temperature"] == alpha
    assert online["threshold"] == {"start": start, "end": end, "env_steps": 100_000, "measured": False, "episodes": 20}
    assert online["multiplier"] == {
        "start": multiplier, "lr": 5e-5, "every": None, "satisfied_weight": 0.3, "violated_weight": 0.7,
        "rule": "adam", "proportional": 0.5, "integral": 0.02, "least": 0.001, "cap": 100.0,
    }  # fmt: skip
    assert (reevaluate["critics"], list(reevaluate["hidden"]), reevaluate["layer_norm"]) == (critics, hidden, True)
    assert (pr["max_steps"], va["max_steps"]) == (500_000, align_steps)
    assert (cft["warmup_steps"], cft["env_steps"]) == (warmup, env_steps)
    assert online["reference"] == {"mode": "best", "start": "best", "period": 1000, "threshold_scale": 1.0}
    assert (online["actor_lr"], online["critic_lr"], online["temperature_lr"]) == (1e-4, 3e-4, 3e-4)
    assert (align["actor_lr"], align["critic_lr"], reevaluate["critic_lr"]) == (1e-4, 3e-4, 3e-4)
    assert all(model["discount"] == 0.99 and model["polyak"] == 0.005 for model in (reevaluate, online))
    assert align["log_prob_floor"] == online["log_prob_floor"] == -50 and online["actor_grad_clip"] is None
    for data in (pr, va, cft):
        assert (data["normalize"], data["reward_scale"], data["reward_shift"]) == (normalize, scale, shift)
        assert data["dataset"] == f"d4rl:{dataset}"
    assert (cft["eval_every"], cft["eval_episodes"], va["eval_episodes"]) == (every, episodes, episodes)
    assert va["eval_every_updates"] == updates


@pytest.mark.parametrize("dataset", O2SAC)
def test_cql_composes_to_its_row_of_the_table(dataset: str):
    model, data = composed("offline", "online=o2sac", f"dataset={dataset}")
    maze = dataset.startswith("antmaze")
    assert data["class"] == "cql.CQL"
    assert model["actor_lr"] == (1e-4 if maze else 3e-5)
    assert model["conservative_weight"] == (5 if maze else 10)
    assert model["lagrange_gap"] == (0.8 if maze else None)
    assert model["max_target"] is maze
    assert (model["gap_min"], model["gap_max"]) == (-200 if maze else None, None)
    assert list(model["critic_hidden"]) == (FIVE if maze else THREE)
    assert list(model["hidden"]) == THREE
    assert (model["critic_lr"], model["temperature"], model["samples"]) == (3e-4, 1.0, 10)
    assert (model["importance_sampling"], model["softmax_temperature"], model["entropy_backup"]) == (True, 1.0, False)
    assert (model["discount"], model["polyak"], data["max_steps"]) == (0.99, 0.005, 1_000_000)
    assert data["normalize"] is not maze
    assert (data["reward_scale"], data["reward_shift"]) == ((10, -5) if maze else (1, 0))
    assert (data["eval_every_updates"], data["eval_episodes"]) == (5000, 100 if maze else 10)


@pytest.mark.parametrize(
    ("domain", "row"), {"adroit": (1.0, 1e-4, None), "maze2d": (10.0, 3e-5, 5.0), "hopper": (10.0, 3e-5, None)}.items()
)
def test_cql_has_the_rows_of_adroit_and_maze2d_too(domain: str, row: tuple[Any, ...]):
    model, _ = composed("offline", "offline=cql", "dataset=file", "tier=medium", f"domain={domain}")
    assert (model["conservative_weight"], model["actor_lr"], model["lagrange_gap"]) == row


@pytest.mark.parametrize(("dataset", "row"), O2TD3.items(), ids=O2TD3.keys())
def test_o2td3_composes_to_its_row_of_the_table(dataset: str, row: tuple[Any, ...]):
    noise, start, end, layer_norm, warmup, align_steps, env_steps, every, episodes, shift = row
    tokens = ("online=o2td3", f"dataset={dataset}")
    (offline, data), (reevaluate, pr), (_, va), (online, cft) = (composed(phase, *tokens) for phase in PHASES)
    assert (data["class"], cft["class"], offline["bc_q_weight"]) == ("td3_bc.TD3BC", "td3.Online", 2.5)
    assert (online["exploration_noise"], reevaluate["layer_norm"]) == (noise, layer_norm)
    assert online["threshold"] == {"start": start, "end": end, "env_steps": 100_000, "measured": False, "episodes": 20}
    assert (pr["max_steps"], va["max_steps"], cft["env_steps"]) == (500_000, align_steps, env_steps)
    assert cft.get("warmup_steps", 1000) == warmup
    for part in (data, pr, va, cft):
        assert (part["normalize"], part["reward_scale"], part["reward_shift"]) == (True, 1.0, shift)
    assert (cft["eval_every"], cft["eval_episodes"], data["eval_episodes"]) == (every, episodes, episodes)


def test_each_phase_maps_rewards_as_its_own_method_does():
    tokens = ("online=o2sac", "offline=td3_bc", "dataset=antmaze-umaze-v2")
    assert composed("offline", *tokens)[1]["class"] == "td3_bc.TD3BC"
    assert composed("offline", *tokens)[1]["reward_scale"] == 1.0
    assert composed("offline", *tokens)[1]["reward_shift"] == -1.0
    assert composed("online", *tokens)[1]["reward_scale"] == 10.0
    assert composed("align", *tokens)[1]["reward_shift"] == -5.0
    assert composed("online", *tokens)[1]["normalize"] is True  # as the policy was trained


def test_plain_sac_drops_constraint_and_reconstruction():
    model, data = composed("online", "online=sac")
    assert (model["constraint"], data["phases"]) == (False, ["offline", "online"])
    model, data = composed("online", "online=sac", "experiment=scratch")
    assert (data["phases"], data["dataset"], data["mix"], data["normalize"]) == (["online"], None, "none", False)
    assert data["warmup_steps"] == 5000


@pytest.mark.parametrize(("online", "end", "small_end"), [("o2sac", 2.0, 0.125), ("o2td3", 0.04, 0.000625)])
def test_the_interval_experiment_follows_the_official_periods_and_clip(online: str, end: float, small_end: float):
    for dataset, period, clip, tau in (
        ("hopper-medium-v2", 1000, None, end),
        ("halfcheetah-expert-v2", 1000, None, small_end),
        ("hopper-medium-expert-v2", 10_000, 0.25, small_end),
        ("hopper-expert-v2", 10_000, 0.25, small_end),
        ("walker2d-medium-expert-v2", 1000, None, small_end),
        ("walker2d-expert-v2", *((10_000, 0.25) if online == "o2td3" else (1000, None)), small_end),
        ("antmaze-umaze-v2", 5000, None, end),
    ):
        model, _ = composed("online", f"online={online}", f"dataset={dataset}", "experiment=interval_reference")
        assert model["reference"] == {"mode": "interval", "start": "best", "period": period, "threshold_scale": 0.25}
        assert (model["actor_grad_clip"], model["threshold"]["end"]) == (clip, tau)
