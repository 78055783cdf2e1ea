"""What has changed on the disk is never gone on with: checkpoints, side state, plans, configurations and datasets."""

from __future__ import annotations

import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import killing
import pytest
import torch
from conftest import Run
from data_files import record_pendulum

from o2o_lightning.checkpoint import inert, side_state
from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.checkpoint.run import read_plan, write_plan
from o2o_lightning.cli.main import main
from o2o_lightning.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    killing.import_everything()


def flip(path: Path, marker: bytes, offset: int = 0) -> None:
    """Changes the lowest bit of the byte ``offset`` bytes after the one place where ``marker`` is."""
    content = bytearray(path.read_bytes())
    assert content.count(marker) == 1
    content[content.index(marker) + offset] ^= 1
    path.write_bytes(content)


def started(folder: Path, event: str, count: int) -> tuple[Path, Path]:
    """A run of two phases that is killed at an event, and its dataset."""
    dataset, run, log = folder / "d.hdf5", folder / "run", folder / "log"
    record_pendulum(dataset, 20, 8)
    argv = ["fit", "--phase", "all", "phases=[offline,reevaluate]", "steps.offline=6", "steps.reevaluate=6",
            "--data.dataset", str(dataset), "--data.batch_size", "4", "--data.eval_episodes", "1", "--model.hidden",
            "[4]", "--data.chunk", "1", "checkpoint_every=4", "--run_dir", str(run)]  # fmt: skip
    assert killing.run(argv, log, killing.die_at(event, count)) == -9, log.read_text()
    return run, dataset


def refused(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["resume", str(run)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "going on from" not in line]
    assert len(said) == 1 and said[0].startswith("o2o: ") and all(word in said[0] for word in words), said
    assert {path: path.read_bytes() for path in before if path.exists()}.items() <= before.items()


@pytest.mark.parametrize("updates, where", [
    (3, "is not what the run in"),  # before the first checkpoint of all
    (8, "offline/checkpoints/last.ckpt: its dataset was"),
    (11, "is not what checkpoint"),  # the second phase's first checkpoint is still to come
])  # fmt: skip
def test_a_dataset_that_has_changed_is_not_gone_on_with(updates, where, tmp_path, capsys):
    # TD3+BC's six updates are nine steps, one or two each; re-evaluation's are one each
    run, dataset = started(tmp_path, "update", updates)
    with h5py.File(dataset, "a") as file:
        file["rewards"][3] += 1
    refused(run, capsys, "dataset", where)


def test_a_dataset_with_another_name_is_taken_and_said(chain: dict[str, Run], tmp_path, capsys):
    other = record_pendulum(tmp_path / "other.hdf5", 9, 8)
    argv = ["fit", "--phase", "reevaluate", "--trainer.max_steps", "1", "--data.batch_size", "4", "--run_dir"]
    start = ["--model.init_from", str(chain["offline"].checkpoint), "--data.dataset", str(other)]
    assert main([*argv, str(tmp_path / "run"), *start]) == 0
    assert f"dataset {other}: it is not what checkpoint" in capsys.readouterr().err


def test_a_flipped_bit_of_a_weight_is_found(chain: dict[str, Run], tmp_path, capsys):
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(chain["offline"].checkpoint.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["method.actor.body.linears.1.weight"]
    flip(path, weight.numpy().tobytes(), offset=7)
    assert not torch.equal(
        weight, torch.load(path, weights_only=True)["state_dict"]["method.actor.body.linears.1.weight"]
    )
    assert main(["test", "--ckpt_path", str(path), "--data.eval_episodes", "1"]) == 2
    assert "a part of it has changed" in capsys.readouterr().err


def test_a_flipped_bit_of_side_state_is_found(tmp_path):
    checkpoint, numbers = tmp_path / "last.ckpt", torch.randn(64)
    side_state.write(checkpoint, "abc", 0, {"x": numbers})
    flip(tmp_path / "last.abc.state/rank-0.pt", numbers.numpy().tobytes(), offset=33)
    with pytest.raises(UserError, match=r"side state \S+ cannot be read .* a part of it has changed"):
        side_state.read(checkpoint, "abc", 0)


def test_a_plan_or_a_configuration_that_has_changed_is_not_gone_on_with(tmp_path, capsys):
    run, _ = started(tmp_path, "update", 14)
    plan = (run / "plan.json").read_bytes()
    flip(run / "plan.json", b"steps.reevaluate=6", offset=17)
    refused(run, capsys, "plan.json", "it has changed since")
    (run / "plan.json").write_bytes(plan)
    flip(run / "reevaluate/config.yaml", b"batch_size: 4", offset=12)
    refused(run, capsys, "config.yaml", "has changed since o2o wrote it")


def test_a_plan_of_version_0_1_is_read_without_a_digest(tmp_path):
    entry = {"phase": "offline", "phases": ["offline"], "overrides": [], "options": [], "cwd": "/"}
    (tmp_path / "plan.json").write_text(json.dumps([entry]))
    assert read_plan(tmp_path) == [entry]
    write_plan(tmp_path, [entry])
    assert read_plan(tmp_path) == [entry] and "sha256" in (tmp_path / "plan.json").read_text()


# ---- what a file declares, against what it has ---------------------------------------------------------------------


def expanded(path: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"]["method.actor.body.linears.0.weight"] = torch.zeros(1).expand(200_000, 200_000)
    torch.save(checkpoint, path)


def wide(path: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["o2o"]["actor"]["hidden"] = [400_000, 400_000]
    torch.save(checkpoint, path)


def deep(path: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["o2o"]["actor"]["hidden"] = [1] * 300_000
    torch.save(checkpoint, path)


def many(path: Path, checkpoint: dict[str, Any]) -> None:
    checkpoint["o2o"]["critic"] = {**checkpoint["o2o"]["critic"], "count": 10**7}
    torch.save(checkpoint, path)


@pytest.mark.parametrize("bomb", [expanded, wide, deep, many])
def test_a_checkpoint_that_declares_more_than_it_has_takes_no_memory(
    bomb: Callable[..., None], chain: dict[str, Run], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.ckpt"
    bomb(path, torch.load(chain["reevaluate"].checkpoint, weights_only=True))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"checkpoint \S+bomb.ckpt"):
        handover = read_handover(path)
        handover.build_policy()
        handover.build_critic()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_a_storage_that_declares_more_than_its_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lying.pt"
    torch.save({"a": torch.zeros(100)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            # the pickle's own 100, in one byte
            archive.writestr(name, member.replace(b"Kd", b"K\xff") if name.endswith("data.pkl") else member)
    with pytest.raises(ValueError, match="declares 1,020 bytes, and has 400"):
        inert.load(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    packed = zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert os.path.getsize(tmp_path / "b.pt") < os.path.getsize(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"not as torch\.save makes it"):
        inert.load(tmp_path / "b.pt")


def test_a_record_that_is_called_a_folder_is_not_taken_for_numbers(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    entry = content.index(b"PK\1\2", content.rindex(b"data/0") - 60)  # of the archive's directory
    content[entry + 38] = 0x10  # its attributes, which no checksum covers
    (tmp_path / "a.pt").write_bytes(content)
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None
    with pytest.raises(ValueError, match=r"not as torch\.save makes it"):
        inert.load(tmp_path / "a.pt")
