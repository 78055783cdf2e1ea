"""Evaluations in a second process: the curve, the best policy and the bits are those of evaluations in line."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killing
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit

from o2o_lightning import child
from o2o_lightning.callbacks import worker
from o2o_lightning.callbacks.worker import EvaluationWorker, Snapshot
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.envs.episodes import Evaluator
from o2o_lightning.errors import Failure
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.nn.actors import build_policy
from o2o_lightning.nn.decision_transformer import SequenceSpec
from o2o_lightning.nn.normalizer import Normalizer
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.online import Online
from o2o_lightning.policies.history import player_of


def policy() -> Snapshot:
    torch.manual_seed(0)
    return Snapshot.of(DeterministicActor(3, 1, (8, 8)), Normalizer(torch.ones(3), torch.full((3,), 2.0)))


def pendulum_evaluator() -> Evaluator:
    return Evaluator("Pendulum-v1", 3, 2, 1000, (-1500.0, 0.0))


def no_evaluator() -> Evaluator:
    raise RuntimeError("the simulator is not there")


@pytest.fixture
def serve() -> Any:
    """``serve(make)`` is the worker's loop in a thread: what it does, without the seconds that a process takes."""

    def start(make: Any) -> Any:
        here, there = multiprocessing.Pipe()
        found = EvaluationWorker(make)
        found._child = SimpleNamespace(connection=here, answer=here.recv)
        given = (worker.serve, there, make, worker.arithmetic())
        threading.Thread(target=child._live, args=given, daemon=True).start()
        return found

    return start


def test_the_second_process_runs_the_same_episodes(serve: Any) -> None:
    remote = serve(pendulum_evaluator)
    remote.submit(policy())
    found, expected = remote.result(), pendulum_evaluator().run(policy().player())
    assert found == expected and len(found.returns) == 2 and found.score is not None
    remote.submit(policy())
    assert remote.result() == expected


def test_a_snapshot_is_the_policy_of_its_moment() -> None:
    actor = DeterministicActor(3, 1, (8, 8))
    normalizer = Normalizer(torch.ones(3), torch.full((3,), 2.0))
    snapshot, states = Snapshot.of(actor, normalizer), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    before = actor.act(normalizer.numpy(states))
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    player = snapshot.player()
    player.reset(4)
    assert np.array_equal(player.act(states, range(4)), before) and np.abs(before).max() > 0


def test_a_snapshot_of_a_sequence_policy_remembers_its_episodes_as_well() -> None:
    torch.manual_seed(0)
    spec = SequenceSpec("decision_transformer", 3, 1, 16, 1, 2, 0.1, 4, 4, 20, 0.1, 5.0)
    policy, normalizer = build_policy(spec.to_dict()), Normalizer(torch.ones(3), torch.full((3,), 2.0))
    players = [player_of(policy, normalizer), Snapshot.of(policy, normalizer).player()]
    states, actions = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32), []
    for player in players:
        player.reset(2)
        actions.append([])
        for state in states:
            actions[-1].append(player.act(state, range(2)))
            player.observe(np.ones(2, np.float32), range(2))
    assert np.array_equal(*actions) and np.ptp(actions[0]) > 0


def test_what_fails_over_there_is_one_line_here(serve: Any) -> None:
    remote = serve(no_evaluator)
    remote.submit(policy())
    with pytest.raises(Failure, match="an evaluation raised RuntimeError: the simulator is not there"):
        remote.result()


def test_a_second_process_that_is_killed_is_one_line() -> None:
    remote = EvaluationWorker(pendulum_evaluator)
    remote.submit(policy())
    os.kill(remote._child.process.pid, signal.SIGKILL)
    with pytest.raises(Failure, match=r"the evaluation process ended unexpectedly \(exit code -9"):
        remote.result()
    remote.close()


def test_a_signal_to_all_processes_of_a_job_leaves_the_evaluation_to_training() -> None:
    remote = EvaluationWorker(pendulum_evaluator)
    remote.submit(policy())
    for number in (signal.SIGTERM, signal.SIGINT):  # it has not even imported what it needs
        os.kill(remote._child.process.pid, number)
    assert remote.result() == pendulum_evaluator().run(policy().player())
    process = remote._child.process
    remote.close()
    assert process.exitcode == -signal.SIGKILL
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_online_results_have_their_own_step_and_training_is_the_same(fit: Fit, chain, pendulum, monkeypatch) -> None:
    # in line, but asked for late: what is left to test is when results are recorded
    monkeypatch.setattr(EvaluationWorker, "submit", lambda self, policy: setattr(self, "policy", policy))
    monkeypatch.setattr(EvaluationWorker, "result", lambda self: self.make().run(self.policy.player()))
    runs = [
        fit(
            lambda: Online(td3.Online(reference=Reference(mode="interval", period=9)), str(chain["align"].checkpoint)),
            lambda eval_async=eval_async: OnlineData(
                dataset=pendulum, env_steps=23, warmup_steps=4, batch_size=32, eval_every=7, eval_episodes=1,
                eval_async=eval_async,
            ),
        )
        for eval_async in (False, True)
    ]  # fmt: skip
    assert runs[0].module.curve == runs[1].module.curve
    assert [point[0] for point in runs[1].module.curve] == [0, 7, 14, 21, 23]
    assert runs[0].module.eval_env_steps == runs[1].module.eval_env_steps
    one, two = (run.end() for run in runs)
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    rows = [sorted(run.metrics().decode().splitlines()) for run in runs]
    assert rows[0] == rows[1]


def test_the_best_reference_policy_waits_for_each_score(fit: Fit, chain, pendulum, monkeypatch) -> None:
    monkeypatch.setattr(EvaluationWorker, "submit", lambda *_: pytest.fail("left to the background"))
    data = partial(OnlineData, env_steps=9, warmup_steps=4, batch_size=32, eval_every=4, eval_episodes=1)
    run = fit(
        lambda: Online(td3.Online(), str(chain["align"].checkpoint)), lambda: data(dataset=pendulum, eval_async=True)
    )
    assert [point[0] for point in run.module.curve] == [0, 4, 8, 9]


LINE = [
    "fit", "--phase", "offline", "--trainer.max_steps", "60", "checkpoint_every=20", "--model.hidden", "[16,16]",
    "--data.batch_size", "32", "--data.eval_episodes", "1", "--data.eval_every_updates", "15",
    "--trainer.log_every_n_steps", "10",
]  # fmt: skip


def test_a_run_with_a_second_process_ends_as_one_without_also_when_it_was_killed(pendulum, tmp_path: Path) -> None:
    killing.import_everything()
    log, line = tmp_path / "log", [*LINE, "--data.dataset", pendulum]
    folders = {name: tmp_path / name for name in ("inline", "whole", "killed")}
    assert killing.run([*line, "--run_dir", str(folders["inline"])], log) == 0, log.read_text()
    line += ["--data.eval_async", "true"]
    assert killing.run([*line, "--run_dir", str(folders["whole"])], log) == 0, log.read_text()
    start = [*line, "--run_dir", str(folders["killed"])]
    assert killing.run(start, log, killing.die_at("update", 65)) == -9, log.read_text()  # TD3+BC: 1.5 losses an update
    assert killing.run(["resume", str(folders["killed"])], log) == 0, log.read_text()
    assert killing.differences(folders["whole"], folders["killed"], ["offline"]) == []
    scores = [json.loads((folder / "offline/summary.json").read_text())["score"] for folder in folders.values()]
    assert scores[0] == scores[1] == scores[2] and [point[0] for point in scores[0]["curve"]] == [15, 30, 45, 60]
    best = [torch.load(folder / "offline/checkpoints/best.ckpt", weights_only=True) for folder in folders.values()]
    for name, value in best[0]["state_dict"].items():
        assert torch.equal(value, best[1]["state_dict"][name]) and torch.equal(value, best[2]["state_dict"][name])
    assert not list(folders["killed"].rglob("candidate*"))


def test_a_phase_from_the_dataset_alone_may_use_it(fit: Fit, pendulum, monkeypatch) -> None:
    monkeypatch.setattr(EvaluationWorker, "submit", lambda self, policy: setattr(self, "policy", policy))
    monkeypatch.setattr(EvaluationWorker, "result", lambda self: self.make().run(self.policy.player()))
    make = lambda eval_async: OfflineData(  # noqa: E731
        dataset=pendulum, batch_size=32, eval_episodes=1, eval_every_updates=5, eval_async=eval_async
    )
    runs = [fit(lambda: Offline(TD3BC(hidden=HIDDEN)), lambda on=on: make(on), 18) for on in (False, True)]
    assert runs[0].module.curve == runs[1].module.curve and len(runs[0].module.curve) == 4
