"""Every composition of phase, dataset and method instantiates, with the numbers of the paper's and code's tables.

The tables are typed by hand from the hyper-parameters of O2TD3 and TD3+BC: rows are datasets, and what does not vary
stands once.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, groups, lightning_config
from o2o_lightning.cli.lightning import PhaseCLI
from o2o_lightning.cli.models import accepts
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

MEDIUM = {
    "noise": 0.1,
    "threshold": (0.0025, 0.04),
    "layer_norm": True,
    "reward": (1.0, 0.0),
    "align": 500_000,
    "env_steps": 100_000,
    "evaluation": (1000, 10),
    "updates_between_evaluations": 5000,
}
EXPERT = MEDIUM | {"noise": 0.05, "threshold": (0.000025, 0.000625)}
ANTMAZE = MEDIUM | {
    "layer_norm": False,
    "reward": (1.0, -1.0),
    "align": 1_000_000,
    "env_steps": 200_000,
    "evaluation": (5000, 100),
    "updates_between_evaluations": 50_000,
}
ROWS = {
    "halfcheetah-medium-v2": MEDIUM,
    "halfcheetah-medium-replay-v2": MEDIUM,
    "halfcheetah-medium-expert-v2": EXPERT,
    "halfcheetah-expert-v2": EXPERT,
    "hopper-medium-v2": MEDIUM,
    "hopper-medium-replay-v2": MEDIUM,
    "hopper-medium-expert-v2": EXPERT,
    "hopper-expert-v2": EXPERT,
    "walker2d-medium-v2": MEDIUM,
    "walker2d-medium-replay-v2": MEDIUM,
    "walker2d-medium-expert-v2": EXPERT,
    "walker2d-expert-v2": EXPERT,
    "antmaze-umaze-v2": ANTMAZE,
    "antmaze-umaze-diverse-v2": ANTMAZE,
    # the paper has no run of TD3 on these: they compose as the smaller mazes do
    "antmaze-medium-play-v2": ANTMAZE,
    "antmaze-medium-diverse-v2": ANTMAZE,
    "antmaze-large-play-v2": ANTMAZE,
    "antmaze-large-diverse-v2": ANTMAZE,
    "embedded": MEDIUM,
    "file": MEDIUM,
}
CLASSES = {
    "offline": (Offline, TD3BC),
    "reevaluate": (Reevaluate, td3.Reevaluate),
    "align": (Align, td3.Align),
    "online": (Online, td3.Online),
}


def built(phase: str, tmp_path: Path, *tokens: str) -> tuple[Any, Any, Any]:
    """Trainer, phase and data, through Hydra and jsonargparse as `o2o fit` makes them; nothing is loaded."""
    config = lightning_config(phase, compose(phase, split(list(tokens))))
    start = ["--model.init_from", "a.ckpt"] if accepts(config["model"]["class_path"], "init_from") else []
    data = ["--data.dataset", "a.hdf5"] if "dataset=file" in tokens else []
    made = PhaseCLI(config, [*start, *data]).build(tmp_path, phase)
    return made.trainer, made.model, made.datamodule


def test_the_table_has_every_dataset() -> None:
    assert set(ROWS) == set(groups()["dataset"])


@pytest.mark.parametrize("dataset", ROWS)
def test_o2td3_has_the_tables_numbers_on(dataset: str, tmp_path: Path) -> None:
    row = ROWS[dataset]
    composed = compose("online", split([f"dataset={dataset}"]))
    assert composed["steps"]["align"] == row["align"]
    assert composed["reevaluate"]["init_args"]["layer_norm"] is row["layer_norm"]
    trainer, online, data = built("online", tmp_path, f"dataset={dataset}")
    assert (type(online), type(online.method)) == CLASSES["online"]
    assert type(data) is OnlineData and trainer.max_steps == -1
    assert online.method.exploration_noise == row["noise"]
    threshold = online.method.threshold
    assert (threshold.start, threshold.end, threshold.env_steps) == (*row["threshold"], 100_000)
    assert (data.budget, data.warmup_steps, data.utd) == (row["env_steps"], 1000, 4)
    assert (data.mix, data.capacity) == ("half", 2_000_000)
    assert (data.rewards.scale, data.rewards.shift) == row["reward"]
    assert (data.eval_every, data.eval_episodes) == row["evaluation"]


@pytest.mark.parametrize(
    ("typed", "mode", "moments", "utd"),
    [
        (["online=o2td3"], "trials", "fresh", 4),
        (["online=o2sac"], "trials", "fresh", 4),
        (["online=o2sac", "preset=paper"], "best", "carried", 1),
        (["online=o2td3", "preset=paper"], "best", "carried", 1),
        (
            ["online=o2td3", "experiment=interval_reference"],
            "interval",
            "fresh",
            1,
        ),  # nothing holds what more updates risk
        (["online=o2sac", "experiment=no_constraint"], "trials", "fresh", 1),
        (["online=o2sac", "experiment=no_alignment"], "trials", "fresh", 4),
        (["online=sac"], "trials", "fresh", 1),
        (["online=td3"], "trials", "fresh", 1),
        (["online=o2ppo"], None, None, None),  # its class's own: the paper's
    ],
)
def test_a_run_is_held_unless_the_papers_hand_over_is_asked_for(
    typed: list[str], mode: Any, moments: Any, utd: Any
) -> None:
    composed = compose("online", split(typed))
    model = composed["model"]["init_args"]
    assert (model.get("reference") or {}).get("mode") == mode
    assert model.get("actor_moments") == moments
    assert composed["data"].get("utd") == utd


@pytest.mark.parametrize("dataset", ["hopper-medium-v2", "hopper-medium-expert-v2", "antmaze-umaze-v2", "file"])
def test_every_phase_has_the_tables_numbers_on(dataset: str, tmp_path: Path) -> None:
    row = ROWS[dataset]
    made = {phase: built(phase, tmp_path, f"dataset={dataset}", "preset=paper") for phase in CLASSES}
    steps = {phase: trainer.max_steps for phase, (trainer, _, _) in made.items()}
    assert steps == {"offline": 1_000_000, "reevaluate": 500_000, "align": row["align"], "online": -1}
    for phase, (_, model, data) in made.items():
        assert (type(model), type(model.method)) == CLASSES[phase] and model.init_from == (
            None if phase == "offline" else "a.ckpt"
        )
        assert isinstance(data, OfflineData)
        assert (data.rewards.scale, data.rewards.shift) == row["reward"]
        assert data.batch_size == 256 and data.normalize and data.normalize_eps == 1e-3
        assert data.eval_every_updates == (5000 if phase == "offline" else row["updates_between_evaluations"])
    offline, reevaluate, align, online = (model.method for _, model, _ in made.values())
    for model in (offline, reevaluate, online):
        assert (model.discount, model.polyak) == (0.99, 0.005)
    for model in (offline, reevaluate, align, online):
        assert (model.policy_noise, model.noise_clip, model.critic_lr) == (0.2, 0.5, 3e-4)
    assert (offline.actor_lr, offline.bc_q_weight, offline.policy_delay) == (3e-4, 2.5, 2)
    assert [*offline.hidden] == [*reevaluate.hidden] == [256, 256] and reevaluate.layer_norm is row["layer_norm"]
    assert (align.actor_lr, align.curvature) == (1e-4, 1.0)
    assert (online.actor_lr, online.policy_delay, online.normalize_q, online.constraint) == (1e-4, 2, True, True)
    multiplier, reference = online.multiplier, online.reference
    assert (multiplier.start, multiplier.lr) == (1.0, 5e-5)
    assert (multiplier.satisfied_weight, multiplier.violated_weight) == (0.3, 0.7)
    assert (reference.mode, reference.start) == ("best", "best")


@pytest.mark.parametrize("method", groups()["online"])
def test_every_method_instantiates_each_of_its_phases(method: str, tmp_path: Path) -> None:
    phases = compose("offline", split([f"online={method}"]))["phases"]
    for phase in phases:
        _, model, data = built(phase, tmp_path, f"online={method}")
        assert model.phase == phase and isinstance(data, OfflineData)


@pytest.mark.parametrize(
    ("experiment", "phases"),
    [
        ("none", ["offline", "reevaluate", "align", "online"]),
        ("quick", ["offline", "reevaluate", "align", "online"]),
        ("frozen_reference", ["offline", "reevaluate", "align", "online"]),
        ("no_constraint", ["offline", "reevaluate", "align", "online"]),
        ("no_reevaluation", ["offline", "align", "online"]),
        ("no_alignment", ["offline", "reevaluate", "online"]),
        ("scratch", ["online"]),
    ],
)
def test_an_experiment_runs_the_phases_it_says(experiment: str, phases: list[str]) -> None:
    assert compose("offline", split([f"experiment={experiment}"]))["phases"] == phases


def test_ablations_change_what_they_say_and_nothing_else(tmp_path: Path) -> None:
    plain = compose("online", split([]))["model"]["init_args"]
    frozen = compose("online", split(["experiment=frozen_reference"]))["model"]["init_args"]
    assert frozen == plain | {"reference": {"mode": "frozen"}}
    unconstrained = compose("online", split(["experiment=no_constraint"]))["model"]["init_args"]
    assert unconstrained == plain | {"constraint": False}
    direct = compose("online", split(["online=td3"]))
    assert direct["model"]["init_args"] == plain | {"constraint": False} and direct["phases"] == ["offline", "online"]
    assert built("online", tmp_path, "online=td3")[1].method.constraint is False


def test_learning_from_scratch_needs_no_dataset(tmp_path: Path) -> None:
    config = lightning_config("online", compose("online", split(["online=td3", "experiment=scratch"])))
    made = PhaseCLI(config, ["--data.env_id", "Pendulum-v1"]).build(tmp_path, "online")
    data: Any = made.datamodule
    assert (data.dataset, data.mix, data.normalize, made.model.init_from) == (None, "none", False, None)


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        ("d4rl:walker2d-expert-v2", EXPERT),
        ("d4rl:antmaze-umaze-v2#sha256=00", ANTMAZE),
        ("embedded:hopper-medium", MEDIUM),
        ("data/hopper_medium_expert-v2.hdf5", EXPERT),
        ("/data/walker2d-medium.hdf5", MEDIUM),
        ("antmaze-umaze.h5", ANTMAZE),
        ("my-expert-demos.hdf5", EXPERT),
        ("logs.hdf5", MEDIUM),
    ],
)
def test_a_datasets_name_chooses_its_row(spec: str, row: dict[str, Any]) -> None:
    model = compose("online", split(["--data.dataset", spec]))["model"]["init_args"]
    assert (model["threshold"]["start"], model["threshold"]["end"]) == row["threshold"]
    assert model["exploration_noise"] == row["noise"]
    layer_norm = compose("reevaluate", split(["--data.dataset", spec]))["model"]["init_args"]["layer_norm"]
    assert layer_norm is row["layer_norm"]


@pytest.mark.parametrize(
    ("logger", "named"), [("csv", "name"), ("tensorboard", "name"), ("wandb", "phase"), ("mlflow", "phase")]
)
def test_a_logger_writes_into_the_run_directory(logger: str, named: str) -> None:
    made = compose("align", split([f"logger={logger}"]))["trainer"]["logger"]["init_args"]
    assert (made["save_dir"], made[named]) == ("$RUN_DIR", "$PHASE")


def test_no_configuration_repeats_another() -> None:
    from o2o_lightning.cli.compose import config_dir

    def values(file: Path) -> str:
        return "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))

    files = [file for file in config_dir().rglob("*.yaml") if len(values(file)) > 200]
    assert [(a, b) for a, b in itertools.combinations(files, 2) if values(a) == values(b)] == []
