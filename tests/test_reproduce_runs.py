"""`o2o reproduce`: each table and figure of the paper runs to its end, small, from one set of shared runs."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import killing
import pytest
import torch
from data_files import record_pendulum

from o2o_lightning.cli import jobs, reproduce
from o2o_lightning.cli.jobs import Chain, Job, Processes, run_chains
from o2o_lightning.cli.main import main
from o2o_lightning.cli.reproduce import results
from o2o_lightning.errors import Interrupted

SCALE = 3e-5  # 30 updates offline, 3 steps online
SMALL = ["--trainer.accelerator=cpu", "--data.batch_size=8", "--data.eval_episodes=1", "--data.eval_every_updates=1000",
         "--data.eval_every=2", "--data.env_kwargs={max_episode_steps: 8}"]  # fmt: skip


Run = Callable[[list[str], Path], object]


class Study:
    """One directory of runs, and what was started there."""

    def __init__(self, folder: Path, data: Path, *options: str) -> None:
        self.folder, self.runs = folder, folder / "hopper-medium-v2" / "seed0"
        self.argv = ["--datasets", f"hopper-medium-v2={data}", "--run_dir", str(folder), "--seeds", "0"]
        self.argv += ["--scale", f"{SCALE}", *SMALL, *options]
        self.started: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def reproduce(self, name: str, run: Run) -> int:
        """The exit code of the command, whose runs are made by ``run``."""

        def start(processes: Processes, command: list[str], log: Path) -> None:
            self.started.append(command)
            run(command, log)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Processes, "run", start)
            return main(["reproduce", name, *self.argv])

    def code_of(self, name: str) -> int:
        """The same, once for each result."""
        if name not in self.codes:
            self.codes[name] = self.reproduce(name, here)
        return self.codes[name]


def here(command: list[str], log: Path) -> None:
    """Runs the command line in this process: seventy would import torch seventy times."""
    with log.open("a") as output, redirect_stdout(output), redirect_stderr(output):
        main(command)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_pendulum(tmp_path_factory.mktemp("data") / "pendulum.hdf5", 60, 8)


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("reproduce"), data)


@pytest.mark.parametrize("name", [*results()])
def test_a_result_runs_to_its_end_and_stands_beside_the_paper(name: str, study: Study) -> None:
    result = results()[name]
    assert study.code_of(name) == 0
    table = (study.folder / name / "table.md").read_text()
    ours, *total = (line for line in table.splitlines() if line.startswith(("| hopper-medium-v2", "| total")))
    cells = [cell.split(" / ") for cell in ours.strip("|").split(" | ")][1:]
    assert len(cells) == len(result.arms)
    assert all(re.search(r"\d", here) and "–" not in here for here, _ in cells), cells
    for row, names in ((ours, "hopper-medium-v2"), ("".join(total), "total")):
        assert all(number in row for number in result.paper.get(names, ()))
    assert all(note in table for note in [*result.notes, result.says, f"{SCALE:g} of the paper's steps", SMALL[1]])
    report = json.loads((study.folder / name / "report.json").read_text())
    assert [group["method"] for group in report["groups"]] == [*result.arms]


def test_all_results_together_make_each_step_once(study: Study) -> None:
    assert [study.code_of(name) for name in results()] == [0] * 20
    folders = [Path(command[command.index("--run_dir") + 1]).name for command in study.started]
    assert sorted(folders) == sorted(reproduce.jobs())
    summaries = {folder: json.loads((study.runs / folder / "summary.json").read_text()) for folder in folders}
    # these wait for the end of an episode
    waiting = {"odt_online", "cal_ql", "cal_ql_maze"}
    assert {folder for folder, summary in summaries.items() if not summary["steps"]} == waiting


def test_a_reproduction_that_is_killed_goes_on_and_ends_with_the_same_bits(
    study: Study, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert study.code_of("table5") == 0
    again = Study(tmp_path, data, "--checkpoint.every=10")
    assert again.reproduce("table5", lambda *run: killing.run(*run, killing.die_at("update", 25))) == 1
    assert "could not begin" in capfd.readouterr().err and len(again.started) == 1  # nothing follows a run that failed
    assert again.reproduce("table5", here) == 0
    assert again.started[1] == ["resume", str(again.runs / "cql")]
    assert "going on from" in (again.runs / "cql.log").read_text()
    ends = [(one.runs / "align_sac/align/checkpoints/last.ckpt") for one in (study, again)]
    whole, gone_on = (torch.load(end, weights_only=True)["state_dict"] for end in ends)
    assert all(torch.equal(whole[name], gone_on[name]) for name in {*whole, *gone_on})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_runs_and_nothing_more_begins(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho begun\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))
    table = {"a": Job("offline", ()), "b": Job("offline", ())}
    chains = [Chain(tmp_path / name, table, {"a": (), "b": ()}) for name in ("one", "two", "three")]

    def strike() -> None:
        while not all((tmp_path / name / "a.log").exists() for name in ("one", "two")):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=strike, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        run_chains(chains, workers=2)
    assert stopped.value.exit_code == 128 + number
    assert time.monotonic() - begun < 30
    assert sorted(path.name for path in tmp_path.rglob("*.log")) == ["a.log", "a.log"]
