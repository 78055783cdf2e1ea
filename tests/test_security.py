"""Nothing that a user is handed by someone else is unpickled, imported or written outside of where it belongs."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_files import arrays, write

from o2o_lightning.checkpoint import side_state
from o2o_lightning.checkpoint.handover import FORMAT, read_handover
from o2o_lightning.checkpoint.run import read_plan
from o2o_lightning.cli.main import main
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.errors import UserError
from o2o_lightning.nn.deterministic import DeterministicActor


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("argv", [
    ["test", "--ckpt_path"],
    ["predict", "--ckpt_path"],
    ["fit", "--phase", "reevaluate", "steps.reevaluate=1", "--run_dir", "run", "--model.init_from"],
])  # fmt: skip
def test_a_pickled_program_in_a_checkpoint_is_refused_and_not_run(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"o2o": {}, "state_dict": {}, "x": Evil(tmp_path / "owned")}, tmp_path / "evil.ckpt")
    assert main([*argv, str(tmp_path / "evil.ckpt")]) == 2
    assert "so it was not loaded" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.ckpt"]


def test_a_pickled_program_beside_a_checkpoint_is_refused_and_not_run(tmp_path):
    folder = tmp_path / "last.abc.state"
    folder.mkdir()
    torch.save({"token": "abc", "x": Evil(tmp_path / "owned")}, folder / "rank-0.pt")
    with pytest.raises(UserError, match="cannot be read"):
        side_state.read(tmp_path / "last.ckpt", "abc", 0)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("token", ["../../elsewhere", "", "a/b", "."])
def test_side_state_stays_beside_its_checkpoint(token, tmp_path):
    with pytest.raises(UserError, match="which o2o did not write"):
        side_state.read(tmp_path / "last.ckpt", token, 0)


@pytest.mark.parametrize("phases", [["../precious"], ["/precious"], [], ["offline", "."]])
def test_a_plan_names_phases_and_no_other_folders(phases, tmp_path):
    (tmp_path / "precious").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    entry = {"phase": "all", "phases": phases, "overrides": [], "options": [], "cwd": "/"}
    (run / "plan.json").write_text(json.dumps([entry]))
    with pytest.raises(UserError, match="not a plan"):
        read_plan(run)
    assert main(["resume", str(run)]) == 2 and (tmp_path / "precious").exists()


def test_a_dataset_cannot_have_a_module_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path / "data.hdf5")
    with h5py.File(path, "a") as file:
        file["metadata/env_id"] = "evil_module:Env-v0"
    assert main(["fit", "--phase", "offline", "--data.dataset", str(path), "--run_dir", str(tmp_path / "run")]) == 2
    assert "--data.env_id evil_module:Env-v0" in capsys.readouterr().err
    main(["data", "check", str(path)])
    main(["data", "info", str(path)])
    assert "evil_module" not in sys.modules and not (tmp_path / "run").exists()


def test_a_dataset_cannot_show_another_file(tmp_path):
    path, secret = tmp_path / "data.hdf5", tmp_path / "secret"
    secret.write_bytes(b"\1" * 12 * 3 * 4)
    made = arrays()
    with h5py.File(path, "w") as file:
        for key, value in made.items():
            if key != "observations":
                file[key] = value
        outside = [(str(secret), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("observations", (12, 3), np.float32, external=outside)
    with pytest.raises(UserError, match="lies in other files"):
        read_hdf5(path)


def checkpoint() -> dict[str, Any]:
    actor = DeterministicActor(3, 1, (4,))
    identity = {"mean": torch.zeros(3), "std": torch.ones(3), "eps": 1e-3}
    payload = {
        "phase": "offline", "algorithm": "bc", "actor": actor.spec.to_dict(), "critic": None, "normalizer": identity,
        "env_id": "Pendulum-v1", "manifest": {}, "format": FORMAT,
    }  # fmt: skip
    state = {f"agent.actor.{name}": value for name, value in actor.state_dict().items()}
    return {"o2o": payload, "state_dict": state, "optimizer_states": []}


def test_a_checkpoint_of_wrong_types_is_one_line_and_no_traceback(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint(), path)
    assert read_handover(path).build_actor().spec.observation_dim == 3
    wrong = (None, 3, -1.5, "x", [1], {}, {"a": 1}, torch.ones(2))
    places = [("o2o", key) for key in ("actor", "normalizer", "format", "phase", "layout")]
    places += [("state_dict",), ("optimizer_states",), *(("o2o", "actor", key) for key in ("kind", "hidden"))]
    for place in places:
        for value in wrong:
            made = copy.deepcopy(checkpoint())
            at = made
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = value
            torch.save(made, path)
            try:
                handover = read_handover(path)
                handover.build_actor()
                handover.build_normalizer()
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error)
