"""IQL and O2PPO end to end on Pendulum and on the embedded Hopper: clocks, frozen parts, schedules, hand-over."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from data_files import record_pendulum
from lightning.pytorch.callbacks import Callback

from o2o_lightning.callbacks.hooks import PhaseCallback
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.errors import UserError
from o2o_lightning.methods.iql import IQL
from o2o_lightning.methods.o2 import ppo
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.on_policy import OnPolicy
from o2o_lightning.phases.reevaluate import Reevaluate

SMALL = (16, 16)
VALUE = (16, 16, 16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 episodes of 10 random steps of Pendulum, each cut by a time limit."""
    return str(record_pendulum(tmp_path_factory.mktemp("data") / "pendulum.hdf5", 40, 10))


class Record(PhaseCallback):
    """Rates, scores and weights as the phase goes."""

    def __init__(self) -> None:
        self.rates: list[tuple[int, float, float]] = []
        self.evaluations: list[int] = []
        self.start: dict[str, torch.Tensor] = {}
        self.returns: torch.Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        self.start = {key: value.clone() for key, value in phase.state_dict().items()}
        if phase.data.store is not None:  # a cache goes with its phase
            self.returns = phase.data.store.leaves.get("return_to_go", None)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rates.append((phase.updates, groups[0]["lr"], groups[-1]["lr"]))

    def on_evaluation(self, trainer: L.Trainer, phase: Any, result: Any) -> None:
        self.evaluations.append(phase.env_steps)


def run(
    phase: Any, data: OfflineData, folder: Path, steps: int = -1, callbacks: tuple[Callback, ...] = ()
) -> tuple[Any, L.Trainer, str]:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=steps, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(phase, datamodule=data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return phase, trainer, str(folder / "last.ckpt")


def moved(record: Record, phase: Any) -> set[str]:
    """Parts of the phase whose tensors are not, bit for bit, what they were before the first batch."""
    end = phase.state_dict()
    changed = {key for key, value in record.start.items() if not torch.equal(value, end[key])}
    return {".".join(key.split(".")[:2]) for key in changed}


@pytest.fixture(scope="module")
def chain(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str, Record]]:
    """IQL for 20 updates, then the fit of V for 20."""
    L.seed_everything(0, verbose=False)
    made: dict[str, tuple[Any, str, Record]] = {}
    for name in ("offline", "reevaluate"):
        record, folder = Record(), tmp_path_factory.mktemp(name)
        phase: Any = (
            Offline(IQL(hidden=SMALL))
            if name == "offline"
            else Reevaluate(ppo.Reevaluate(hidden=VALUE), made["offline"][1])
        )
        data = OfflineData(dataset, batch_size=32, chunk=1, eval_episodes=1)
        module, _, path = run(phase, data, folder, 20, (record,))
        made[name] = (module, path, record)
    return made


def online_data(dataset: str | None, **options: Any) -> RolloutData:
    return RolloutData(
        **{"dataset": dataset, "env_steps": 100, "rollout": 40, "epochs": 2, "batch_size": 16, "chunk": 7,
           "eval_every": 30, "eval_episodes": 1} | options
    )  # fmt: skip


# ---- offline phases --------------------------------------------------------------------------------------------------


def test_iql_counts_one_update_a_batch_and_anneals_only_the_policys_rate_along_a_cosine(chain: Any) -> None:
    module, _, record = chain["offline"]
    assert module.updates == module.trainer.global_step == 20
    expected = [3e-4 * 0.5 * (1 + np.cos(np.pi * (updates - 1) / 20)) for updates in range(1, 21)]
    assert [rate for _, rate, _ in record.rates] == pytest.approx(expected)
    assert {rate for *_, rate in record.rates} == {3e-4}


def test_iql_leaves_its_frozen_copies_alone_and_moves_the_rest(chain: Any) -> None:
    module, _, record = chain["offline"]
    assert moved(record, module) == {"method.actor", "method.critic", "method.target_critic", "method.value"}


def test_the_fit_of_v_moves_v_alone_and_hands_on_the_policy_bit_for_bit(chain: Any) -> None:
    module, path, record = chain["reevaluate"]
    assert moved(record, module) == {"method.value"}
    before, after = read_handover(chain["offline"][1]), read_handover(path)
    assert after.critic is None and after.value == {
        "observation_dim": 3, "hidden": [16, 16, 16], "activation": "tanh",
    }  # fmt: skip
    for prefix in ("actor", "offline_actor"):
        pairs = zip(before.build_actor().parameters(), after.build_actor(prefix).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert before.build_value() is not None and before.build_critic() is not None
    with pytest.raises(UserError, match="without an action-value critic"):
        after.build_critic()


def test_v_learns_returns_up_to_the_last_state_before_each_time_limit(chain: Any) -> None:
    module, _, record = chain["reevaluate"]
    reward, found = module.data.store.leaves["reward"], record.returns
    assert "return_to_go" not in module.data.store.leaves
    assert not found[9::10].any()  # the step behind which the file knows no state
    assert torch.equal(found[8::10], reward[8::10])
    torch.testing.assert_close(found[7::10], reward[7::10] + 0.99 * reward[8::10])


def test_dynamic_scaling_is_gathered_on_the_dataset_and_goes_on_online(
    chain: Any, dataset: str, tmp_path: Path
) -> None:
    phase = Reevaluate(ppo.Reevaluate(hidden=VALUE, reward_scaling="dynamic"), chain["offline"][1])
    module, _, path = run(phase, OfflineData(dataset, batch_size=32, eval_episodes=1), tmp_path, 2)
    assert float(module.method.reward_scale.count) == 400
    online = OnPolicy(ppo.Online(reward_scaling="dynamic"), path)
    run(online, online_data(dataset, env_steps=40), tmp_path)
    assert float(online.method.reward_scale.count) == 440


def test_a_policy_of_another_family_is_refused_with_what_to_do(dataset: str, tmp_path: Path) -> None:
    data = OfflineData(dataset, batch_size=32, eval_episodes=1)
    _, _, path = run(Offline(TD3BC(hidden=SMALL)), data, tmp_path, 1)
    for phase in (Reevaluate(ppo.Reevaluate(), path), OnPolicy(ppo.Online(), path)):
        with pytest.raises(UserError, match="deterministic"):
            run(phase, online_data(dataset), tmp_path, 1)


# ---- the online phase ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(chain: Any, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Record]:
    record = Record()
    method = ppo.Online(auxiliary=ppo.Auxiliary(env_steps=100), reference=Reference("frozen"))
    phase = OnPolicy(method, chain["reevaluate"][1])
    run(phase, online_data(dataset), tmp_path_factory.mktemp("online"), callbacks=(record,))
    return phase, record


def test_steps_updates_and_evaluations_fall_on_exact_counts(tuned: tuple[Any, Record]) -> None:
    phase, record = tuned
    # rollouts of 40 end at 40 and 80; each has 2 epochs of 16 + 16 + 8 rows
    assert phase.env_steps == 100 and phase.updates == phase.trainer.global_step == 12
    assert record.evaluations == [0, 30, 60, 90, 100]
    assert [point[0] for point in phase.curve] == [0, 30, 60, 90, 100]


def test_rates_fall_after_each_rollout(tuned: tuple[Any, Record]) -> None:
    _, record = tuned
    of_updates = {updates: rates for updates, *rates in record.rates if updates}
    assert of_updates[6] == pytest.approx([3e-5, 2e-4])
    assert of_updates[12] == pytest.approx([3e-5 * 0.6, 2e-4 * 0.6])  # begun at step 40 of 100


def test_only_actor_and_value_learn(tuned: tuple[Any, Record]) -> None:
    phase, record = tuned
    # the reference's score is set when training starts
    assert moved(record, phase) - {"method.reference_score"} == {"method.actor", "method.value"}


def test_v_starts_with_new_moments(tuned: tuple[Any, Record]) -> None:
    phase, _ = tuned
    optimizer = phase.trainer.optimizers[0]
    assert {float(optimizer.state[p]["step"]) for g in optimizer.param_groups for p in g["params"]} == {12.0}
    assert optimizer.param_groups[0]["eps"] == 1e-5


def test_the_reference_moves_only_where_the_score_strictly_rises(chain: Any, dataset: str, tmp_path: Path) -> None:
    returns = iter([5.0, 4.0, 6.0, 6.0, 7.0, 3.0])
    references: list[torch.Tensor] = []

    class Scripted(OnPolicy):
        def evaluate(self, actor: Any = None) -> Evaluation:
            return Evaluation([next(returns)], [1], None)

    class Watch(PhaseCallback):
        def on_train_batch_end(self, trainer: L.Trainer, phase: Any, *rest: Any) -> None:
            references.append(phase.method.reference_policy.raw_log_std.clone())

    phase = Scripted(ppo.Online(actor_lr=1e-2), chain["reevaluate"][1])
    data = online_data(dataset, env_steps=200, eval_every=40, chunk=40)
    run(phase, data, tmp_path, callbacks=(Watch(),))
    start = torch.zeros_like(references[0]) + read_handover(chain["reevaluate"][1]).state["actor.raw_log_std"]
    swapped = [not torch.equal(a, b) for a, b in pairwise([start, *references])]
    # after the evaluations at steps 80 and 160; each batch of 40 steps sees those before its own end
    assert swapped == [False, False, True, False, True]
    assert float(phase.method.reference_score) == 7.0


def test_a_rollout_is_in_time_order_with_each_row_once_an_epoch(chain: Any, dataset: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Spy(ppo.Online):
        def begin_rollout(self, rollout: Any, env_steps: int) -> Any:
            rows = super().begin_rollout(rollout, env_steps)
            rows["row"] = torch.arange(len(rows))
            seen.append((rollout, []))
            return rows

        def policy_step(self, batch: Any, noise: Any) -> Any:
            seen[-1][1].extend(batch["row"].tolist())
            return super().policy_step(batch, noise)

    run(
        OnPolicy(Spy(), chain["reevaluate"][1]), online_data(dataset, env_steps=80, num_envs=2, eval_every=40), tmp_path
    )
    assert len(seen) == 2
    for rollout, rows in seen:
        assert rollout.shape == (2, 20)
        goes_on = ~rollout["next", "truncated"][:, :-1]
        later, reached = rollout["observation"][:, 1:], rollout["next", "observation"][:, :-1]
        assert torch.equal(later[goes_on], reached[goes_on]) and bool(goes_on.any())
        assert not torch.equal(rollout["observation"][0], rollout["observation"][1])
        assert sorted(rows[:40]) == sorted(rows[40:]) == list(range(40)) and rows[:40] != rows[40:]


def test_the_chunk_size_changes_nothing_but_speed(chain: Any, dataset: str, tmp_path: Path) -> None:
    ends = []
    for chunk in (1, 64):
        L.seed_everything(3, verbose=False)
        phase, *_ = run(OnPolicy(ppo.Online(), chain["reevaluate"][1]), online_data(dataset, chunk=chunk), tmp_path)
        ends.append(phase.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_deviation_is_capped_in_policy_and_reference_before_the_first_evaluation(
    chain: Any, dataset: str, tmp_path: Path
) -> None:
    phase = OnPolicy(ppo.Online(std_cap=0.05), chain["reevaluate"][1])
    run(phase, online_data(dataset, env_steps=20), tmp_path)  # the budget is one rollout, of 20
    assert phase.updates == 4
    std = phase.method.reference_policy.log_std().exp()
    torch.testing.assert_close(std, torch.full_like(std, 0.05))
    assert float(phase.method.actor.log_std().exp().detach()) == pytest.approx(0.05, rel=1e-3)


def test_from_scratch_it_needs_an_environment_and_nothing_else(tmp_path: Path) -> None:
    phase = OnPolicy(ppo.Online(auxiliary_advantage=False, hidden=SMALL, value_hidden=VALUE))
    run(phase, online_data(None, env_id="Pendulum-v1"), tmp_path)
    assert phase.updates == 12 and not hasattr(phase.method, "log_multiplier")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_envs": 3}, "num_envs 3"), ({"epochs": 0}, "at least 1"), ({"num_envs": 2, "eval_every": 25}, "eval_every")],
)
def test_impossible_rollouts_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        online_data(None, **options)


# ---- the command line ------------------------------------------------------------------------------------------------


def o2o(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "o2o_lightning.cli.main", *argv]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_alignment_phase_of_ppo_says_why_it_is_empty_and_writes_nothing(tmp_path: Path) -> None:
    done = o2o("fit", "--phase", "align", "online=o2ppo", "--run_dir", "run", cwd=tmp_path)
    assert done.returncode == 0 and "auxiliary advantage" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["embedded:hopper-medium", "pendulum"])
def test_the_whole_pipeline_runs_by_one_command(source: str, dataset: str, tmp_path: Path) -> None:
    spec = dataset if source == "pendulum" else source
    done = o2o(
        "fit", "--phase", "all", "offline=iql", "online=o2ppo", "steps.offline=30", "steps.reevaluate=20",
        "steps.env=120", "--data.dataset", spec, "--data.rollout", "50", "--data.eval_every", "60",
        "--data.eval_episodes", "1", "--run_dir", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["algorithm"], summary["env_steps"], summary["steps"]) == ("o2ppo", 120, 20)
    assert list(summary["phases"]) == ["offline", "reevaluate", "online"]
    assert [point[0] for point in summary["score"]["curve"]] == [0, 60, 120]
    with (tmp_path / "run" / "online" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("kl")]
    assert [row["env_steps"] for row in rows] == ["50", "100"]
    for name in ("kl", "clip_fraction", "explained_variance", "std", "auxiliary_weight"):
        assert all(np.isfinite(float(row[name])) for row in rows)
    assert all(float(row["kl"]) > 0 for row in rows)
