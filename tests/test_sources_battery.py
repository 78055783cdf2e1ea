"""What every offline source must pass: fit, save, load, resume, export, clone, bad data. A new one is one more row."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import killing
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.trajectories import TrajectoryData
from o2o_lightning.errors import Failure
from o2o_lightning.nn.actor import Actor, Policy
from o2o_lightning.nn.decision_transformer import SequencePolicy, Window
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.phases.descent import Descent
from o2o_lightning.policies.history import player_of

STEPS, EVERY = 24, 8
FAMILIES = ("deterministic", "gaussian", "squashed_gaussian")


@dataclass(frozen=True)
class Source:
    """A row of the battery.

    Attributes:
        tokens: what chooses it on the command line, and makes its networks small.
        family: of the policy that it hands on.
        critic: whether an action-value critic comes with it.
        learns_from: the column of a batch whose NaN must show in its loss.
        formats: that its policy can be exported to.
    """

    tokens: tuple[str, ...]
    family: str
    critic: bool = True
    learns_from: str = "reward"
    formats: tuple[str, ...] = ("torch", "onnx")


SMALL = ("--model.hidden", "[8,8]")
TINY = (
    "--model.width", "8", "--model.layers", "1", "--model.heads", "1", "--model.context", "4",
    "--model.acting_context", "3",
)  # fmt: skip
SOURCES = {
    "td3_bc": Source(("offline=td3_bc", *SMALL), "deterministic"),
    "cql": Source(("offline=cql", *SMALL, "--model.critic_hidden", "[8,8]"), "squashed_gaussian"),
    "iql": Source(("offline=iql", *SMALL), "gaussian"),
    "awac": Source(("offline=awac", *SMALL), "gaussian"),
    "bc": Source(("offline=bc", *SMALL), "deterministic", critic=False, learns_from="action"),
    "bc10": Source(("offline=bc10", *SMALL), "deterministic", critic=False, learns_from="action"),
    "bc, squashed": Source(("offline=bc", "family=squashed_gaussian", *SMALL), "squashed_gaussian", False, "action"),
    "dt": Source(("offline=dt", *TINY), "decision_transformer", False, "return_to_go", ("torch",)),
    "odt": Source(("offline=odt", *TINY), "online_decision_transformer", False, "return_to_go", ("torch",)),
}


@dataclass(frozen=True)
class Made:
    """A source, and a finished run of it."""

    source: Source
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "offline/checkpoints/last.ckpt"

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "offline/summary.json").read_text())
        return found


def fit(source: Source, dataset: str, folder: Path, *more: str) -> int:
    """`o2o fit --phase offline` of the source, 24 updates, a point to resume from every 8."""
    options = [
        "dataset=file", "tier=medium", "--data.dataset", dataset, "--data.batch_size", "16", "--data.chunk", "4",
        "--data.eval_episodes", "1", "--data.eval_every_updates", "16", "--trainer.log_every_n_steps", "4",
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    line = ["fit", "--phase", "offline", f"steps.offline={STEPS}", f"checkpoint_every={EVERY}", *options]
    return main([*line, *source.tokens, *more, "--run_dir", str(folder)])


@pytest.fixture(scope="module", params=SOURCES)
def made(request: pytest.FixtureRequest, pendulum: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    source, folder = SOURCES[request.param], tmp_path_factory.mktemp("source")
    assert fit(source, pendulum, folder) == 0
    return Made(source, folder)


def test_a_fit_takes_every_step_and_trains_every_part(made: Made) -> None:
    assert (made.summary["steps"], made.summary["env_steps"]) == (STEPS, 0)
    saved = torch.load(made.checkpoint, weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    learning = {index for group in optimizer["param_groups"] for index in group["params"]}
    assert {index for index, state in optimizer["state"].items() if state["step"] > 0} == learning
    with (made.folder / "offline/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(value) for row in rows for key, value in row.items() if key.endswith("_loss") and value]
    assert losses and all(map(math.isfinite, losses))


def test_whole_updates_that_are_recorded_and_replayed_have_the_bits_of_single_steps(
    made: Made, pendulum: str, tmp_path: Path
) -> None:
    assert fit(made.source, pendulum, tmp_path / "run", "--model.compile", "record") == 0
    assert killing.numbers_that_differ(made.folder, tmp_path / "run", ["offline"]) == []


def test_what_is_saved_is_plain_and_complete(made: Made) -> None:
    saved = torch.load(made.checkpoint, weights_only=True)["o2o"]
    assert saved["phase"] == "offline" and saved["origin"] == saved["algorithm"] == made.summary["algorithm"]
    assert (saved["env_id"], saved["actor"]["kind"]) == ("Pendulum-v1", made.source.family)
    assert (saved["critic"] is not None) == made.source.critic
    assert len(saved["manifest"]["sha256"]) == 64 and saved["normalizer"]["mean"].shape == (3,)


def test_what_is_loaded_scores_what_was_saved(made: Made, pendulum: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = OfflineData(dataset=pendulum, eval_episodes=1)
    data.setup("test")
    source = read_handover(made.checkpoint)
    found = data.evaluate(player_of(source.build_policy(), source.build_normalizer()))
    assert found.return_mean == made.summary["score"]["final"]


def test_an_interrupted_fit_ends_with_the_bits_of_one_that_was_not(
    made: Made, pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend, folder = Descent.__call__, tmp_path / "run"

    def power_cut(self: Descent, *arguments: Any, **options: Any) -> None:
        if self.phase.updates == 18:
            raise Failure("the power is gone")
        descend(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Descent, "__call__", power_cut)
        assert fit(made.source, pendulum, folder) == 1
    assert torch.load(folder / "offline/checkpoints/last.ckpt", weights_only=True)["o2o_progress"]["updates"] == 16
    assert main(["resume", str(folder)]) == 0
    assert killing.differences(made.folder, folder, ["offline"]) == []


def test_an_export_acts_as_the_checkpoint(made: Made, tmp_path: Path) -> None:
    source = read_handover(made.checkpoint)
    policy, normalizer = source.build_policy().eval(), source.build_normalizer()
    for format in made.source.formats:
        target = tmp_path / format
        assert main(["policy", "export", str(made.checkpoint), "--format", format, "--out", str(target)]) == 0
        act = torch_program if format == "torch" else onnx_program
        for inputs in [histories(steps) for steps in (1, 2, 3)] if isinstance(policy, SequencePolicy) else [states(64)]:
            with torch.no_grad():
                expected = 2 * mode_of(policy, normalizer, inputs)  # Pendulum's actions range over ±2
            # 1e-6 of half that range
            np.testing.assert_allclose(act(target)(*inputs), expected, rtol=0, atol=2e-6)


def states(*shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.from_numpy(np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)),)


def histories(steps: int) -> tuple[torch.Tensor, ...]:
    """Raw returns to go, observations, native actions and time steps of 5 episodes' last ``steps``."""
    returns, actions = 10 * torch.randn(5, steps), 2 * torch.rand(5, steps, 1)
    return returns, *states(5, steps), actions, torch.arange(steps).expand(5, -1) + 4


def mode_of(policy: Policy, normalizer: Normalizer, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The checkpoint's action in [−1, 1] for what its export takes."""
    if isinstance(policy, SequencePolicy):
        returns, observations, actions, time = inputs
        window = Window(returns * policy.spec.return_scale, normalizer(observations), actions / 2, time)
        return policy.modes(window)[:, -1]
    assert isinstance(policy, Actor)
    return policy.mode(normalizer(inputs[0]))


def torch_program(file: Path) -> Callable[..., Any]:
    program = torch.export.load(file).module()
    return lambda *inputs: program(*inputs).detach().numpy()


def onnx_program(file: Path) -> Callable[..., Any]:
    evaluator = ReferenceEvaluator(onnx.load(file, format="protobuf"))
    return lambda states: evaluator.run(None, {"observation": states.numpy()})[0]


def test_its_policy_can_be_cloned_into_every_other_family(made: Made, pendulum: str, tmp_path: Path) -> None:
    source = read_handover(made.checkpoint)
    for family in (family for family in FAMILIES if family != made.source.family):
        options = ["dataset=file", "tier=medium", "--data.dataset", pendulum, "--data.batch_size", "16", *SMALL]
        line = ["fit", "--phase", "clone", "--model.init_from", str(made.checkpoint), "steps.clone=4", *options]
        line += ["--model.family", family, "--data.eval_episodes", "1", "--run_dir", str(tmp_path / family)]
        assert main(line) == 0
        clone = read_handover(tmp_path / family / "clone/checkpoints/last.ckpt")
        assert (clone.actor["kind"], clone.origin) == (family, source.origin)
        assert (clone.critic is not None) == made.source.critic
        summary = json.loads((tmp_path / family / "summary.json").read_text())
        assert summary["fidelity"]["teacher_family"] == made.source.family
        assert summary["fidelity"]["teacher"] == made.summary["score"]["final"]


def test_a_nan_in_the_data_is_refused_before_the_first_update(
    made: Made, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.hdf5"
    shutil.copy(pendulum, broken)
    with h5py.File(broken, "a") as file:
        file["rewards"][17] = np.nan
    assert fit(made.source, str(broken), tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'rewards' has NaN at row 17" in error
    assert not (tmp_path / "run").exists()


def test_a_nan_in_a_batch_is_named_and_reaches_no_checkpoint(
    made: Made, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    column = made.source.learns_from
    owner, name = (TrajectoryData, "prepare") if column == "return_to_go" else (OfflineData, "prepare_rows")
    prepare = getattr(owner, name)

    def spoilt(self: Any, *arguments: Any) -> Any:
        batch = prepare(self, *arguments)
        if column in set(batch.keys()):
            batch[column] = torch.full_like(batch[column], math.nan)
        return batch

    monkeypatch.setattr(owner, name, spoilt)
    assert fit(made.source, pendulum, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"update 1: batch['{column}']" in error
    assert torch.load(tmp_path / "run/offline/failed_batch.pt", weights_only=True)["update"] == 1
    assert not (tmp_path / "run/offline/checkpoints/last.ckpt").exists()


# ---- what 10 %-BC learns from --------------------------------------------------------------------------------------


def test_the_top_fraction_is_of_whole_episodes_with_the_highest_returns(pendulum: str, tmp_path: Path) -> None:
    assert fit(SOURCES["bc10"], pendulum, tmp_path / "run") == 0
    with h5py.File(pendulum) as file:
        observations, rewards = file["observations"][:].reshape(60, 8, 3), file["rewards"][:].reshape(60, 8)
    best = np.argsort(rewards.sum(1))[-6:]  # 10 % of 60 episodes of 8 steps
    kept = observations[best].reshape(-1, 3).astype(np.float64)
    saved = torch.load(tmp_path / "run/offline/checkpoints/last.ckpt", weights_only=True)["o2o"]
    np.testing.assert_allclose(saved["normalizer"]["mean"], kept.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(saved["normalizer"]["std"], kept.std(0), rtol=1e-5, atol=1e-6)
    assert saved["algorithm"] == "bc10"


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1"])
def test_a_fraction_that_is_none_is_refused(
    fraction: str, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(("offline=bc", "--model.fraction", fraction), "deterministic")
    assert fit(source, pendulum, tmp_path / "run") == 2
    assert f"--model.fraction {fraction}" in capsys.readouterr().err and not (tmp_path / "run").exists()
