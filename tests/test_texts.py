"""Texts and reports of o2o: no pipe is waited for, none outgrows its file, a killed import is made again."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import killing
import pytest
import torch
from conftest import Run

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.checkpoint.run import read_config, read_plan
from o2o_lightning.cli import policy_import
from o2o_lightning.cli.main import main
from o2o_lightning.cli.run import write_run_summary
from o2o_lightning.errors import UserError
from o2o_lightning.limits import check_text


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    sizes = ((8, 3), (8,), (1, 8), (1,))
    names = ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")
    torch.save({name: torch.zeros(size) for name, size in zip(names, sizes, strict=True)}, tmp_path / "p.pt")
    return tmp_path / "p.pt"


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(token) for token in argv]) == 2
    error = capsys.readouterr().err
    said = [line for line in error.splitlines() if not line.startswith("hyper-parameters")]
    assert len(said) == 1 and said[0].startswith("o2o: "), error
    return error


def test_a_pipe_is_not_waited_for(policy, tmp_path, capsys):
    os.mkfifo(pipe := tmp_path / "pipe.hdf5")
    run = ("--run_dir", tmp_path / "run")
    for argv in (
        ("data", "info", pipe), ("data", "check", pipe), ("policy", "import", pipe, *run), ("policy", "inspect", pipe),
        ("policy", "import", policy, "--normalizer", pipe, *run), ("policy", "export", pipe),
        ("policy", "import", policy, "--dataset", pipe, *run), ("test", "--ckpt_path", pipe),
        ("fit", "--phase", "offline", "--data.dataset", pipe, *run),
        ("fit", "--phase", "offline", "--config", pipe, *run),
        ("fit", "--phase", "align", "--model.init_from", pipe, *run),
    ):  # fmt: skip
        assert "pipe.hdf5" in refused(capsys, *argv)
    for name in ("plan.json", "config.yaml", "summary.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="it is no file"):
            check_text(tmp_path / name, name)
    with pytest.raises(UserError, match="no file"):
        read_config(tmp_path / "config.yaml")
    assert read_plan(tmp_path) == [] and not (tmp_path / "run").exists()


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)),
    "a circle": "model: &a\n  x: *a\n",
    "levels": "model: " + "[" * 50_000,
    "entries": "model: [" + "1, " * 20_000 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_configuration_that_outgrows_its_file_is_refused(bomb, tmp_path, capsys):
    (file := tmp_path / "c.yaml").write_text(BOMBS[bomb])
    assert "c.yaml: it has " in refused(
        capsys, "fit", "--phase", "offline", "--config", file, "--run_dir", tmp_path / "r"
    )


def test_a_plan_of_too_many_levels_and_a_damaged_summary_are_one_line(tmp_path):
    (tmp_path / "plan.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not a plan that o2o wrote"):
        read_plan(tmp_path)
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline/summary.json").write_text('{"seconds": 1')
    with pytest.raises(UserError, match=r"offline/summary.json: it cannot be read"):
        write_run_summary(tmp_path)


def test_a_policy_of_nan_is_called_by_its_name(chain: dict[str, Run], tmp_path):
    checkpoint = torch.load(chain["offline"].checkpoint, weights_only=True)
    checkpoint["state_dict"]["method.actor.body.linears.0.bias"][2] = torch.nan
    torch.save(checkpoint, path := tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match=r"nan.ckpt: 'actor.body.linears.0.bias' holds NaN or infinity"):
        read_handover(path).build_policy()


@pytest.mark.parametrize("renames", [1, 2])
def test_an_import_that_was_killed_can_be_given_again(renames, policy, tmp_path):
    killing.import_everything()
    argv = ["policy", "import", str(policy), "--run_dir", str(tmp_path / "run")]
    log, folder = tmp_path / "log", tmp_path / "run/import"
    assert killing.run(argv, log, killing.die_at("replace", renames)) == -9, log.read_text()
    assert not (folder / "checkpoints/last.ckpt").exists()
    assert killing.run(argv, log) == 0, log.read_text()
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left >= {"checkpoints/last.ckpt", "summary.json"} and not list(folder.glob("checkpoints/.*"))
    assert killing.run(argv, log) == 2


def test_a_report_of_someone_elses_is_not_written_over(policy, tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps({"phase": "import", "checkpoint": "other"}))
    assert "mine.json: it exists" in refused(capsys, "policy", "import", policy, "--out", tmp_path / "mine.ckpt")


def test_two_imports_at_once_do_not_mix(tmp_path):
    target, report = tmp_path / "p.ckpt", tmp_path / "p.json"
    ends: list[str] = []

    def write(name: str) -> None:
        facts = {"phase": "import", "checkpoint": str(target), "name": name}
        try:
            policy_import._write(target, {"name": name}, report, facts)
            ends.append(name)
        except UserError as error:
            assert "it exists" in str(error)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 1 and json.loads(report.read_text())["name"] == ends[0]
    assert torch.load(target, weights_only=True)["name"] == ends[0]
