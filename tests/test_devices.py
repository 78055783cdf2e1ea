"""Two processes: the same mathematics as one with both batches, the same weights in both, and runs that survive."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import lightning as L
import processes
import pytest
import torch
from every_phase import CASES
from tensordict import TensorDict
from test_faults import counted
from test_resume import PENDULUM

from o2o_lightning.checkpoint.run import read_config, write_config
from o2o_lightning.cli.main import main
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Draws, Moment, Normal
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.constraint import Multiplier
from o2o_lightning.phases.base import Phase
from o2o_lightning.phases.online import Online
from o2o_lightning.ranks import Ranks
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.store import TransitionStore

BATCH, UPDATES = 32, 6


# ---- the same mathematics ------------------------------------------------------------------------------------------


def share_everything(rank: int, count: int) -> None:
    """Every process takes its part of one stream of rows, noise and rollouts, whatever their number."""
    stream = torch.Generator().manual_seed(5)

    def part(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return tensor.chunk(count, dim)[rank].contiguous()

    def whole(shape: Any, dim: int) -> list[int]:
        sizes = list(shape)
        sizes[dim] *= count
        return sizes

    own_rows = TransitionStore.sample_rows

    def sample_rows(self: TransitionStore, shape: Any, generator: torch.Generator) -> torch.Tensor:
        if isinstance(shape, int):  # no batch: the states at which the alignment is measured
            return own_rows(self, shape, generator)
        return part(torch.randint(self.td_count, whole(shape, -1), generator=stream), -1)

    def numbers(self: OnlineData) -> Any:
        assert self.store is not None
        return self.store.sample_rows((self.batch_size,), stream)

    def batches(self: OnlineData, numbers: Any) -> Any:
        assert self.store is not None
        yield self.prepare(self.store.gather(numbers), torch.device("cpu"))

    def take(self: RolloutData, device: torch.device) -> Any:
        shape = (2, BATCH // 2)
        columns = {
            "observation": torch.randn(*shape, 3, generator=stream),
            "action": torch.rand(*shape, 1, generator=stream) * 2 - 1,
            "reward": torch.randn(*shape, generator=stream),
        }
        flags = {name: torch.rand(shape, generator=stream) < 0.1 for name in ("terminated", "truncated")}
        successor = {"observation": torch.randn(*shape, 3, generator=stream), **flags}
        for interaction in self.interactions:
            interaction.buffer.clear()
        rollout = TensorDict({**columns, "next": TensorDict(successor, shape)}, shape)
        return self.prepare(rollout.chunk(count)[rank].clone(), device)

    def draw(self: NoiseBlocks, wanted: Draws) -> dict[str, torch.Tensor]:
        def one(form: Any) -> torch.Tensor:
            if isinstance(form, Normal):
                return part(torch.randn(whole(form.shape, -2), generator=stream), -2)
            return part(torch.rand(whole(form.shape, -2), generator=stream), -2) * 2 - 1

        return {name: one(form) for name, form in wanted.items()}

    TransitionStore.sample_rows = sample_rows  # type: ignore[method-assign, assignment]
    OnlineData.numbers, OnlineData.batches = numbers, batches  # type: ignore[method-assign]
    RolloutData.take = take  # type: ignore[method-assign]
    NoiseBlocks.draw = draw  # type: ignore[method-assign]


def train(dataset: str, starts: Path, folder: Path, count: int) -> dict[str, Any]:
    """Every phase for some updates, by ``count`` processes that share a batch; weights and Adam's first moments."""
    found = {}
    for name, case in CASES.items():
        L.seed_everything(3, verbose=False)
        phase = case.make(str(starts / f"{case.after}.ckpt"))
        trainer = L.Trainer(
            accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto", max_epochs=1, logger=False,
            max_steps=-1 if phase.clock_name == "env_steps" else UPDATES, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(phase, datamodule=case.data(dataset, BATCH, count, UPDATES))
        optimizer = trainer.optimizers[0]
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        found[name] = {
            "weights": {key: value.clone() for key, value in phase.state_dict().items()},
            "moments": torch.cat([moment.flatten() for moment in moments]),
            "updates": phase.updates,
            "env_steps": phase.env_steps,
            "curve": phase.curve,
        }
        if count == 1:
            trainer.save_checkpoint(folder / f"{name}.ckpt")
    return found


@pytest.fixture(scope="module")
def trained(pendulum: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every phase by one process, and by two that share its batch; each starts from what one process has made."""
    killing.import_everything()
    folder = tmp_path_factory.mktemp("devices")
    starts = folder / "starts"
    starts.mkdir()

    def alone(rank: int) -> Any:
        share_everything(0, 1)
        return train(pendulum, starts, starts, 1)

    def together(rank: int) -> Any:
        share_everything(rank, 2)
        return train(pendulum, starts, folder, 2)

    first = processes.results(alone, folder / "alone", count=1)[0]
    return {"alone": first, "together": processes.results(together, folder / "together")}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_half_a_batch_each_learn_what_one_with_the_whole_learns(trained, name):
    one, two = trained["alone"][name], trained["together"][0][name]
    assert one["updates"] == two["updates"] >= UPDATES
    scale = one["moments"].abs().max()
    torch.testing.assert_close(two["moments"] / scale, one["moments"] / scale, rtol=0, atol=2e-5)
    for key, value in one["weights"].items():
        found = two["weights"][key]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("name", CASES)
def test_all_processes_end_with_the_same_bits(trained, name):
    first, second = (found[name] for found in trained["together"])
    assert first["weights"].keys() == second["weights"].keys()
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key
    assert first["env_steps"] == second["env_steps"] and first["curve"] == second["curve"]


# ---- clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_environment_step_belongs_to_one_process_and_no_process_is_left_out(count):
    made = [0] * count
    clock = 0
    for boundary in (7, 8, 9, 20, 33, 34):  # evaluations may fall anywhere
        while clock < boundary:
            round_ = min(count, boundary - clock)
            stepping = [rank for rank in range(count) if Ranks(rank, count).steps(clock, round_)]
            assert len(stepping) == round_
            for rank in stepping:
                made[rank] += 1
            clock += round_
    assert sum(made) == 34 and max(made) - min(made) <= 1


def test_the_multiplier_moves_once_a_period_whatever_number_of_steps_is_made_at_once(monkeypatch):
    phase = Online(td3.Online(multiplier=Multiplier(every=3)), "some.ckpt")
    monkeypatch.setattr(phase, "tell", lambda hook: None)
    moved = []
    for count in (2, 2, 2, 2, 1, 1, 2, 2):  # clocks 2, 4, 6, 8, 9, 10, 12, 14: 3 and 6, 9 and 12 are passed
        phase.on_env_step(count)
        for place in range(2):  # two updates for each round of steps
            moment = Moment(phase.updates, phase.env_steps, place, count)
            moved += [phase.env_steps] if phase.method.multiplier_due(moment, policy_update=False) else []
    assert moved == [4, 6, 9, 12]


def test_rollouts_that_the_processes_cannot_share_evenly_are_refused(pendulum):
    data = RolloutData(dataset=pendulum, env_steps=90, rollout=30, num_envs=1, eval_every=45)
    data.setup("fit")
    with pytest.raises(UserError, match=r"2 processes .*eval_every 45"):
        data._check_stride(2, "2 processes with 1 environments each: they do")


# ---- whole runs --------------------------------------------------------------------------------------------------

SMALL = [
    "steps.offline=24", "steps.reevaluate=16", "steps.align=16", "steps.env=96", "checkpoint_every=20",
    "--data.eval_every_updates", "0", "--data.eval_every", "48", "--data.eval_episodes", "2", "--data.batch_size", "8",
    "--data.warmup_steps", "20", "--data.rollout", "32", "--data.epochs", "2", "--trainer.log_every_n_steps", "8",
]  # fmt: skip
METHODS = {"o2td3": ["offline=td3_bc"], "o2sac": ["offline=cql"], "o2ppo": ["offline=iql"]}


def options(method: str, pendulum: str) -> list[str]:
    other = ("--data.warmup_steps",) if method == "o2ppo" else ("--data.rollout", "--data.epochs")
    kept: list[str] = []
    for name, value in zip(SMALL[5::2], SMALL[6::2], strict=True):
        kept += [] if name in other else [name, value]
    choices = [f"online={method}", *METHODS[method], *SMALL[:5]]
    return ["fit", "--phase", "all", *choices, "--data.dataset", pendulum, *kept]


def check_run(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_steps"] == 96 and summary["phase"] == "online"
    steps = [point[0] for point in summary["score"]["curve"]]
    assert steps == [0, 48, 96] and summary["eval_env_steps"] >= 3 * 2
    rows = (folder / "online/metrics.csv").read_text().splitlines()
    evaluations = [row for row in rows[1:] if row.split(",")[rows[0].split(",").index("return_mean")]]
    assert len(evaluations) == 3  # one process writes, once
    checkpoint = torch.load(folder / "online/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["o2o_progress"]["env_steps"] == 96
    sides = list((folder / "online/checkpoints").glob("last.*.state/*"))
    assert sorted(side.name for side in sides) == ["rank-0.pt", "rank-1.pt"]
    states = [torch.load(side, weights_only=True)["data"] for side in sides]
    interactions = [state.get("interaction") or state["interactions"][0] for state in states]
    assert [found["counters"][3] for found in interactions] == [48, 48]  # each has made half of the steps
    assert not torch.equal(*(found["observation"] for found in interactions))  # in an environment of its own


@pytest.mark.parametrize("method", ["o2sac", "o2ppo"])
def test_the_whole_pipeline_runs_on_two_processes_started_from_outside(method, pendulum, tmp_path):
    killing.import_everything()
    log = tmp_path / "log"
    argv = [*options(method, pendulum), *processes.DDP, "--run_dir", str(tmp_path / "run")]
    assert processes.pair(argv, log) == [0, 0], log.read_text()
    check_run(tmp_path / "run")
    assert log.read_text().count("online: done") == 1


def test_the_whole_pipeline_runs_on_two_forked_processes(pendulum, tmp_path):
    killing.import_everything()
    log = tmp_path / "log"
    fork = [*processes.DDP[:-1], "ddp_fork"]
    argv = [*options("o2td3", pendulum), *fork, "--run_dir", str(tmp_path / "run")]
    assert killing.run(argv, log) == 0, log.read_text()
    check_run(tmp_path / "run")


def test_lightning_starts_the_second_process_itself_and_a_relative_directory_is_the_same_for_both(tmp_path):
    argv = [*PENDULUM, "online=td3", *processes.DDP, "--run_dir", "run"]
    command = [sys.executable, "-m", "o2o_lightning.cli.main", *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["env_steps"] == 70


# ---- what may happen ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes."""
    killing.import_everything()
    folder = tmp_path_factory.mktemp("reference") / "run"
    log = folder.parent / "log"
    argv = [*PENDULUM, "online=td3", *processes.DDP, "--run_dir", str(folder)]
    assert processes.pair(argv, log) == [0, 0], log.read_text()
    return folder


def survives(
    reference: Path, tmp_path: Path, prepare: Callable[[int], None], codes: list[int], *words: str
) -> list[str]:
    """Fails as told, leaves the checkpoint at 20 or 40, and ends with the bits of ``reference`` when resumed."""
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*PENDULUM, "online=td3", *processes.DDP, "--run_dir", str(folder)]
    assert processes.pair(argv, log, prepare) == codes, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("o2o: ")]
    assert all(any(word in line for line in lines) for word in words), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    left = sorted(path.name for path in (folder / "online").iterdir())
    assert processes.pair(["resume", str(folder)], log) == [0, 0], log.read_text()
    assert killing.differences(reference, folder, ["online"]) == []
    return left


def test_an_evaluation_in_the_background_is_made_by_one_process_for_all(reference, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    argv = [*PENDULUM, "online=td3", *processes.DDP, "--data.eval_async", "true", "--run_dir", str(folder)]
    assert processes.pair(argv, log) == [0, 0], log.read_text()
    curves = [json.loads((run / "summary.json").read_text())["score"]["curve"] for run in (reference, folder)]
    assert curves[0] == curves[1] and [point[0] for point in curves[1]] == [0, 40, 70]


def test_a_process_that_is_killed_ends_the_run_and_both_go_on_with_the_same_bits(reference, tmp_path):
    def prepare(rank: int) -> None:
        if rank == 1:
            killing.die_at("env_step", 27)()

    survives(reference, tmp_path, prepare, [1, -9], "another process of this run has ended")


def test_a_loss_that_is_not_finite_in_one_process_stops_both_before_the_step(reference, tmp_path):
    def prepare(rank: int) -> None:
        import o2o_lightning.methods.td3 as module
        from o2o_lightning.engine.health import ChunkRecord

        target, check, calls = module.td_target, ChunkRecord.check, [0]

        def spoiled(*args: Any) -> torch.Tensor:
            calls[0] += 1
            return target(*args) * (float("nan") if rank == 1 and calls[0] == 13 else 1.0)

        def looked(self: ChunkRecord) -> None:
            try:
                check(self)
            except Exception:
                import gc

                # by type: a proxy of a phase claims its class, and may be dead
                phases = [found for found in gc.get_objects() if issubclass(type(found), Phase)]
                # earlier tests of this process may have left theirs behind
                made = [found for found in phases if hasattr(found, "descent")]
                (phase,) = (found for found in made if found.descent.record is self)
                assert phase.updates == 12
                assert all(bool(torch.isfinite(value).all()) for value in phase.parameters())
                raise

        module.td_target = spoiled
        ChunkRecord.check = looked  # type: ignore[method-assign]

    words = ("update 13: critic_loss, target: not finite", "update 13: the loss of another process")
    left = survives(reference, tmp_path, prepare, [1, 1], *words)
    assert "failed_batch.rank-1.pt" in left and "failed_batch.pt" not in left


def test_a_failure_in_a_forked_process_is_one_line_and_its_run_goes_on(tmp_path):
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    killing.import_everything()
    folder, log = tmp_path / "run", tmp_path / "log"

    def crash(*_: Any) -> None:
        raise RuntimeError("the gripper is stuck")

    prepare = counted(Interaction, "step", 24, lambda: setattr(PendulumEnv, "step", crash))
    fork = [*processes.DDP[:-1], "ddp_fork"]
    argv = [*PENDULUM, "online=td3", *fork, "--run_dir", str(folder)]
    assert killing.run(argv, log, prepare) == 1, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("o2o: ")]
    assert len(lines) == 1 and "the gripper is stuck" in lines[0] and "Traceback" not in log.read_text()
    last = torch.load(folder / "online/checkpoints/last.ckpt", weights_only=True)
    assert last["o2o_progress"]["env_steps"] == 40
    assert killing.run(["resume", str(folder)], log) == 0, log.read_text()
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 70


def test_another_number_of_processes_is_refused(reference, tmp_path, capsys, monkeypatch):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    (folder / "online/summary.json").unlink()
    config = folder / "online/config.yaml"
    text = read_config(config)
    write_config(config, text.replace("devices: '2'", "devices: 1").replace("devices: 2", "devices: 1"))
    monkeypatch.setenv("O2O_RUN_DIR", "")
    assert main(["resume", str(folder)]) == 2
    assert "2 process(es) made it, now there are 1" in capsys.readouterr().err


@pytest.mark.parametrize("wrong, words", [
    (["--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu"], "strategy"),
    (["--trainer.strategy", "ddp_spawn"], "can't be sent to a process. Pass ddp."),
    (["--trainer.precision", "64-true"], "--trainer.precision 64-true: one of 32-true, bf16-mixed, 16-mixed"),
])  # fmt: skip
def test_hardware_that_a_phase_cannot_use_is_refused_in_one_line(wrong, words, tmp_path, capsys):
    assert main([*PENDULUM, "online=td3", *wrong, "--run_dir", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_several_processes_without_a_common_directory_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("O2O_RUN_DIR", raising=False)
    assert main([*PENDULUM, "online=td3", *processes.DDP]) == 2
    assert "Name one directory for all" in capsys.readouterr().err
