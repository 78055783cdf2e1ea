"""The SAC and CQL phases with Lightning, in tiny runs: what is frozen, what is handed on, which clock moves what."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.cql import CQL
from o2o_lightning.methods.o2 import sac, td3
from o2o_lightning.methods.o2.constraint import Multiplier, Threshold
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.descent import Descent
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate

DATASET, NETS = "embedded:hopper-medium", (16, 16, 16)
State = dict[str, Tensor]


class Start(Callback):
    """Copies the weights before the first batch."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = state_of(pl_module)


def state_of(module: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class Run:
    """A phase that has run for a few updates."""

    def __init__(self, phase: Any, data: OfflineData, folder: Path, steps: int = -1, callbacks: Any = ()) -> None:
        self.phase, self.start = phase, Start()
        self.trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, max_steps=steps, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[self.start, *callbacks],
        )  # fmt: skip
        self.trainer.fit(phase, datamodule=data)
        self.checkpoint = str(folder / f"{phase.phase}.ckpt")
        self.trainer.save_checkpoint(self.checkpoint)
        self.end = state_of(phase)

    def unchanged(self, prefix: str) -> bool:
        return all(torch.equal(self.start.state[name], self.end[name]) for name in self._names(prefix))

    def changed(self, prefix: str) -> bool:
        return not any(torch.equal(self.start.state[name], self.end[name]) for name in self._names(prefix))

    def _names(self, prefix: str) -> list[str]:
        names = [name for name in self.end if name == prefix or name.startswith(prefix + ".")]
        assert names, prefix
        return names


def offline_data(**options: Any) -> OfflineData:
    return OfflineData(DATASET, batch_size=16, eval_episodes=1, eval_every_updates=0, **options)


def online_data(**options: Any) -> OnlineData:
    settings = {"dataset": DATASET, "env_steps": 24, "warmup_steps": 8, "eval_every": 12, **options}
    return OnlineData(batch_size=16, eval_episodes=1, chunk=4, **settings)


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_seeded():
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)


@pytest.fixture(scope="module", params=[2, 1], ids=["two critics", "one critic"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """CQL, re-evaluation and alignment, each from the one before."""
    folder = tmp_path_factory.mktemp("chain")
    runs = {"offline": Run(Offline(CQL(hidden=NETS, critic_hidden=NETS, samples=3)), offline_data(), folder, 8)}
    reevaluate = Reevaluate(sac.Reevaluate(hidden=NETS, critics=request.param), runs["offline"].checkpoint)
    runs["reevaluate"] = Run(reevaluate, offline_data(), folder, 8)
    runs["align"] = Run(Align(sac.Align(), runs["reevaluate"].checkpoint), offline_data(), folder, 8)
    return runs


def test_cql_trains_actor_critics_and_temperature(chain: dict[str, Run]):
    run = chain["offline"]
    assert run.changed("method.actor") and run.changed("method.critic") and run.changed("method.log_alpha")
    assert run.changed("method.target_critic") and run.unchanged("method.log_lagrange")
    assert run.trainer.global_step == 8


def test_the_lagrange_multiplier_of_cql_is_trained_when_a_gap_is_asked_for(tmp_path: Path):
    method = CQL(hidden=NETS, critic_hidden=NETS, samples=3, lagrange_gap=0.8, gap_min=-200.0, max_target=True)
    run = Run(Offline(method), offline_data(reward_scale=10.0, reward_shift=-5.0), tmp_path, 3)
    # Adam's first steps have the size of the critics' rate
    assert float((run.end["method.log_lagrange"] - 1.0).abs()) == pytest.approx(3 * 3e-4, rel=1e-2)


def test_reevaluation_changes_critics_and_nothing_else(chain: dict[str, Run]):
    run = chain["reevaluate"]
    assert run.unchanged("method.actor") and run.unchanged("method.offline_actor") and run.unchanged("method.log_alpha")
    assert run.changed("method.critic") and run.changed("method.target_critic")
    before = chain["offline"].end
    assert all(torch.equal(run.end[name], before[name]) for name in run.end if name.startswith("method.actor."))
    assert float(run.end["method.log_alpha"]) == pytest.approx(math.log(0.2))


def test_alignment_freezes_targets_offline_policy_and_temperature(chain: dict[str, Run]):
    run, before = chain["align"], chain["reevaluate"].end
    for part in ("method.target_critic", "method.offline_actor", "method.log_alpha"):
        assert run.unchanged(part)
    assert run.changed("method.actor") and run.changed("method.critic")
    # aligned against the targets that re-evaluation left, not against copies of its critics
    for name in (name for name in before if name.startswith("method.target_critic")):
        assert torch.equal(run.end[name], before[name])
    assert not torch.equal(
        before["method.target_critic.members.0.linears.0.weight"], before["method.critic.members.0.linears.0.weight"]
    )


def test_fine_tuning_starts_from_the_aligned_policy_with_targets_that_are_copies(chain: dict[str, Run], tmp_path: Path):
    run, aligned = Run(Online(sac.Online(), chain["align"].checkpoint), online_data(), tmp_path), chain["align"].end
    start = run.start.state
    for name in (
        name for name in aligned if name.startswith(("method.actor", "method.critic", "method.offline_actor"))
    ):
        assert torch.equal(start[name], aligned[name])
    for name in (name for name in aligned if name.startswith("method.target_critic")):
        assert torch.equal(start[name], aligned[name.replace("target_critic", "critic")])
    assert run.unchanged("method.offline_actor")
    for part in ("method.actor", "method.critic", "method.target_critic", "method.log_alpha", "method.log_multiplier"):
        assert run.changed(part)
    assert (run.phase.updates, run.phase.env_steps, run.trainer.global_step) == (16, 24, 16)
    assert [point[0] for point in run.phase.curve] == [0, 12, 24]


def test_the_dataset_is_not_touched_by_fine_tuning(chain: dict[str, Run], tmp_path: Path):
    data = online_data(env_steps=12)
    untouched = offline_data()
    untouched.setup("fit")
    assert untouched.store is not None
    Run(Online(sac.Online(), chain["align"].checkpoint), data, tmp_path)
    assert data.store is not None
    for key in ("observation", "action", "reward"):
        assert torch.equal(data.store.leaves[key], untouched.store.leaves[key])


class Scalars:
    """λ and α after every gradient update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[int, float, float]] = []
        descend = Descent.__call__

        def recorded(descent: Descent, loss: Tensor, counted: bool) -> None:
            descend(descent, loss, counted)
            method = descent.phase.method
            with torch.no_grad():
                scalars = float(method.log_multiplier), float(method.log_alpha)
            self.rows.append((descent.phase.env_steps, *scalars))

        monkeypatch.setattr(Descent, "__call__", recorded)


def test_the_multiplier_moves_once_an_environment_step_whatever_the_update_ratio(
    chain: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scalars = Scalars(monkeypatch)
    run = Run(Online(sac.Online(), chain["align"].checkpoint), online_data(utd=3), tmp_path)
    assert run.phase.updates == run.trainer.global_step == 16 * 3
    by_step = {step: [row for row in scalars.rows if row[0] == step] for step in range(9, 25)}
    last = 0.0
    for rows in by_step.values():
        multipliers, alphas = {row[1] for row in rows}, {row[2] for row in rows}
        assert len(rows) == 3 and len(multipliers) == 1 and len(alphas) == 3
        assert multipliers != {last}
        (last,) = multipliers


def test_the_multiplier_can_move_at_every_second_environment_step_only(
    chain: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scalars = Scalars(monkeypatch)
    phase = Online(sac.Online(multiplier=Multiplier(every=2)), chain["align"].checkpoint)
    Run(phase, online_data(), tmp_path)
    assert {row[0] for row in scalars.rows} == set(range(9, 25))
    changes = [b[0] for a, b in zip(scalars.rows, scalars.rows[1:], strict=False) if a[1] != b[1]]
    assert changes == [10, 12, 14, 16, 18, 20, 22, 24]


class ReferenceMoves(Callback):
    """Environment steps at which π_ref had changed."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        move = pl_module.set_reference

        def recorded(actor: Any, score: float) -> None:
            self.steps.append(pl_module.env_steps)
            move(actor, score)

        pl_module.set_reference = recorded


@pytest.mark.parametrize(
    ("reference", "moves"),
    [
        (Reference(mode="frozen"), {0}),
        (Reference(mode="interval", period=5), {0, 6, 11, 16, 21}),
        (Reference(mode="best"), {0, 12, 24}),
    ],
    ids=["frozen", "interval", "best"],
)
def test_the_reference_moves_only_when_its_rule_says(
    chain: dict[str, Run], tmp_path: Path, reference: Reference, moves: set[int]
):
    seen = ReferenceMoves()
    run = Run(
        Online(sac.Online(reference=reference), chain["align"].checkpoint), online_data(), tmp_path, callbacks=[seen]
    )
    assert set(seen.steps) <= moves if reference.mode == "best" else set(seen.steps) == moves
    assert all(parameter.grad is None for parameter in run.phase.method.reference_policy.parameters())
    if reference.mode == "frozen":  # at the better of its two possible starts
        starts = [[run.start.state[f"method.{part}.{name}"] for name in run.phase.method.reference_policy.state_dict()]
                  for part in ("actor", "offline_actor")]  # fmt: skip
        end = list(run.phase.method.reference_policy.state_dict().values())
        assert any(all(map(torch.equal, end, start)) for start in starts)


def test_the_interval_mode_quarters_the_end_of_the_threshold(chain: dict[str, Run], tmp_path: Path):
    settings = dict(threshold=Threshold(start=0.1, end=2.0, env_steps=12), reference=Reference(threshold_scale=0.25))
    run = Run(Online(sac.Online(**settings), chain["align"].checkpoint), online_data(), tmp_path)
    assert float(run.phase.method.threshold_now) == pytest.approx(0.5)


@pytest.mark.parametrize("limit", [None, 1e-3])
def test_the_actor_s_gradient_is_clipped_and_the_critics_is_not(
    chain: dict[str, Run], tmp_path: Path, limit: float | None
):
    norms: list[tuple[float, float]] = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            parts = (pl_module.method.actor, pl_module.method.critic)
            norms.append(tuple(float(torch.stack([p.grad.norm() for p in part.parameters()]).norm()) for part in parts))

    phase = Online(sac.Online(actor_grad_clip=limit), chain["align"].checkpoint)
    Run(phase, online_data(env_steps=12), tmp_path, callbacks=[Norms()])
    actor, critic = (max(column) for column in zip(*norms, strict=True))
    assert critic > 0.1
    assert actor <= 1.001e-3 if limit else actor > 1e-2


def test_adam_keeps_the_critics_moments_between_phases(chain: dict[str, Run], tmp_path: Path):
    counts = {}
    for phase in ("reevaluate", "align"):
        state = torch.load(chain[phase].checkpoint, weights_only=True)["optimizer_states"][0]
        for group in state["param_groups"]:
            counts[phase, group["name"]] = {float(state["state"][i]["step"]) for i in group["params"]}
    assert counts == {("reevaluate", "critic"): {8.0}, ("align", "critic"): {16.0}, ("align", "actor"): {8.0}}


def test_direct_fine_tuning_takes_policy_critics_and_targets_of_cql(chain: dict[str, Run], tmp_path: Path):
    phase = Online(sac.Online(constraint=False), chain["offline"].checkpoint)
    run, offline = Run(phase, online_data(), tmp_path), chain["offline"].end
    for name in (
        name for name in offline if name.startswith(("method.actor", "method.critic", "method.target_critic"))
    ):
        assert torch.equal(run.start.state[name], offline[name])
    assert run.unchanged("method.log_multiplier") and run.changed("method.actor")


def test_alignment_can_reuse_the_offline_critic(chain: dict[str, Run], tmp_path: Path):
    run = Run(Align(sac.Align(), chain["offline"].checkpoint), offline_data(), tmp_path, 2)
    assert run.unchanged("method.target_critic")
    assert run.phase.method.critic.spec.layer_norm is False


@pytest.mark.parametrize("make", [
    lambda: Online(sac.Online(constraint=False, hidden=NETS, critic_hidden=NETS)),
    lambda: Online(td3.Online(constraint=False, hidden=NETS)),
])  # fmt: skip
def test_from_scratch_the_warm_up_is_uniform_then_the_policy_s_own(make: Callable[[], Online], tmp_path: Path):
    data = OnlineData(
        env_id="Pendulum-v1", env_steps=60, warmup_steps=40, mix="none", normalize=False, batch_size=16,
        eval_every=60, eval_episodes=1,
    )  # fmt: skip
    run = Run(make(), data, tmp_path)
    assert data.interaction is not None
    actions = data.interaction.buffer.leaves["action"][:40, 0]
    assert run.phase.updates == 20
    assert float((actions.abs() > 0.7).float().mean()) > 0.1  # σ ≤ 0.37 of a new policy: 2 % of draws
    assert float(actions.abs().max()) <= 1.0


def test_a_policy_of_another_family_is_refused_in_one_line(tmp_path: Path):
    start = Run(Offline(TD3BC(hidden=(16,))), offline_data(), tmp_path, 2).checkpoint
    with pytest.raises(UserError, match="its policy is deterministic, o2sac fine-tunes a squashed_gaussian one"):
        Run(Reevaluate(sac.Reevaluate(), start), offline_data(), tmp_path, 2)


@pytest.mark.parametrize("make", [
    lambda: CQL(temperature=0.0), lambda: CQL(samples=0), lambda: CQL(softmax_temperature=0.0),
    lambda: sac.Reevaluate(critics=0), lambda: sac.Reevaluate(temperature=-1.0),
    lambda: sac.Align(temperature=0.0), lambda: sac.Online(temperature=float("nan")),
])  # fmt: skip
def test_a_value_without_meaning_is_refused_by_name(make: Callable[[], Any]):
    with pytest.raises(UserError, match=r"--model\.\w+ .* must be at least"):
        make()


def test_exploration_draws_from_the_policy(chain: dict[str, Run]):
    actor = chain["align"].phase.method.actor
    observation = np.zeros((20_000, actor.spec.observation_dim), np.float32)
    with torch.no_grad():
        policy = actor.distribution(torch.zeros(1, observation.shape[1]))
    draws = np.arctanh(actor.explore(observation, np.random.default_rng(0)))
    np.testing.assert_allclose(draws.mean(0), policy.mean[0].numpy(), atol=0.02)
    np.testing.assert_allclose(draws.std(0), policy.log_std.exp()[0].numpy(), rtol=0.03)


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def o2o() -> Callable[..., int]:
    from o2o_lightning.cli.main import main

    return lambda *argv: main([str(token) for token in argv])


def test_the_command_line_runs_cql_and_o2sac_in_one_go(o2o: Callable[..., int], tmp_path: Path):
    code = o2o(
        "fit", "--phase", "all", "offline=cql", "online=o2sac", "dataset=embedded",
        "steps.offline=2", "steps.reevaluate=3", "steps.align=2", "steps.env=12",
        "--data.warmup_steps", 6, "--data.eval_every", 6, "--data.eval_episodes", 1, "--data.batch_size", 16,
        "--data.utd", 2, "--run_dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [phase["algorithm"] for phase in summary["phases"].values()] == ["cql", "o2sac", "o2sac", "o2sac"]
    assert [phase["steps"] for phase in summary["phases"].values()] == [2, 3, 2, 12]
    assert [point[0] for point in summary["score"]["curve"]] == [0, 6, 12]


def test_the_command_line_runs_sac_from_scratch(o2o: Callable[..., int], tmp_path: Path):
    code = o2o(
        "fit", "--phase", "online", "online=sac", "experiment=scratch", "--data.env_id", "Pendulum-v1",
        "--data.env_steps", 30, "--data.warmup_steps", 20, "--data.eval_every", 30, "--data.eval_episodes", 1,
        "--run_dir", tmp_path / "run",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["env_steps"], summary["dataset"]) == (10, 30, None)
