"""What every online method beside the paper's must pass: whole runs, resume, export. A new one is one more row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import killing
import numpy as np
import pytest
import torch
from test_sources_battery import mode_of, onnx_program, torch_program

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.errors import Failure
from o2o_lightning.replay.interaction import Interaction

ENV_STEPS, KILLED, SAVED = 36, 30, 24
PLACES = {"Pendulum-v1": 2.0, "Hopper-v5": 1.0, "Walker2d-v5": 1.0, "PointMaze_UMaze-v3": 1.0}  # how far actions range


@dataclass(frozen=True)
class Rival:
    """A row of the battery.

    Attributes:
        online: its recipe.
        tokens: what makes its networks small and its counts few.
        phases: that it runs.
        formats: that its policy can be exported to.
    """

    online: str
    tokens: tuple[str, ...] = ("--model.hidden", "[8,8]")
    phases: tuple[str, ...] = ("offline", "online")
    formats: tuple[str, ...] = ("torch", "onnx")


SMALL = ("--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]")
RIVALS = {
    "rlpd": Rival("rlpd", (*SMALL, "--data.utd", "2", "--model.policy_every", "2"), ("online",)),
    "iql": Rival("iql"),
    "awac": Rival("awac"),
    "cql": Rival("cql", (*SMALL, "--model.samples", "2")),
    "cal_ql": Rival(
        "cal_ql",
        (*SMALL, "--model.samples", "2", "--data.env_kwargs", "{max_episode_steps: 7}"),
    ),
    "jsrl": Rival("jsrl", (*SMALL, "--model.horizon", "6", "--model.window", "1", "--model.critics", "3")),
    "aca": Rival("aca", SMALL),
    "pex": Rival("pex", formats=("torch",)),
    "proto": Rival("proto", (*SMALL, "--model.samples", "2", "--data.seeds", "20")),
    "proto_td3": Rival("proto_td3", ("--model.hidden", "[8,8]", "--data.seeds", "20")),
    "rebrac": Rival("rebrac"),
    "spot": Rival(
        "spot", ("--model.hidden", "[8,8]", "--model.vae_hidden", "[8,8]", "--offline.model.vae_updates", "8")
    ),
    "pa_rl": Rival(
        "pa_rl",
        (
            *("--model.critic_hidden", "[8,8]", "--offline.model.hidden", "[8,8]"),
            *("--model.critics", "3", "--model.kept", "3", "--reevaluate.model.convergence.every", "4"),
            *("--data.env_kwargs", "{max_episode_steps: 7}"),  # it learns from episodes that have ended
        ),
        phases=("offline", "reevaluate", "online"),
    ),
    "odt": Rival(
        "odt",
        (
            *("--model.context", "4", "--model.acting_context", "3", "--model.width", "8", "--model.layers", "1"),
            *("--model.heads", "2", "--data.updates", "3", "--data.trajectories", "4"),
            *("--data.env_kwargs", "{max_episode_steps: 7}"),
        ),
        formats=(),
    ),
    "enoto": Rival("enoto", (*SMALL, "--model.samples", "2", "--offline.model.critics", "3")),
    "so2": Rival(
        "so2",
        (
            *SMALL,
            "--model.samples",
            "2",
            "--offline.model.critics",
            "3",
            "--data.utd",
            "2",
            "--model.values_first",
            "3",
        ),
    ),
    "fam_o2o": Rival("fam_o2o", formats=("torch",)),
    "off2on": Rival(
        "off2on",
        (*SMALL, "--model.samples", "2", "--model.members", "2", "--model.ratio_hidden", "[8,8]"),
        formats=("torch",),
    ),
    "uni_o4": Rival(
        "uni_o4",
        (
            *("--offline.model.hidden", "[8,8]", "--offline.model.critic_hidden", "[8,8]"),
            *("--offline.model.members", "2", "--offline.model.models", "2", "--offline.model.model_hidden", "[8,8]"),
            *("--offline.model.horizon", "4", "--offline.model.improvement", "0.5", "--offline.model.gate_every", "3"),
            *("--data.rollout", "12", "--data.epochs", "2"),
        ),
    ),
    "wsrl": Rival("wsrl", (*SMALL, "--offline.model.critics", "3", "--model.samples", "2", "--data.utd", "2")),
}


@dataclass(frozen=True)
class Made:
    """A rival, and a finished run of it somewhere."""

    rival: Rival
    folder: Path
    place: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / "online/checkpoints/last.ckpt"


def fit(rival: Rival, dataset: str, folder: Path, *more: str) -> int:
    """`o2o fit --phase all` of the rival: 16 updates offline, 36 steps online, a point to resume from every 12."""
    options = [
        "dataset=file", "tier=medium", "--data.dataset", dataset, "--data.batch_size", "8", "--data.chunk", "4",
        "--data.eval_episodes", "1", "--data.eval_every_updates", "0", "--data.eval_every", "20",
        "--trainer.log_every_n_steps", "4", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    if rival.online not in ("odt", "uni_o4"):  # which begin to learn when an episode, or a rollout, has ended
        options += ["--data.warmup_steps", "8"]
    counts = ["steps.offline=16", "steps.reevaluate=8", f"steps.env={ENV_STEPS}", "checkpoint_every=12"]
    line = ["fit", "--phase", "all", f"online={rival.online}", *counts, *options, *rival.tokens]
    return main([*line, *more, "--run_dir", str(folder)])


@pytest.fixture(scope="module")
def datasets(pendulum: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A file by its place: 480 transitions of Pendulum, or 700 elsewhere, of random actions."""
    made = {"Pendulum-v1": pendulum}

    def dataset(place: str) -> str:
        if place.startswith("PointMaze"):
            pytest.importorskip("gymnasium_robotics")
        if place not in made:
            made[place] = str(tmp_path_factory.mktemp("recorded") / "random.hdf5")
            line = ["data", "make", "--env", place, "--level", "random", "--transitions", "700"]
            assert main([*line, "--output", made[place]]) == 0
        return made[place]

    return dataset


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((place, name), id=f"{name}-{place}", marks=[] if place == "Pendulum-v1" else [pytest.mark.slow])
        for place in PLACES
        for name in RIVALS
    ],
)
def made(
    request: pytest.FixtureRequest, datasets: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    place, name = request.param
    folder = tmp_path_factory.mktemp("rival")
    assert fit(RIVALS[name], datasets(place), folder) == 0
    return Made(RIVALS[name], folder, place)


def test_a_run_takes_every_step_and_moves_what_learns(made: Made) -> None:
    summary = json.loads((made.folder / "summary.json").read_text())
    assert tuple(summary["phases"]) == made.rival.phases
    assert summary["phases"]["online"]["env_steps"] == ENV_STEPS
    saved = torch.load(made.checkpoint, weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    learning = {index for group in optimizer["param_groups"] for index in group["params"]}
    assert {index for index, state in optimizer["state"].items() if state["step"] > 0} == learning


def interrupt_and_resume(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the online phase of a ``whole`` run once more in ``folder``, and loses its power in between."""
    end, taken = Interaction.end, [0]
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.state"))
    shutil.rmtree(folder / "online")
    (folder / "summary.json").unlink()

    def power_cut(self: Interaction) -> None:
        taken[0] += 1
        if taken[0] == KILLED:
            raise Failure("the power is gone")
        end(self)

    with monkeypatch.context() as patched:
        patched.setattr(Interaction, "end", power_cut)
        assert main(["resume", str(folder)]) == 1
    assert torch.load(folder / "online/checkpoints/last.ckpt", weights_only=True)["o2o_progress"]["env_steps"] == SAVED
    assert main(["resume", str(folder)]) == 0


def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_and_resume(made.folder, tmp_path / "run", monkeypatch)
    assert killing.differences(made.folder, tmp_path / "run", ["online"]) == []


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("cal_ql", ("--data.collect", "episode", "--data.mix", "proportional")),
        ("off2on", ("--data.collect", "5", "--data.first_round", "3")),
        ("rlpd", ("--data.warmup_by", "policy", "--data.warmup_learns", "true", "--data.offline_share", "0.25")),
    ],
)
def test_so_does_one_whose_updates_come_in_rounds_and_whose_batches_have_other_shares(
    name: str, tokens: tuple[str, ...], pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(RIVALS[name], pendulum, tmp_path / "whole", *tokens) == 0
    interrupt_and_resume(tmp_path / "whole", tmp_path / "run", monkeypatch)
    assert killing.differences(tmp_path / "whole", tmp_path / "run", ["online"]) == []


def test_whole_updates_that_are_recorded_and_replayed_have_the_bits_of_single_steps(
    made: Made, datasets: Callable[[str], str], tmp_path: Path
) -> None:
    assert fit(made.rival, datasets(made.place), tmp_path / "run", "--model.compile", "record") == 0
    assert killing.numbers_that_differ(made.folder, tmp_path / "run", [*made.rival.phases]) == []


def test_an_export_acts_as_the_checkpoint(made: Made, tmp_path: Path) -> None:
    if not made.rival.formats:
        pytest.skip("a sequence policy's is tested in test_sources_battery.py")
    source = read_handover(made.checkpoint)
    policy, normalizer = source.build_policy().eval(), source.build_normalizer()
    inputs = (torch.randn(64, policy.spec.observation_dim, generator=torch.Generator().manual_seed(0)),)
    with torch.no_grad():
        expected = PLACES[made.place] * mode_of(policy, normalizer, inputs)
    for format in made.rival.formats:
        target = tmp_path / format
        assert main(["policy", "export", str(made.checkpoint), "--format", format, "--out", str(target)]) == 0
        act = torch_program if format == "torch" else onnx_program
        np.testing.assert_allclose(act(target)(*inputs), expected, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_each_of_three_seeds_at_once_follows_its_own_run(name: str, pendulum: str, tmp_path: Path) -> None:
    assert fit(RIVALS[name], pendulum, tmp_path / "three", "seeds=3") == 0
    assert fit(RIVALS[name], pendulum, tmp_path / "own", "--seed_everything", "2") == 0
    summaries = [json.loads((tmp_path / f"three/seed-{seed}/summary.json").read_text()) for seed in range(3)]
    assert [summary["phases"]["online"]["env_steps"] for summary in summaries] == [ENV_STEPS] * 3
    for phase in RIVALS[name].phases:
        together, own, other = (
            torch.load(tmp_path / run / phase / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for run in ("three/seed-2", "own", "three/seed-0")
        )
        for key, value in own.items():
            torch.testing.assert_close(together[key], value, rtol=1e-5, atol=1e-6, msg=f"{phase} {key}")
        assert any(not torch.equal(other[key], value) for key, value in own.items())
