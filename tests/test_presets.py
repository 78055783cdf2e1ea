"""The presets of one method each: its paper's numbers, or those of one of its codes, where they are not the recipe's.

The table is typed by hand from the differences that are known (D52–D91): phase, option, value on locomotion, on a large
maze.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_rivals_battery import RIVALS

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, config_dir, groups
from o2o_lightning.cli.main import main
from o2o_lightning.cli.models import method_of
from o2o_lightning.errors import UserError

DOCS = Path(__file__).parents[1] / "docs/methods.md"
SHARED = ("held", "paper")
PRESETS = [name for name in groups()["preset"] if name not in SHARED]
LOCOMOTION, MAZE = "hopper-medium-v2", "antmaze-large-play-v2"
MILLION = ("steps", "env", 1_000_000, 1_000_000)
Row = tuple[str, str, Any, Any]
TABLE: dict[str, list[Row]] = {
    "aca_code": [("offline", "reward_shift", 0.0, 0.0), ("online", "reward_shift", 0.0, -1.0)],
    "cal_ql_code": [("online", "collect", "episode", "episode"), ("offline", "critic_hidden", [256] * 2, [256] * 4)],
    "cal_ql_corl": [
        ("offline", "failure_by", "last", "last"),
        ("online", "calibrate", False, False),
        ("offline", "gap_min", None, -200.0),
        ("offline", "critic_hidden", [256] * 2, [256] * 5),
        ("offline", "hidden", [256] * 3, [256] * 3),
    ],
    "cal_ql_wsrl": [
        ("offline", "lagrange_weighted", False, False),
        ("online", "lagrange_weighted", False, False),
        ("offline", "conservative_weight", 5.0, 5.0),
        ("offline", "calibrate", False, True),
    ],
    "iql_code": [
        ("offline", "order", "value_first", "value_first"),
        ("online", "order", "value_first", "value_first"),
        ("offline", "reward_range", True, False),
        ("online", "reward_range", False, False),
        ("online", "actor_schedule", "constant", "constant"),
        MILLION,
    ],
    "iql_corl": [
        ("online", "actor_schedule", "restart", "restart"),
        ("online", "anneal_updates", 1_000_000, 1_000_000),
        ("offline", "normalize", True, False),
    ],
    "jsrl_code": [("online", "horizon", 60, 60), ("online", "window", 1, 1), ("online", "tolerance", 0.0, 0.0)],
    "odt_code": [(phase, "padded_entropy", True, True) for phase in ("offline", "online")],
    "off2on_code": [
        ("online", "collect", 1000, 1000),
        ("online", "first_round", 10, 10),
        ("online", "ratio_head", "relu", "relu"),
        ("offline", "hidden", [256] * 2, [256] * 2),
        ("offline", "critic_hidden", [256] * 2, [256] * 2),
        ("offline", "normalize", False, False),
    ],
    "off2on_paper": [("online", "entry", {"rule": "mean"}, {"rule": "mean"}), ("online", "collect", 1000, 1000)],
    "pa_rl_code": [("online", "moments", "carried", "carried")],
    "pex_code": [("online", "expectile", 0.7, 0.7), MILLION],
    "pex_paper": [("offline", "expectile", 0.9, 0.9), ("offline", "inverse_temperature", 10.0, 10.0)],
    "proto_code": [
        ("online", "decay_env_steps", 1_000_000, 1_000_000),
        ("online", "subset", None, 1),
        ("online", "strength", 2.0, 0.5),
        MILLION,
    ],
    "proto_td3_code": [
        ("online", "policy_critic", "second", "second"),
        ("online", "decay_env_steps", 1_000_000, 1_000_000),
        MILLION,
    ],
    "rlpd_code": [("online", "warmup_steps", 10_000, 10_000), ("online", "utd", 20, 20)],
    "rlpd_wsrl": [
        ("online", "utd", 4, 4),
        ("online", "policy_every", 4, 4),
        ("online", "replace", True, True),
        ("online", "warmup_by", "policy", "policy"),
        ("online", "warmup_steps", 5000, 5000),
    ],
    "spot_corl": [
        ("online", "moments", "fresh", "fresh"),
        ("online", "exploration_clip", 0.5, 0.5),
        ("offline", "discount", 0.99, 0.995),
        ("online", "discount", 0.99, 0.995),
    ],
    "uni_o4_code": [
        ("online", "released_std", True, True),
        ("offline", "gate", "record", "record"),
        ("offline", "horizon", 1000, 150),
    ],
    "uni_o4_paper": [
        ("offline", "horizon", 1000, 150),
        ("offline", "critic_hidden", [1024] * 2, [1024] * 2),
        ("offline", "value_hidden", [512] * 3, [256] * 3),
    ],
    "wsrl_code": [("offline", "lagrange_weighted", False, False), ("online", "target_samples", 1, 10)],
}
# those that run otherwise than the recipe, and not by other numbers alone
OTHERWISE = (
    "cal_ql_code",
    "iql_code",
    "off2on_code",
    "pa_rl_code",
    "proto_code",
    "rlpd_wsrl",
    "spot_corl",
    "uni_o4_code",
)
SMALLER = {"--data.collect": "5", "--data.warmup_steps": "4", "--data.utd": "2"}  # of what would outlast the test


def composed(preset: str, phase: str = "online", dataset: str = LOCOMOTION) -> dict[str, Any]:
    return compose(phase, split([f"preset={preset}", f"dataset={dataset}"]))


def test_the_table_and_the_documentation_have_every_preset_and_no_other() -> None:
    assert set(TABLE) == set(PRESETS)
    assert {*re.findall(r"`([a-z0-9_]+_(?:code|paper|corl|wsrl))`", DOCS.read_text())} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_its_sides_numbers(preset: str) -> None:
    for phase, option, *expected in TABLE[preset]:
        for dataset, value in zip((LOCOMOTION, MAZE), expected, strict=True):
            found = composed(preset, "online" if phase == "steps" else phase, dataset)
            places = [found["steps"]] if phase == "steps" else [found["model"].get("init_args") or {}, found["data"]]
            assert [place[option] for place in places if option in place] == [value], (dataset, phase, option)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_brings_its_method_and_says_where_its_numbers_are_from(preset: str) -> None:
    found = composed(preset)
    assert preset.removeprefix(f"{found['preset_of']}_") in ("code", "paper", "corl", "wsrl")
    assert method_of(found["model"]).name == found["preset_of"]
    lines = (config_dir() / "preset" / f"{preset}.yaml").read_text().splitlines()
    assert "facts 18." in " ".join(line[2:] for line in lines if line.startswith("# "))


def test_a_preset_of_another_method_is_refused() -> None:
    with pytest.raises(UserError, match="online=iql: the preset is of online=pex"):
        compose("online", split(["online=iql", "preset=pex_code"]))


@pytest.mark.parametrize(
    "preset", [name if name in OTHERWISE else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_a_preset_runs(preset: str, pendulum: str, tmp_path: Path) -> None:
    owner, typed = composed(preset)["preset_of"], composed(preset)["data"]
    smaller = [token for name, value in SMALLER.items() for token in (name, value) if name[7:] in typed]
    if typed.get("collect") == "episode":
        smaller[smaller.index("--data.collect") + 1] = "episode"
    line = ["fit", "--phase", "all", f"preset={preset}", "dataset=file", "tier=medium", "--data.dataset", pendulum]
    line += ["steps.offline=12", "steps.reevaluate=4", "steps.env=15", "--data.batch_size", "8", *RIVALS[owner].tokens]
    line += ["--data.eval_episodes", "1", "--data.eval_every_updates", "0", "--data.eval_every", "0", *smaller]
    if "--data.env_kwargs" not in line:
        line += ["--data.env_kwargs", "{max_episode_steps: 7}"]
    assert main([*line, "--run_dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["phases"]["online"]["env_steps"] == 15 and summary["phases"]["online"]["steps"] > 0


@pytest.mark.parametrize(
    ("dataset", "offline", "online"),
    [
        ("antmaze-umaze-v2", (0.25, 0.99), 0.99),
        ("antmaze-medium-play-v2", (0.05, 0.99), 0.99),
        ("antmaze-medium-diverse-v2", (0.025, 0.99), 0.99),
        ("antmaze-large-diverse-v2", (0.025, 0.99), 0.995),
    ],
)
def test_spots_weight_and_its_discount_online_are_those_of_the_maze(
    dataset: str, offline: tuple[float, float], online: float
) -> None:
    before, after = (
        compose(phase, split(["online=spot", f"dataset={dataset}"]))["model"] for phase in ("offline", "online")
    )
    assert (before["init_args"]["pin"], before["init_args"].get("discount", 0.99)) == offline
    assert (after["init_args"]["pin"], after["init_args"]["discount"]) == (offline[0], online)


@pytest.mark.parametrize(
    ("dataset", "policy", "critic"),
    [
        ("umaze", 0.003, 0.002),
        ("umaze-diverse", 0.003, 0.001),
        ("medium-play", 0.001, 0.0005),
        ("medium-diverse", 0.001, 0.0),
        ("large-play", 0.002, 0.001),
        ("large-diverse", 0.002, 0.002),
    ],
)
def test_rebracs_weights_are_those_of_the_maze(dataset: str, policy: float, critic: float) -> None:
    found = compose("offline", split(["online=rebrac", f"dataset=antmaze-{dataset}-v2"]))["model"]["init_args"]
    assert (found["policy_penalty"], found["critic_penalty"]) == (policy, critic)
    assert (found["discount"], found["critic_lr"]) == (0.999, 5e-5)
