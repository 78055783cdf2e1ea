"""Captured updates on a GPU: what ``test_captured.py`` shows of recordings on a CPU, of CUDA graphs."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import every_method
import killing
import lightning as L
import pytest
import torch
from every_method import METHODS, batches, built, noises, optimizer_of
from every_phase import CASES, SEQUENCES
from test_captured import PHASES, RECORD
from test_engine import SEEDS, each, one_by_one, replayed
from test_resume import PENDULUM, PIPELINES, SIZES

from o2o_lightning.engine.captured import Captured, Piece, parts_of
from o2o_lightning.engine.engine import Engine
from o2o_lightning.engine.record import CannotRecord, CudaGraphs
from o2o_lightning.engine.stacked import StackedEngine, joined
from o2o_lightning.engine.whole import WholeUpdates, order_of
from o2o_lightning.errors import Failure
from o2o_lightning.methods.method import Moment
from o2o_lightning.nn.critics import lay_ensembles_side_by_side
from o2o_lightning.phases.base import Phase

pytestmark = pytest.mark.gpu
ALL = {**CASES, **SEQUENCES}
UPDATES, BATCH, K = 22, 32, 4
MOMENTS = [Moment(i, env_steps=3, place=i) for i in range(K)]
GPU = ["--trainer.accelerator", "gpu"]
TESTS = Path(__file__).parent


# ---- every rule, every phase ---------------------------------------------------------------------------------------


def there(parts: Any) -> dict[Any, torch.Tensor]:
    return {name: part.to("cuda") for name, part in parts.items()}


@pytest.mark.parametrize("name", METHODS)
def test_captured_updates_of_every_rule_are_the_eager_ones(name: str) -> None:
    eager, method = built(name).to("cuda"), built(name).to("cuda")
    lay_ensembles_side_by_side(method)
    plain = WholeUpdates(Engine(eager), {0: (eager, optimizer_of(eager))})
    captured = Captured(WholeUpdates(Engine(method), {0: (method, optimizer_of(method))}), CudaGraphs())
    for _ in range(3):
        given, drawn = each(there(batches(method, K))), there(noises(method, K))
        rows = replayed(captured, given, drawn)
        names = [group["name"] for group in plain.learners[0][1].param_groups]
        usual = {key: rate for key, (_, rate) in eager.learners().items()}
        rates = [
            {key: torch.tensor(value, device="cuda") for key, value in
             ({name: eager.rates(moment).get(name, usual[name]) for name in names} | eager.schedules(moment)).items()}
            for moment in MOMENTS
        ]  # fmt: skip
        for row, expected in zip(rows, plain(MOMENTS, given, parts_of(drawn, K), rates), strict=True):
            for key, value in expected.items():
                torch.testing.assert_close(row[key], value, rtol=1e-5, atol=1e-6, msg=lambda text, k=key: k + text)
    assert captured.count == 1 and int(captured.made()) == 3 * K
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(method.state_dict()[key], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def starts(pendulum: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    for name in ALL:
        train(name, pendulum, folder, False, save=True)
    return folder


def train(name: str, dataset: str, starts: Path, how: Any, save: bool = False, **options: Any) -> Phase:
    case = ALL[name]
    L.seed_everything(3, verbose=False)
    phase = case.make(str(starts / f"{case.after}.ckpt"))
    phase.compiling = how
    trainer = L.Trainer(
        accelerator="gpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, log_every_n_steps=10,
        max_steps=-1 if phase.clock_name == "env_steps" else UPDATES, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(phase, datamodule=case.data(dataset, BATCH, 1, UPDATES))
    if save:
        trainer.save_checkpoint(starts / f"{name}.ckpt")
    return phase


@pytest.mark.parametrize("name", METHODS)
def test_captured_updates_of_stacked_seeds_are_those_of_each(name: str) -> None:
    own, seeds = ([built(name, seed).to("cuda") for seed in range(SEEDS)] for _ in range(2))
    learners = {place: (method, optimizer_of(method)) for place, method in enumerate(seeds)}
    whole = WholeUpdates(StackedEngine(joined(dict(enumerate(seeds)), SEEDS), SEEDS), learners)
    captured, optimizers = Captured(whole, CudaGraphs()), [optimizer_of(method) for method in own]
    for turn in range(1, 4):
        given, drawn = there(batches(own[0], K, SEEDS)), there(noises(own[0], K, SEEDS))
        noise = [{key: part[:, s] for key, part in drawn.items()} for s in range(SEEDS)]
        found = replayed(captured, each(given), noise)
        assert whole.made.tolist() == [turn * K] * SEEDS
        for s, (method, optimizer) in enumerate(zip(own, optimizers, strict=True)):
            mine = [{key: part[:, s] for key, part in parts.items()} for parts in (given, drawn)]
            for row, expected in zip(found, one_by_one(method, optimizer, *mine), strict=True):
                for key, value in expected.items():
                    torch.testing.assert_close(row[key][s], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_phase_captured_follows_its_eager_run(
    name: str, starts: Path, pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    replay = Captured.replay

    def watched(self: Any, piece: Any, gather: Any) -> Any:
        sizes.append(len(piece.moments))
        return replay(self, piece, gather)

    eager = train(name, pendulum, starts, False).state_dict()
    monkeypatch.setattr(Captured, "replay", watched)
    found = train(name, pendulum, starts, "auto")
    assert sum(sizes) == found.updates > 0
    for key, value in eager.items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=2e-4, atol=1e-5, msg=lambda t, k=key: k + t)


def test_a_chunk_of_sixteen_updates_is_a_handful_of_launches() -> None:
    method = built("sac").to("cuda")
    captured = Captured(WholeUpdates(Engine(method), {0: (method, optimizer_of(method))}), CudaGraphs())
    moments = [Moment(i) for i in range(16)]
    given, drawn = each(there(batches(method, 16))), there(noises(method, 16))
    order = tuple(order_of(method, moment) for moment in moments)
    piece = Piece(moments, order, given, drawn, [False] * 16)

    def launches() -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU,
                                                torch.profiler.ProfilerActivity.CUDA]) as profile:  # fmt: skip
            captured.replay(piece, lambda batch: batch)
            torch.cuda.synchronize()
        return sum("Launch" in event.name for event in profile.events())

    captured.replay(piece, lambda batch: batch)
    assert launches() <= 16  # one an update; an eager one makes hundreds


def test_a_step_that_looks_at_a_number_is_refused_before_a_capture_begins_and_the_gpu_goes_on() -> None:
    class Looking(every_method.TD3):
        def critic_step(self, batch: Any, noise: Any) -> Any:
            loss = super().critic_step(batch, noise)
            assert float(loss.value.detach()) >= 0.0
            return loss

    method = Looking(hidden=every_method.HIDDEN)
    method.build(every_method.TASK)
    method.to("cuda")
    before = copy.deepcopy(method.state_dict())
    captured = Captured(WholeUpdates(Engine(method), {0: (method, optimizer_of(method))}), CudaGraphs())
    with pytest.raises(CannotRecord, match="waits for a number"):
        replayed(captured, each(there(batches(method, K))), there(noises(method, K)))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.randn(3, device="cuda").isfinite().all()


def test_a_loss_that_is_not_finite_stops_all_later_steps() -> None:
    method = built("td3_bc").to("cuda")
    captured = Captured(WholeUpdates(Engine(method), {0: (method, optimizer_of(method))}), CudaGraphs())
    given, drawn = each(there(batches(method, K))), there(noises(method, K))
    replayed(captured, given, drawn)
    given[1]["reward"] = torch.full_like(given[1]["reward"], torch.nan)
    replayed(captured, given, drawn)
    assert int(captured.made()) == K + 1
    before = copy.deepcopy(method.critic.state_dict())
    replayed(captured, each(there(batches(method, K))), drawn)
    assert all(torch.equal(value, before[key]) for key, value in method.critic.state_dict().items())


def test_a_run_names_the_batch_of_which_no_loss_came(starts: Path, pendulum: str, monkeypatch: Any) -> None:
    from o2o_lightning.data.module import OfflineData

    numbers, drawn = OfflineData.numbers, []

    def spoiled(self: Any, shape: Any) -> Any:
        drawn.append(numbers(self, shape))
        if len(drawn) == 1:
            self.store.matrix[drawn[-1][0, 0], 3:5] = torch.nan
            self.store.changes += 1
        return drawn[-1]

    monkeypatch.setattr(OfflineData, "numbers", spoiled)
    with pytest.raises(Failure, match=r"phase offline, update \d+: .*batch\['reward'\].*not finite"):
        train("td3_bc", pendulum, starts, "auto")


# ---- runs --------------------------------------------------------------------------------------------------------


def o2o(argv: list[str], log: Path, prepare: str = "") -> int:
    """The command line in a process of its own, which may have a GPU where a fork of this one may not."""
    code = f"import sys, killing\n{prepare}\nfrom o2o_lightning.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    with log.open("a") as out:
        done = subprocess.run([sys.executable, "-c", code, *argv], cwd=TESTS, stdout=out, stderr=out, timeout=900)
    return done.returncode


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_on_a_gpu_is_captured_by_itself_and_goes_on_after_a_kill_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    log, whole, killed = tmp_path / "log", tmp_path / "whole", tmp_path / "killed"
    argv = ["fit", "--phase", "all", *SIZES, *PIPELINES[name], *GPU]
    assert o2o([*argv, "--run_dir", str(whole)], log) == 0, log.read_text()
    assert log.read_text().count("updates are CUDA graphs, up to 8 of them a launch") == len(PHASES[name])
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("*.state"))
    shutil.rmtree(killed / "online")
    (killed / "summary.json").unlink()
    assert o2o(["resume", str(killed)], log, "killing.die_at('env_step', 53)()") == -9, log.read_text()
    assert o2o(["resume", str(killed)], log) == 0, log.read_text()
    assert killing.differences(whole, killed, ["online"]) == []


@pytest.mark.parametrize("more", [["--model.compile", "false"], ["--trainer.precision", "bf16-mixed"],
                                  ["--trainer.precision", "16-mixed"], ["--data.device_limit_gb", "0"]])  # fmt: skip
def test_other_ways_to_run_on_a_gpu_run(more: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert o2o([*PENDULUM, "online=o2td3", "--model.constraint", "false", *GPU, *more, "--run_dir",
                str(tmp_path / "run")], log) == 0, log.read_text()  # fmt: skip
    assert json.loads((tmp_path / "run/summary.json").read_text())["env_steps"] == 70
    assert ("--trainer.precision" in " ".join(more)) == ("updates are made step by step, for" in log.read_text())


def test_cloning_ends_on_a_gpu(pendulum: str, tmp_path: Path) -> None:
    log, run = tmp_path / "log", ["--run_dir", str(tmp_path / "run")]
    data = ["--data.dataset", pendulum, "--data.batch_size", "16", "--data.eval_episodes", "1", *GPU]
    offline = ["fit", "--phase", "offline", "offline=td3_bc", "dataset=file", *data, "steps.offline=20", *run]
    assert o2o(offline, log) == 0, log.read_text()
    init = str(tmp_path / "run/offline/checkpoints/last.ckpt")
    clone = ["fit", "--phase", "clone", "online=o2sac", "dataset=file", *data, "--model.init_from", init, *run]
    assert o2o([*clone, "--trainer.max_steps", "20", "--model.check_every", "10"], log) == 0, log.read_text()
    assert "held-out states" in log.read_text()


@pytest.mark.parametrize("first, second", [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_run_of_one_device_is_refused_in_one_line_on_the_other(first: str, second: str, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    line = [*PENDULUM, "online=td3", "--trainer.accelerator", first, "--run_dir", str(folder)]
    assert o2o(line, log, "killing.die_at('env_step', 47)()") == -9, log.read_text()
    from o2o_lightning.checkpoint.run import read_config, write_config

    config = folder / "online/config.yaml"
    write_config(config, read_config(config).replace(f"accelerator: {first}", f"accelerator: {second}"))
    assert o2o(["resume", str(folder)], log) == 2, log.read_text()
    assert f"began on another kind of device than {'cuda' if second == 'gpu' else 'cpu'}" in log.read_text()


def test_what_is_recorded_on_a_cpu_is_captured_on_a_gpu(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert o2o([*PENDULUM, "online=td3", *GPU, *RECORD, "--run_dir", str(tmp_path / "run")], log) == 0, log.read_text()
    assert "updates are CUDA graphs" in log.read_text()
