"""Two clocks, gradient updates and environment steps: exact whatever the chunk, and the same bits every time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HIDDEN, Fit, Run

from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.constraint import Multiplier, Threshold
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.descent import Descent, is_heard
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online

CHUNKS = (1, 5, 16, 64)
METHODS_OWN = ("threshold", "multiplier")


def offline(fit: Fit, pendulum: str, steps: int = 37, **options: Any) -> Run:
    settings = {"batch_size": 32, "eval_episodes": 1, "normalize": True, **options}
    seed = settings.pop("seed", 0)
    return fit(
        lambda: Offline(TD3BC(hidden=HIDDEN)), lambda: OfflineData(dataset=pendulum, **settings), steps, seed=seed
    )


def online(fit: Fit, chain: dict[str, Run], pendulum: str, phase: type[Online] = Online, **options: Any) -> Run:
    settings = {"env_steps": 23, "warmup_steps": 4, "batch_size": 32, "eval_every": 7, "eval_episodes": 1, **options}
    seed, own = settings.pop("seed", 0), {name: settings.pop(name) for name in METHODS_OWN if name in settings}
    return fit(
        lambda: phase(td3.Online(**own), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, **settings),
        seed=seed,
    )


def test_rows_that_nobody_asked_for_are_not_logged(fit: Fit, pendulum: str) -> None:
    data = OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1)
    run = fit(Offline(TD3BC(hidden=HIDDEN)), data, 6, log_every=0)
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert rows and all(not row.get("critic_loss") for row in rows)
    assert [row["updates"] for row in rows if row["return_mean"]] == ["6"]


def evaluations(run: Run) -> list[int]:
    return [point[0] for point in run.module.curve]


def assert_same_bits(first: Run, second: Run) -> None:
    one, two = first.end(), second.end()
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert first.module.curve == second.module.curve
    assert first.metrics() == second.metrics()


def adam_steps(run: Run, group: str) -> set[int]:
    optimizer = run.trainer.optimizers[0]
    (parameters,) = (g["params"] for g in optimizer.param_groups if g["name"] == group)
    return {int(optimizer.state[parameter]["step"]) for parameter in parameters}


# ---- gradient updates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_37_updates_are_37_whatever_the_chunk_although_delayed_ones_have_two_losses(
    fit: Fit, pendulum: str, chunk: int
) -> None:
    run = offline(fit, pendulum, 37, chunk=chunk)
    assert run.module.updates == run.trainer.global_step == 37
    assert adam_steps(run, "critic") == {37}
    assert adam_steps(run, "actor") == {18}  # updates 2, 4, …, 36
    assert evaluations(run) == [37]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_an_offline_phase_is_evaluated_at_exact_updates_and_at_its_end(fit: Fit, pendulum: str, chunk: int) -> None:
    run = offline(fit, pendulum, 37, chunk=chunk, eval_every_updates=10)
    assert evaluations(run) == [10, 20, 30, 37]
    assert run.trainer.global_step == 37


def test_the_end_is_evaluated_once_where_it_falls_on_the_cadence(fit: Fit, pendulum: str) -> None:
    assert evaluations(offline(fit, pendulum, 20, eval_every_updates=10)) == [10, 20]


def test_zero_evaluates_an_offline_phase_only_at_its_end(fit: Fit, pendulum: str) -> None:
    assert evaluations(offline(fit, pendulum, 20, eval_every_updates=0)) == [20]


def test_metrics_are_written_at_exact_updates(fit: Fit, pendulum: str) -> None:
    run = fit(
        lambda: Offline(TD3BC(hidden=HIDDEN)), lambda: OfflineData(dataset=pendulum, batch_size=32, eval_episodes=1),
        37, log_every=10,
    )  # fmt: skip
    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    assert [float(row["updates"]) for row in rows if row["critic_loss"]] == [10, 20, 30]
    assert [float(row["updates"]) for row in rows if row["return_mean"]] == [37]


# ---- environment steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_budget_and_the_evaluations_fall_on_exact_environment_steps(
    fit: Fit, chain: dict[str, Run], pendulum: str, chunk: int
) -> None:
    run = online(fit, chain, pendulum, chunk=chunk)
    assert run.module.env_steps == len(run.trainer.datamodule.interaction.buffer) == 23  # type: ignore[attr-defined]
    assert run.module.updates == run.trainer.global_step == 23 - 4
    assert evaluations(run) == [0, 7, 14, 21, 23]


def test_evaluation_steps_are_counted_and_never_part_of_the_budget(
    fit: Fit, chain: dict[str, Run], pendulum: str
) -> None:
    run = online(fit, chain, pendulum, env_steps=7, eval_episodes=2)
    # π_on at 0 and 7, π_off at 0: two episodes of Pendulum's 200 steps each
    assert run.module.eval_env_steps == 3 * 2 * 200
    assert run.module.env_steps == 7


def test_warm_up_makes_no_updates(fit: Fit, chain: dict[str, Run], pendulum: str) -> None:
    run = online(fit, chain, pendulum, env_steps=12, warmup_steps=12)
    assert run.module.updates == run.trainer.global_step == 0
    end = run.end()
    moved = [key for key in end if not torch.equal(end[key], run.start[key])]
    assert moved == ["method.threshold_now"]  # the ramp runs during the warm-up too
    assert online(fit, chain, pendulum, env_steps=13, warmup_steps=12).module.updates == 1


@pytest.mark.parametrize("utd", [1, 3])
def test_each_environment_step_is_followed_by_as_many_updates_as_the_ratio_says(
    fit: Fit, chain: dict[str, Run], pendulum: str, utd: int
) -> None:
    clocks: list[tuple[int, int]] = []

    class Counting(Online):
        def learn(self, batch: Any, *where: int) -> Any:
            clocks.append((self.env_steps, self.updates))
            return super().learn(batch, *where)

    run = online(fit, chain, pendulum, Counting, env_steps=9, warmup_steps=4, utd=utd)
    assert clocks == [(step, (step - 5) * utd + i) for step in range(5, 10) for i in range(utd)]
    assert run.trainer.global_step == 5 * utd


def test_the_threshold_follows_its_ramp_at_every_environment_step(
    fit: Fit, chain: dict[str, Run], pendulum: str
) -> None:
    seen: dict[int, float] = {}

    class Watching(Online):
        def learn(self, batch: Any, *where: int) -> Any:
            seen[self.env_steps] = float(self.method.threshold_now)
            return super().learn(batch, *where)

    ramp = Threshold(start=0.25, end=1.0, env_steps=12)
    run = online(fit, chain, pendulum, Watching, threshold=ramp, warmup_steps=1, chunk=5, env_steps=16)
    assert float(run.start["method.threshold_now"]) == 0.25
    assert seen == {step: min(1.0, 0.25 + 0.75 * step / 12) for step in range(2, 17)}


# ---- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS[1:])
def test_the_chunk_changes_nothing_offline(fit: Fit, pendulum: str, chunk: int) -> None:
    first, second = (offline(fit, pendulum, 37, chunk=k, eval_every_updates=10) for k in (1, chunk))
    assert_same_bits(first, second)


@pytest.mark.parametrize("chunk", CHUNKS[1:])
def test_the_chunk_changes_nothing_online(fit: Fit, chain: dict[str, Run], pendulum: str, chunk: int) -> None:
    assert_same_bits(*(online(fit, chain, pendulum, chunk=k) for k in (1, chunk)))


def test_evaluating_more_often_changes_no_weight_offline(fit: Fit, pendulum: str) -> None:
    first, second = (offline(fit, pendulum, 20, eval_every_updates=every).end() for every in (0, 3))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("online_phase", [False, True])
def test_the_same_seed_gives_the_same_weights_and_metrics(
    fit: Fit, chain: dict[str, Run], pendulum: str, online_phase: bool
) -> None:
    def run(seed: int) -> Run:
        torch.randn(3)  # what was drawn before must not matter
        return online(fit, chain, pendulum, seed=seed) if online_phase else offline(fit, pendulum, 20, seed=seed)

    assert_same_bits(run(3), run(3))
    assert run(4).metrics() != run(3).metrics()


def test_the_command_line_makes_exactly_as_many_updates(o2o: Callable[..., int], pendulum: str, tmp_path: Path) -> None:
    code = o2o(
        "fit", "--phase", "offline", "--run_dir", tmp_path / "run", "--data.dataset", pendulum, "--data.batch_size", 32,
        "--data.eval_episodes", 1, "--trainer.max_steps", 37, "--model.hidden", "[16,16]",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "run" / "offline" / "summary.json").read_text())
    assert (summary["steps"], summary["env_steps"], summary["eval_env_steps"]) == (37, 0, 200)
    checkpoint = torch.load(tmp_path / "run" / "offline" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 37


@pytest.mark.parametrize(
    ("utd", "every", "moves"),
    [(1, None, [6, 8]), (3, None, [5, 6, 7, 8, 9]), (1, 1, [5, 6, 7, 8, 9]), (3, 2, [6, 8])],
    ids=["with each policy update", "once a step", "every step", "every second step"],
)
def test_the_multiplier_moves_at_most_once_an_environment_step(
    fit: Fit, chain: dict[str, Run], pendulum: str, monkeypatch: pytest.MonkeyPatch,
    utd: int, every: int | None, moves: list[int],
) -> None:  # fmt: skip
    seen: list[tuple[int, float]] = []
    descend = Descent.__call__

    def watched(self: Descent, loss: torch.Tensor, counted: bool) -> None:
        multiplier = self.phase.method.log_multiplier
        before = float(multiplier)
        descend(self, loss, counted)
        if float(multiplier) != before:
            seen.append((self.phase.env_steps, float(multiplier)))

    monkeypatch.setattr(Descent, "__call__", watched)
    online(fit, chain, pendulum, env_steps=9, warmup_steps=4, utd=utd, multiplier=Multiplier(every=every))
    assert [step for step, _ in seen] == moves


@pytest.mark.parametrize("hook", ["on_before_backward", "on_after_backward", "on_before_optimizer_step"])
def test_callbacks_are_told_of_each_pass_and_step_and_change_no_bit(
    fit: Fit, chain: dict[str, Run], pendulum: str, hook: str
) -> None:
    quiet = online(fit, chain, pendulum, env_steps=9, warmup_steps=4)
    assert not is_heard(quiet.trainer)
    told: list[int] = []

    class Listening(Online):
        pass

    setattr(Listening, hook, lambda self, *unused: told.append(self.updates))
    heard = online(fit, chain, pendulum, Listening, env_steps=9, warmup_steps=4)
    assert is_heard(heard.trainer)
    assert told == [0, 1, 1, 2, 3, 3, 4]  # TD3's policy is updated at every second
    assert quiet.trainer.global_step == heard.trainer.global_step == 5
    for name, value in quiet.module.state_dict().items():
        assert torch.equal(value, heard.module.state_dict()[name]), name
