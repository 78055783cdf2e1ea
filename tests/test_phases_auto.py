"""``phases=auto``: every offline source with every online algorithm, the table typed by hand from appendix B."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from o2o_lightning.checkpoint.handover import KEY, Handover
from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import groups
from o2o_lightning.cli.phases import Offline, chosen_phases, needed, with_cloning
from o2o_lightning.cli.plan import plan
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actors import fresh_actor
from o2o_lightning.nn.critics import Critics

O2O = Callable[..., int]
O, C, R, V, N = "offline", "clone", "reevaluate", "align", "online"  # noqa: E741
FULL, CLONED, FIT, CLONED_FIT = [O, R, V, N], [O, C, R, V, N], [O, R, N], [O, C, R, N]

# source: with O2TD3 (deterministic), with O2SAC (squashed Gaussian), with O2PPO (Gaussian, which always fits V)
TABLE = {
    "td3_bc": ([O, V, N], CLONED, CLONED_FIT),  # SAC's target has an entropy term, and theirs none
    "awac": ([O, C, V, N], CLONED, FIT),
    "cql": (CLONED, [O, N], CLONED_FIT),
    "cal_ql": (CLONED, FULL, CLONED_FIT),  # appendix B does not know it: not trusted
    "iql": (CLONED, CLONED, FIT),
    "bc": (FULL, FULL, FIT),
    "bc10": (FULL, FULL, FIT),
    "dt": (CLONED, CLONED, CLONED_FIT),
    "odt": (CLONED, CLONED, CLONED_FIT),
    # nor these: each of their critics is held to something beside the policy's value
    "aca": (CLONED, FULL, CLONED_FIT),
    "wsrl": (CLONED, FULL, CLONED_FIT),
    "rebrac": (FULL, CLONED, CLONED_FIT),
    "spot": (FULL, CLONED, CLONED_FIT),
    "off2on": (CLONED, CLONED, CLONED_FIT),
    "enoto": (CLONED, FULL, CLONED_FIT),
    "fam_o2o": (CLONED, CLONED, CLONED_FIT),
    "uni_o4": (CLONED, CLONED, CLONED_FIT),
}


def phases(*tokens: str) -> list[str]:
    """What `o2o fit --phase all TOKENS` would run, in order."""
    command = split([*tokens])
    return with_cloning(command, chosen_phases(command)[0])[0]


@pytest.mark.parametrize("source", TABLE)
@pytest.mark.parametrize(("column", "online"), [(0, "o2td3"), (1, "o2sac"), (2, "o2ppo")])
def test_a_source_needs_what_its_critic_lacks(source: str, column: int, online: str) -> None:
    expected = TABLE[source][column]
    offline = Offline(source, critic=source not in ("bc", "bc10", "dt", "odt"), cloned=C in expected)
    found, why = needed(offline, reads_critic=online != "o2ppo", entropy=online == "o2sac")
    # O2PPO has no phase of alignment to leave out
    assert [phase for phase in (O, *([C] if C in expected else []), R, V, N) if phase in {O, C, N, *found}] == (
        expected if online != "o2ppo" else [*expected[:-1], V, N]
    )
    assert "\n" not in why


@pytest.mark.parametrize(
    ("source", "column", "online"),
    [("td3_bc", 0, "o2td3"), ("awac", 1, "o2sac"), ("cql", 1, "o2sac"), ("cql", 0, "o2td3"), ("iql", 2, "o2ppo"),
     ("bc10", 1, "o2sac"), ("dt", 0, "o2td3"), ("odt", 2, "o2ppo"), ("rebrac", 0, "o2td3"), ("wsrl", 1, "o2sac")],
)  # fmt: skip
def test_the_command_line_runs_the_phases_of_the_table(source: str, column: int, online: str) -> None:
    assert phases(f"offline={source}", f"online={online}") == TABLE[source][column]


@pytest.mark.parametrize(("source", "online", "expected"), [("cql", "td3", [O, C, N]), ("awac", "ppo", FIT)])
def test_direct_fine_tuning_stays_direct(source: str, online: str, expected: list[str]) -> None:
    assert phases(f"offline={source}", f"online={online}") == expected


def test_every_source_is_in_the_table() -> None:
    assert set(groups()["offline"]) == set(TABLE)


@pytest.mark.parametrize("origin", ["dt", "odt", "bc", "td3_bc", "cql", "somebody's own"])
def test_a_policy_without_a_critic_needs_everything(origin: str) -> None:
    assert needed(Offline(origin, critic=False), reads_critic=True)[0] == {R, V}


def test_an_unknown_critic_is_not_trusted() -> None:
    assert needed(Offline("mine", critic=True), reads_critic=True)[0] == {R, V}


def test_a_critic_of_other_rewards_is_not_kept() -> None:
    for origin in ("td3_bc", "awac", "cql"):
        assert needed(Offline(origin, critic=True, same_rewards=False), reads_critic=True)[0] == {R, V}
    # on AntMaze TD3+BC learns from r − 1, and O2SAC from 10·r − 5
    assert phases("dataset=antmaze-umaze-v2", "offline=td3_bc", "online=o2sac") == CLONED


def test_an_ablation_stays_one() -> None:
    assert phases("offline=iql", "experiment=no_alignment") == [O, C, R, N]


# ---- from a checkpoint -------------------------------------------------------------------------------------------


def checkpoint(path: Path, phase: str, origin: str, family: str, critic: bool) -> str:
    """A hand-over of ``phase``, of networks for Hopper that nobody has trained."""
    actor, critics = fresh_actor(family, 11, 3, (8,)), Critics(11, 3, (8,), layer_norm=False)
    handover = Handover(
        phase=phase, algorithm="clone" if phase == "clone" else origin, origin=origin, actor=actor.spec.to_dict(),
        critic=critics.spec.to_dict() if critic else None, env_id="Hopper-v5", manifest={},
        normalizer={"mean": torch.zeros(11), "std": torch.ones(11), "eps": 0.0},
    )  # fmt: skip
    state = {f"method.actor.{name}": value for name, value in actor.state_dict().items()}
    torch.save({KEY: handover.pack(), "state_dict": state}, path)
    return str(path)


@pytest.mark.parametrize(
    ("phase", "origin", "family", "critic", "online", "expected"),
    [
        ("offline", "td3_bc", "deterministic", True, "o2td3", [V, N]),
        ("offline", "cql", "squashed_gaussian", True, "o2sac", [N]),
        ("offline", "iql", "gaussian", True, "o2td3", [C, R, V, N]),
        ("offline", "bc10", "deterministic", False, "o2td3", [R, V, N]),
        ("import", "cql", "squashed_gaussian", False, "o2sac", [R, V, N]),
        ("offline", "iql", "gaussian", True, "o2ppo", [R, N]),
        ("reevaluate", "o2td3", "deterministic", True, "o2td3", [V, N]),
        ("align", "o2td3", "deterministic", True, "o2td3", [N]),
    ],
)
def test_a_checkpoints_own_origin_decides(
    tmp_path: Path, phase: str, origin: str, family: str, critic: bool, online: str, expected: list[str]
) -> None:
    start = checkpoint(tmp_path / "a.ckpt", phase, origin, family, critic)
    # the option offline= says something else, and is not asked
    assert phases("offline=bc", f"online={online}", "--model.init_from", start) == expected


@pytest.mark.parametrize(("origin", "expected"), [("td3_bc", [V, N]), ("cql", [R, V, N])])
def test_a_clone_remembers_whose_critic_it_brings(tmp_path: Path, origin: str, expected: list[str]) -> None:
    start = checkpoint(tmp_path / "a.ckpt", "clone", origin, "deterministic", True)
    assert phases("online=o2td3", "--model.init_from", start) == expected


def test_the_origin_is_passed_on_by_every_phase(
    tmp_path: Path, o2o: O2O, pendulum: str, capfd: pytest.CaptureFixture[str]
) -> None:
    small = [
        "--data.dataset", pendulum, "--data.batch_size", "16", "--data.eval_episodes", "1", "--model.hidden", "[8]",
        "steps.offline=2", "steps.clone=2", "steps.align=2", "steps.env=12", "--data.warmup_steps", "6",
    ]  # fmt: skip
    line = ("--phase", "all", "phases=auto", "offline=awac", "online=o2td3", *small, "--run_dir", tmp_path / "run")
    assert o2o("fit", *line) == 0
    said = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("phases: "))
    assert said.startswith("phases: offline, clone, align, online: AWAC's critic is evaluated as online")
    assert "appendix B" in said
    for phase in (O, C, V, N):
        saved = torch.load(tmp_path / f"run/{phase}/checkpoints/last.ckpt", weights_only=True)["o2o"]
        assert saved["origin"] == "awac"
    assert not (tmp_path / "run" / R).exists()


# ---- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "phrases"),
    [
        ("offline=bc online=td3", ["(bc)", "without an action-value critic", "'online'", "offline,reevaluate,online"]),
        ("offline=bc10 online=o2sac experiment=no_reevaluation", ["(bc10)", "'align'", "offline,reevaluate,align"]),
        ("phases=automatic", ["phases=automatic", "or auto"]),
    ],
)
def test_a_policy_without_a_critic_is_refused_before_anything_runs(
    tokens: str, phrases: list[str], o2o: O2O, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o("fit", "--phase", "all", *tokens.split(), "--run_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("o2o: ") and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert [phrase for phrase in phrases if phrase not in error] == []


@pytest.mark.parametrize("family", ["deterministic", "gaussian"])  # the second is cloned on the way
def test_a_checkpoint_without_a_critic_is_refused_before_anything_runs(
    family: str, o2o: O2O, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = checkpoint(tmp_path / "bc.ckpt", "offline", "bc", family, critic=False)
    line = ("fit", "--phase", "online", "online=td3", "--model.init_from", start, "--run_dir", tmp_path / "run")
    assert o2o(*line) == 2
    error = capsys.readouterr().err
    assert "bc.ckpt: it hands on a policy without an action-value critic" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_ppo_makes_its_own_value_and_takes_any_policy(tmp_path: Path) -> None:
    start = checkpoint(tmp_path / "bc.ckpt", "offline", "bc", "gaussian", critic=False)
    steps, _ = plan(split(["--phase", "online", "online=ppo", "--model.init_from", start]))
    assert [step.phase for step in steps] == [N]


def test_a_file_that_asks_for_auto_is_told_where_to_write_it(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nphases: auto\n")
    with pytest.raises(UserError, match="on the command line"):
        chosen_phases(split([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]))
