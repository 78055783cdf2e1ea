"""Every row of the O2PPO and IQL tables, typed here by hand."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, lightning_config
from o2o_lightning.cli.models import owners

PHASES = ("offline", "reevaluate", "online")

# epochs, β reaches 0 at, reward scaling, σ cap, evaluation episodes, interval period
PPO: dict[str, tuple[int, int, str, float | None, int, int]] = {
    "halfcheetah-medium-v2": (10, 250_000, "dynamic", None, 10, 2500),
    "halfcheetah-medium-replay-v2": (10, 250_000, "dynamic", None, 10, 2500),
    "halfcheetah-medium-expert-v2": (10, 500_000, "dynamic", None, 10, 2500),
    "halfcheetah-expert-v2": (10, 500_000, "dynamic", None, 10, 2500),
    "hopper-medium-v2": (10, 250_000, "none", None, 10, 2500),
    "hopper-medium-replay-v2": (10, 250_000, "none", None, 10, 2500),
    "hopper-medium-expert-v2": (5, 500_000, "none", 0.05, 10, 10_000),
    "hopper-expert-v2": (5, 500_000, "none", 0.05, 10, 10_000),
    "walker2d-medium-v2": (10, 250_000, "none", None, 10, 2500),
    "walker2d-medium-replay-v2": (10, 250_000, "none", None, 10, 2500),
    "walker2d-medium-expert-v2": (10, 500_000, "none", None, 10, 2500),
    "walker2d-expert-v2": (10, 500_000, "none", None, 10, 2500),
    "antmaze-umaze-v2": (10, 250_000, "none", None, 100, 2500),
    "antmaze-umaze-diverse-v2": (10, 250_000, "none", None, 100, 2500),
    "antmaze-medium-play-v2": (10, 250_000, "none", None, 100, 2500),
    "antmaze-medium-diverse-v2": (10, 250_000, "none", None, 100, 2500),
    "antmaze-large-play-v2": (10, 250_000, "none", None, 100, 2500),
    "antmaze-large-diverse-v2": (10, 250_000, "none", None, 100, 2500),
}


@cache
def composed(phase: str, *tokens: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """All arguments of the phase, those of its data, and the whole configuration."""
    whole = compose(phase, split(list(tokens)))
    config = lightning_config(phase, whole)
    phase_class, method = owners("model", config).values()
    own = {name: value for name, value in phase_class["init_args"].items() if name != "method"}
    both = arguments({**phase_class, "init_args": own}) | arguments(method)
    return both, arguments(config["data"]), whole


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The class's typed defaults, and what the configuration says instead."""
    module, _, name = config["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    typed: dict[str, Any] = {"class": f"{module.rpartition('.')[2]}.{name}"}
    for base in (*reversed(cls.__mro__[:2]),):  # a DataModule passes its other arguments to its base
        if base.__module__.startswith("o2o_lightning"):
            typed |= {key: parameter.default for key, parameter in inspect.signature(base).parameters.items()}
    typed = {key: asdict(value) if is_dataclass(value) else value for key, value in typed.items()}
    for key, value in config.get("init_args", {}).items():
        assert key in typed, f"{name} has no {key}"
        typed[key] = {**typed[key], **value} if isinstance(typed[key], dict) else value
    return typed


@pytest.mark.parametrize(("dataset", "row"), PPO.items(), ids=PPO)
def test_o2ppo_composes_to_its_row_of_the_table(dataset: str, row: tuple[Any, ...]) -> None:
    epochs, vanishes, scaling, cap, episodes, _ = row
    (reevaluate, fit_data, fit), (online, data, whole) = (
        composed(phase, "online=o2ppo", f"dataset={dataset}") for phase in PHASES[1:]
    )
    assert whole["phases"] == ["offline", "reevaluate", "online"]
    assert (reevaluate["class"], online["class"]) == ("ppo.Reevaluate", "ppo.Online")
    assert (data["class"], fit_data["class"]) == ("rollout.RolloutData", "module.OfflineData")
    assert (data["epochs"], data["rollout"], data["batch_size"], data["env_steps"]) == (epochs, 2048, 128, 250_000)
    assert (data["eval_every"], data["eval_episodes"]) == (2500, episodes)
    assert online["auxiliary"] == {"scale": 2.0, "env_steps": vanishes, "joint": False, "pairwise": False}
    assert (online["reward_scaling"], online["std_cap"]) == (scaling, cap)
    assert (online["actor_lr"], online["value_lr"], online["decay_env_steps"]) == (3e-5, 2e-4, None)
    common = (0.99, 0.95, 0.2, 0.01, 0.5, True)
    names = ("discount", "gae_lambda", "clip", "entropy", "max_grad_norm", "auxiliary_advantage")
    assert tuple(online[name] for name in names) == common
    assert list(online["hidden"]) == [256, 256] and list(online["value_hidden"]) == [256] * 3
    assert online["reference"]["mode"] == "best" and online["reference"]["period"] == 2500
    assert (fit["trainer"]["max_steps"], fit_data["batch_size"], reevaluate["value_lr"]) == (1_000_000, 512, 1e-4)
    assert list(reevaluate["hidden"]) == [256] * 3
    assert (reevaluate["reward_scaling"], reevaluate["leak_returns"]) == (scaling, False)
    for rails in (fit_data, data):
        assert (rails["reward_scale"], rails["reward_shift"], rails["normalize"]) == (1.0, 0.0, True)


@pytest.mark.parametrize(("dataset", "row"), PPO.items(), ids=PPO)
def test_iql_composes_to_its_row_of_the_table(dataset: str, row: tuple[Any, ...]) -> None:
    ant = dataset.startswith("antmaze")
    offline, data, whole = composed("offline", "offline=iql", "online=o2ppo", f"dataset={dataset}")
    assert offline["class"] == "iql.IQL" and whole["trainer"]["max_steps"] == 1_000_000
    assert (offline["inverse_temperature"], offline["expectile"]) == ((10.0, 0.9) if ant else (3.0, 0.7))
    assert (offline["polyak"], offline["weight_cap"], offline["deterministic"]) == (0.005, 100.0, False)
    assert [offline[f"{net}_lr"] for net in ("actor", "critic", "value")] == [3e-4] * 3
    assert (offline["anneal_updates"], list(offline["hidden"])) == (None, [256, 256])
    assert (data["batch_size"], data["eval_every_updates"], data["eval_episodes"]) == (256, 5000, 100 if ant else 10)
    assert (data["reward_scale"], data["reward_shift"], data["normalize"]) == (1.0, -1.0 if ant else 0.0, True)


@pytest.mark.parametrize(("name", "expectile", "episodes"), [("pen-cloned-v1", 0.8, 10), ("maze2d-large-v1", 0.7, 100)])
def test_other_domains_have_corls_values(name: str, expectile: float, episodes: int) -> None:
    offline, data, _ = composed("offline", "offline=iql", "online=o2ppo", "--data.dataset", f"d4rl:{name}")
    assert (offline["inverse_temperature"], offline["expectile"]) == (3.0, expectile)
    assert data["eval_episodes"] == episodes


def test_the_interval_reference_has_the_evaluation_interval_but_on_narrow_hopper_data() -> None:
    for dataset, row in PPO.items():
        online, *_ = composed("online", "online=o2ppo", f"dataset={dataset}", "experiment=interval_reference_ppo")
        assert (online["reference"]["mode"], online["reference"]["period"]) == ("interval", row[-1])


@pytest.mark.parametrize(
    ("tokens", "auxiliary", "phases"),
    [
        (("online=ppo",), False, ["offline", "reevaluate", "online"]),
        (("online=o2ppo", "experiment=no_alignment"), False, ["offline", "reevaluate", "online"]),
        (("online=ppo", "experiment=scratch"), False, ["online"]),
    ],
)
def test_direct_ppo_keeps_the_fit_of_v_and_drops_the_auxiliary_advantage(
    tokens: tuple[str, ...], auxiliary: bool, phases: list[str]
) -> None:
    online, data, whole = composed("online", *tokens)
    assert online["auxiliary_advantage"] is auxiliary and whole["phases"] == phases
    assert data["class"] == "rollout.RolloutData"


@pytest.mark.parametrize("family", ["o2td3", "o2sac"])
def test_the_other_families_keep_their_own_data(family: str) -> None:
    _, fit_data, _ = composed("reevaluate", f"online={family}")
    _, data, _ = composed("online", f"online={family}")
    assert (fit_data["batch_size"], data["class"], data["mix"]) == (256, "online.OnlineData", "half")


def test_the_file_with_this_table_names_every_dataset_with_a_configuration() -> None:
    folder = Path(__file__).parents[1] / "configs" / "dataset"
    assert {path.stem for path in folder.glob("*.yaml")} - {"embedded", "file"} == set(PPO)
