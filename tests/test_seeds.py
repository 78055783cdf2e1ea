"""Several seeds in one process: each as its own run, none of which meets another."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from every_method import METHODS, batches, built, noises, optimizer_of
from tensordict import TensorDict

from o2o_lightning.checkpoint.run import read_plan
from o2o_lightning.cli.main import main
from o2o_lightning.engine.engine import Ask, Engine, Update
from o2o_lightning.engine.lanes import Lane, Lanes
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.methods.method import Moment
from o2o_lightning.phases.base import Phase
from o2o_lightning.seeds import noise_seed
from o2o_lightning.turns import Turns

COUNTS = [
    "steps.offline=12", "steps.clone=8", "steps.reevaluate=8", "steps.align=8", "steps.env=24", "checkpoint_every=6",
    "--data.eval_every_updates", "10", "--data.eval_every", "16", "--data.eval_episodes", "1",
    "--trainer.log_every_n_steps", "1", "--data.chunk", "4", "--data.batch_size", "8",
]  # fmt: skip
REPLAY, ROLLOUT = ["--data.warmup_steps", "12"], ["--data.rollout", "8", "--data.epochs", "2"]
SMALL, BOTH = ["--model.hidden", "[8,8]"], ["--model.hidden", "[8,8]", "--model.critic_hidden", "[8,8]"]
WINDOWS = [f"--model.{name}={n}" for name, n in {"context": 4, "acting_context": 4, "width": 8, "layers": 1}.items()]
RUNS = {
    "o2td3 after td3_bc": ["--phase", "all", "offline=td3_bc", "online=o2td3", *REPLAY, *SMALL],
    "o2sac after cql": ["--phase", "all", "offline=cql", "online=o2sac", *REPLAY, *BOTH],
    "o2ppo after iql": ["--phase", "all", "offline=iql", "online=o2ppo", *ROLLOUT],
    "cal_ql": ["--phase", "all", "offline=cal_ql", "online=cal_ql", *REPLAY, *BOTH],
    "a clone": ["--phase", "all", "phases=[offline,clone]", "online=o2sac", "--clone.model.check_every=4"],
    "td3 after td3_bc": ["--phase", "all", "phases=[offline,online]", "online=td3", *REPLAY, *SMALL],
    "only offline phases": ["--phase", "all", "phases=[offline,reevaluate]", *SMALL],
    "td3 from scratch": ["--phase", "all", "online=td3", "experiment=scratch", *REPLAY, *SMALL],
    "ppo": ["--phase", "all", "phases=[offline,online]", "offline=bc", "online=ppo", *ROLLOUT],
    "awac": ["--phase", "offline", "offline=awac"],
    "dt": ["--phase", "offline", "offline=dt", "--model.dropout=0", *WINDOWS],
    "odt": ["--phase", "offline", "offline=odt", "--model.heads=2", "--model.dropout=0", *WINDOWS],
    "dt with dropout": ["--phase", "offline", "offline=dt", *WINDOWS],
}

FURTHER = ("cal_ql", "ppo", "td3 from scratch", "td3 after td3_bc", "only offline phases")


def fit(name: str, dataset: str, folder: Path, *more: str) -> list[str]:
    counts = [*COUNTS, *(() if "--phase all" in " ".join(RUNS[name]) else ("--trainer.max_steps", "12"))]
    return ["fit", *RUNS[name], "--data.dataset", dataset, *counts, "--run_dir", str(folder), *more]


def phases_of(folder: Path) -> list[str]:
    found: list[str] = read_plan(folder)[0]["phases"]
    return found


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


# ---- as a run of its own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in FURTHER else []) for name in RUNS]
)
def test_a_seed_beside_another_follows_its_own_run_but_for_rounding(name: str, pendulum: str, tmp_path: Path) -> None:
    both, own = tmp_path / "both", tmp_path / "own"
    assert main(fit(name, pendulum, both, "seeds=[3,7]")) == 0
    assert main(fit(name, pendulum, own, "--seed_everything", "3")) == 0
    found = both / "seed-3"
    assert {str(path.relative_to(found)) for path in found.rglob("*") if ".state" not in str(path)} == {
        str(path.relative_to(own)) for path in own.rglob("*") if ".state" not in str(path)
    }
    for phase in phases_of(own):
        assert (found / phase / "config.yaml").read_text() == (own / phase / "config.yaml").read_text()
        for a, b in zip(rows(found / phase / "metrics.csv"), rows(own / phase / "metrics.csv"), strict=True):
            assert {key for key, value in a.items() if value} == {key for key, value in b.items() if value}
            for key in (key for key, value in a.items() if value):
                assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4, abs=1e-5), (phase, key)
        a, b = (torch.load(f / phase / "checkpoints/last.ckpt", weights_only=True) for f in (found, own))
        for key, value in b["state_dict"].items():
            torch.testing.assert_close(a["state_dict"][key], value, rtol=1e-5, atol=1e-6, msg=f"{phase} {key}")
        assert a["o2o_progress"]["updates"] == b["o2o_progress"]["updates"]
        smaller = (own / phase / "checkpoints/last.ckpt").stat().st_size
        assert (found / phase / "checkpoints/last.ckpt").stat().st_size <= smaller + 2000  # no other seed's networks
    other = torch.load(both / "seed-7" / phase / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(other[key], value) for key, value in b["state_dict"].items())


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seeds of the whole pipeline on Hopper."""
    folder = tmp_path_factory.mktemp("four") / "run"
    argv = ["fit", "--phase", "all", *COUNTS, *REPLAY, *SMALL, "--run_dir", str(folder), "seeds=4"]
    assert main(argv) == 0
    return folder


def test_the_run_directory_names_its_seeds_with_the_mean_of_their_scores(four: Path) -> None:
    summary = json.loads((four / "summary.json").read_text())
    own = [json.loads((four / f"seed-{i}/summary.json").read_text()) for i in range(4)]
    assert summary["seeds"] == [one["seed"] for one in own] == [0, 1, 2, 3]
    finals = [one["score"]["final"] for one in own]
    assert summary["score"]["final"] == pytest.approx(np.mean(finals))
    assert summary["score_sd"]["final"] == pytest.approx(np.std(finals, ddof=1))
    assert (summary["env_id"], summary["phase"], summary["env_steps"]) == ("Hopper-v5", "online", 24)


def test_a_seeds_folder_is_taken_where_a_runs_is(four: Path, tmp_path: Path) -> None:
    policy = str(four / "seed-2/online/checkpoints/last.ckpt")
    assert main(["test", "--ckpt_path", policy, "--data.eval_episodes", "1", "--run_dir", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "test.json").read_text())["checkpoint"] == policy
    assert main(["policy", "export", policy, "--out", str(tmp_path / "policy.pt2")]) == 0
    shutil.copytree(four / "seed-2", tmp_path / "alone")
    assert main(["resume", str(tmp_path / "alone"), "--data.env_steps", "30"]) == 0
    assert json.loads((tmp_path / "alone/summary.json").read_text())["env_steps"] == 30


def test_each_seed_starts_from_its_own_checkpoint_or_all_from_one(four: Path, tmp_path: Path) -> None:
    argv = ["fit", "--phase", "align", *COUNTS, *SMALL[2:], "--trainer.max_steps", "1", "seeds=[1,3]"]
    for name, start in {"own": "seed-$SEED", "one": "seed-0"}.items():
        at = str(four / start / "reevaluate/checkpoints/last.ckpt")
        assert main([*argv, "--model.init_from", at, "--run_dir", str(tmp_path / name)]) == 0
        for seed in (1, 3):
            expected = four / start.replace("$SEED", str(seed)) / "reevaluate/checkpoints/last.ckpt"
            found = tmp_path / name / f"seed-{seed}/align/checkpoints/last.ckpt"
            a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (found, expected))
            policy = {key: value for key, value in b.items() if key.startswith("method.actor.")}
            assert policy
            for key, value in policy.items():
                assert torch.equal(a[key.replace("actor", "offline_actor")], value)


# ---- none meets another ------------------------------------------------------------------------------------------


def updates(engine: Engine, optimizer: torch.optim.Optimizer, given: list[Any], drawn: list[Any]) -> Update:
    """Two updates as a phase makes them."""
    for k, (batch, noise) in enumerate(zip(given, drawn, strict=True)):
        for step in engine.steps(Moment(k, env_steps=3, place=k)):
            loss = yield Ask(step, TensorDict(batch, batch_size=[16]), noise)
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            optimizer.step()
            engine.settle(loss)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dt", "odt")])
def test_a_lanes_bits_do_not_depend_on_who_is_beside_it(name: str) -> None:
    torch.manual_seed(0)
    probe = built(name)
    given = [[batches(probe) for _ in range(2)] for _ in range(4)]
    drawn = [[noises(probe) for _ in range(2)] for _ in range(4)]
    ends = []
    for beside, spoilt in (((0, 1, 2), None), ((1,), None), ((1, 2), 2)):
        lanes = Lanes(3)
        methods = {place: built(name, place if place == 1 else place + len(beside)) for place in beside}

        def job(place: int) -> None:
            engine = Lane(lanes, place).engine(methods[place])  # noqa: B023
            mine = given[place] if place == 1 else given[3]
            if place == spoilt:  # noqa: B023
                methods[place].actor.load_state_dict(  # noqa: B023
                    {key: value * torch.nan for key, value in methods[place].actor.state_dict().items()}  # noqa: B023
                )
            engine.run(updates(engine, optimizer_of(methods[place]), mine, drawn[place]), 0)  # noqa: B023

        errors = lanes.turns.run({place: lambda place=place: job(place) for place in beside})  # type: ignore[misc]
        assert not errors
        ends.append({key: value.clone() for key, value in methods[1].state_dict().items()})
    plain = built(name, 1)
    engine = Engine(plain)
    engine.run(updates(engine, optimizer_of(plain), given[1], drawn[1]), 0)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ends[0][key], value, rtol=1e-6, atol=1e-6, msg=key)
        assert torch.equal(ends[0][key], ends[1][key]) and torch.equal(ends[0][key], ends[2][key]), key


def test_threads_that_take_turns_each_see_global_streams_of_their_own() -> None:
    def draws(seed: int, rest: Callable[[], None]) -> list[float]:
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        os.environ["PL_GLOBAL_SEED"] = str(seed)
        found = []
        for _ in range(3):
            found += [random.random(), np.random.rand(), float(torch.rand(())), noise_seed(0)]
            rest()
        return found

    turns = Turns(lambda waiting: waiting.clear())
    together: dict[int, list[float]] = {}
    before = random.getstate()
    errors = turns.run({
        place: lambda place=place: together.update({place: draws(place, lambda: turns.meet(place, None))})  # type: ignore[misc]
        for place in range(3)
    })  # fmt: skip
    assert not errors and random.getstate() == before
    assert together == {place: draws(place, lambda: None) for place in range(3)}


# ---- a seed that fails -------------------------------------------------------------------------------------------


def spoil_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seed 2's eighth update."""
    learn = Phase.learn

    def spoiled(self: Phase, batch: Any, *where: int) -> Update:
        if self.phase == "offline" and self.updates == 7 and self.noise.generator.initial_seed() == 2 * 1009 + 1:
            batch["reward"][0] = torch.nan
        return learn(self, batch, *where)

    monkeypatch.setattr(Phase, "learn", spoiled)


def spoil_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seed 2's eighth update: one that is made together with those of the other seeds."""
    draw, left = NoiseBlocks.draw_many, [8]

    def spoiled(self: NoiseBlocks, wanted: Any, count: int) -> dict[str, torch.Tensor]:
        found = draw(self, wanted, count)
        if self.generator.initial_seed() == 2 * 1009 + 1:
            if 0 < left[0] <= count:
                found = {name: noise.clone() for name, noise in found.items()}
                for noise in found.values():
                    noise[left[0] - 1] = torch.nan
            left[0] -= count
        return found

    monkeypatch.setattr(NoiseBlocks, "draw_many", spoiled)


@pytest.mark.parametrize("spoil, compiled, wrong", [
    (spoil_a_batch, "false", "batch['reward'], "),
    (spoil_the_noise, "auto", "critic_loss, target"),
], ids=["step by step", "recorded"])  # fmt: skip
def test_a_seed_whose_loss_is_not_finite_stops_alone_and_is_named(
    spoil: Any, compiled: str, wrong: str,
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name, more = "only offline phases", ["seeds=4", "--model.compile", compiled]
    assert main(fit(name, pendulum, tmp_path / "sound", *more)) == 0
    spoil(monkeypatch)
    capsys.readouterr()
    assert main(fit(name, pendulum, tmp_path / "one", *more)) == 1
    said = capsys.readouterr().err
    assert f"o2o: 1 of 4 seeds stopped. Seed 2: phase offline, update 8: {wrong}" in said
    assert (tmp_path / "one/seed-2/offline/failed_batch.pt").exists()
    assert not (tmp_path / "one/seed-2/reevaluate").exists()
    for seed in (0, 1, 3):
        phases = phases_of(tmp_path / "sound")
        assert killing.differences(tmp_path / f"sound/seed-{seed}", tmp_path / f"one/seed-{seed}", phases) == []
    assert json.loads((tmp_path / "one/summary.json").read_text())["seeds"] == [0, 1, 3]
    monkeypatch.undo()  # whatever it was has gone: the seed goes on, and comes to the end that it would have had
    assert main(["resume", str(tmp_path / "one")]) == 0
    assert killing.differences(tmp_path / "sound/seed-2", tmp_path / "one/seed-2", phases) == []


def test_recorded_updates_have_the_bits_of_those_that_are_made_loss_by_loss(pendulum: str, tmp_path: Path) -> None:
    name, log = "o2td3 after td3_bc", tmp_path / "log"
    killing.import_everything()
    for way in ("auto", "false"):
        argv = fit(name, pendulum, tmp_path / way, "seeds=[5,2]", "--model.compile", way)
        assert killing.run(argv, log) == 0, log.read_text()
    assert log.read_text().count("the updates of all seeds are recorded and replayed together") == 4  # phases
    for seed in (5, 2):
        folders = [tmp_path / way / f"seed-{seed}" for way in ("auto", "false")]
        assert killing.numbers_that_differ(*folders, phases_of(tmp_path / "auto")) == []


# ---- killed and resumed ------------------------------------------------------------------------------------------

KILLED = {
    "td3 after td3_bc": [("replace", 23), ("env_step", 40)],
    "o2td3 after td3_bc": [("replace", 30), ("env_step", 40)],
    "o2sac after cql": [("write", 900), ("step", 41)],
    "o2ppo after iql": [("env_step", 30), ("replace", 45)],
}


@pytest.mark.parametrize("name, events", [
    pytest.param(name, events, marks=[] if name.startswith("td3") else pytest.mark.slow)
    for name, events in KILLED.items()
])  # fmt: skip
def test_seeds_that_are_killed_together_end_with_the_same_bits(
    name: str, events: list[tuple[str, int]], pendulum: str, tmp_path: Path
) -> None:
    killing.import_everything()
    expected, log = tmp_path / "expected", tmp_path / "log"
    assert killing.run(fit(name, pendulum, expected, "seeds=[5,2]"), log) == 0, log.read_text()
    for event, count in events:
        found = tmp_path / event
        code = killing.run(fit(name, pendulum, found, "seeds=[5,2]"), log, killing.die_at(event, count))
        assert code == -9, log.read_text()
        assert killing.run(["resume", str(found)], log) == 0, log.read_text()
        for seed in (5, 2):
            wrong = killing.differences(expected / f"seed-{seed}", found / f"seed-{seed}", phases_of(expected))
            assert wrong == [], f"{event} {count}, seed {seed}"


def test_a_signal_stops_all_seeds_in_good_order(pendulum: str, tmp_path: Path) -> None:
    killing.import_everything()

    def interrupt() -> None:
        learn, left = Phase.learn, [9]

        def counted(self: Phase, *of: Any) -> Update:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 2)
            return learn(self, *of)

        Phase.learn = counted  # type: ignore[method-assign]

    name, found, log = "awac", tmp_path / "found", tmp_path / "log"
    assert killing.run(fit(name, pendulum, found, "seeds=2"), log, interrupt) == 130, log.read_text()
    assert f"SIGINT: all seeds stopped and saved. Go on with `o2o resume {found}`." in log.read_text()
    assert killing.run(["resume", str(found)], log) == 0, log.read_text()
    assert killing.run(fit(name, pendulum, tmp_path / "expected", "seeds=2"), log) == 0
    for seed in (0, 1):
        assert killing.differences(tmp_path / f"expected/seed-{seed}", found / f"seed-{seed}", ["offline"]) == []


def test_a_seed_that_ends_leaves_the_others_products_as_they_are(
    pendulum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, list[str]] = {}
    learn = Phase.learn

    def watched(self: Phase, *args: Any, **more: Any) -> Update:
        assert self.lane is not None
        found.setdefault(self.lane.place, []).append(torch.get_float32_matmul_precision())
        self.trainer.should_stop = self.lane.place == 0 and self.updates >= 4  # type: ignore[misc]
        return learn(self, *args, **more)

    monkeypatch.setattr(Phase, "learn", watched)
    more = ["seeds=2", "--model.products", "high", "--model.compile", "false"]
    assert main(fit("awac", pendulum, tmp_path / "run", *more)) == 0
    assert len(found[0]) < len(found[1]) and {*found[0], *found[1]} == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


# ---- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, said", [
    (["seeds=0"], "at least one seed"),
    (["seeds=[1,1]"], "each once"),
    (["seeds=many"], "a number of seeds"),
    (["seeds=true"], "a number of seeds"),
    (["seeds=[1,-2]"], "a number of seeds"),
    (["seeds=2", "--seed_everything", "3"], "names the seeds already"),
    (["seeds=2", "--model.compile", "true"], "is for one seed"),
    (["seeds=2", "--trainer.precision", "bf16-mixed"], "has not been shown to hold"),
    (["seeds=2", "--trainer.devices", "2"], "one process on one device"),
    (["seeds=2", "--data.dataset", "nowhere.hdf5"], "nowhere.hdf5"),
])  # fmt: skip
def test_what_seeds_can_not_have_is_refused_in_one_line_and_leaves_nothing(
    given: list[str], said: str, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit("awac", pendulum, tmp_path / "run", *given)) == 2
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and error.count("o2o: ") == 1
    assert [*tmp_path.iterdir()] == []


def test_rows_without_returns_begin_no_online_buffer_that_needs_them(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit("cal_ql", pendulum, tmp_path / "run", "phases=[online]", "--online.data.seeds=10")) == 2
    assert "--data.seeds 10: cal_ql needs each row's return" in capsys.readouterr().err


def test_a_directory_of_several_seeds_takes_no_other_run(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["seeds=2"]):
        argv = ["fit", "--phase", "offline", "--trainer.max_steps", "2", "--run_dir", str(four), *more]
        assert main(argv) == 2
        assert "it holds a run of seeds=[0,1,2,3]. Pass another --run_dir." in capsys.readouterr().err
