"""Nothing that a user is handed by someone else is unpickled, imported or written outside of where it belongs."""

from __future__ import annotations

import copy
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from data_files import arrays, write
from policy_files import d4rl_file

from o2o_lightning.checkpoint import side_state
from o2o_lightning.checkpoint.handover import FORMAT, read_handover
from o2o_lightning.checkpoint.run import read_plan
from o2o_lightning.cli.main import main
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import DeterministicActor
from o2o_lightning.policies.program import load_program
from o2o_lightning.policies.read import read_policy
from o2o_lightning.policies.torchscript import load_torchscript


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


def test_a_policys_file_cannot_have_a_module_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    evil, plain = (d4rl_file(tmp_path / name)[0] for name in ("a.hdf5", "b.hdf5"))
    for path in (evil, plain):
        with h5py.File(path, "a") as file:
            del file["metadata/env_id"]
    with h5py.File(evil, "a") as file:
        file["metadata/env_id"] = "evil_module:Env-v0"
    made = checkpoint()
    made["o2o"]["env_id"] = "evil_module:Env-v0"
    torch.save(made, tmp_path / "x.ckpt")
    for argv in (
        ["import", str(evil), "--out", str(tmp_path / "y.ckpt")],
        ["import", str(plain), "--dataset", str(evil), "--out", str(tmp_path / "y.ckpt")],
        ["export", str(tmp_path / "x.ckpt")],
    ):
        assert main(["policy", *argv]) == 2
        assert "--data.env_id evil_module:Env-v0" in capsys.readouterr().err
    assert "evil_module" not in sys.modules


PLACES: dict[str, Callable[[Any, str], None]] = {
    "a size": lambda model, code: sizes(model)[0]["as_expr"].update(expr_str=code),
    "a guard": lambda model, code: model["guards_code"].append(f"{code} is None"),
    "an operator": lambda model, code: model["graph_module"]["graph"]["nodes"][0].update(
        target="torch.os.mkdir",
        inputs=[{"name": "path", "kind": 1, "arg": {"as_string": "owned"}}],
    ),
    "an argument's name": lambda model, code: signature(model).update(forward_arg_names=[f"x={code}"]),
    "a module to import": lambda model, code: signature(model).update(
        in_spec=signature(model)["in_spec"].replace('"null"', json.dumps('{"__enum__": 1, "fqn": "this:x"}'), 1)
    ),
}


def sizes(model: Any) -> Any:
    return model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]


def signature(model: Any) -> Any:
    return next(entry for entry in model["graph_module"]["module_call_graph"] if not entry["fqn"])["signature"]


@pytest.mark.parametrize("place", PLACES)
def test_an_exported_program_runs_nothing_but_operators(place, tmp_path, monkeypatch):
    class Double(torch.nn.Module):
        def forward(self, x):
            return x[:, :1] * 2

    monkeypatch.chdir(tmp_path)
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(Double(), (torch.zeros(2, 3),), dynamic_shapes=dynamic), "good.pt2")
    assert load_program("good.pt2")(torch.ones(5, 3)).tolist() == [[2.0]] * 5
    with zipfile.ZipFile("good.pt2") as before, zipfile.ZipFile("evil.pt2", "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("models/model.json"):
                model = json.loads(content)
                PLACES[place](model, "__import__('os').mkdir('owned')")
                assert json.dumps(model) != json.dumps(json.loads(content))
                content = json.dumps(model).encode()
            after.writestr(name, content)
    with pytest.raises(UserError, match="more than a graph and tensors"):
        load_program("evil.pt2")
    assert not Path("owned").exists() and "this" not in sys.modules


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


def test_a_zip_that_unpacks_to_too_much_is_refused_whatever_its_directory_says(tmp_path, monkeypatch):
    monkeypatch.setattr("o2o_lightning.policies.source.MAX_BYTES", 2**16)
    honest, lying = tmp_path / "honest.zip", tmp_path / "lying.zip"
    with zipfile.ZipFile(honest, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", bytes(2**20))
    lying.write_bytes(honest.read_bytes().replace((2**20).to_bytes(4, "little"), (2**10).to_bytes(4, "little")))
    for path, said in ((honest, "unpacks to more"), (lying, "broken")):
        with pytest.raises(UserError, match=said):
            read_policy(str(path), "sb3")


class Doubling(torch.nn.Module):
    """Calls its part twice, which calls its part twice, …"""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.part = Doubling(depth - 1) if depth else torch.nn.Identity()

    def forward(self, x):
        return self.part(self.part(x))


def script(path: Path, body: str = "return torch.tanh(x)", more: str = "", net: Any = None) -> None:
    """A TorchScript file, whose code then gets another body."""
    torch.jit.save(torch.jit.script(net or torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Tanh())), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith(".py") and "activation" in name:  # or a folder of that name, if it is not the first one
                content = content.replace(b"return torch.tanh(input)", body.encode()) + more.encode()
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("return torch.from_file('secret', False, 3)", ""),
        ("return torch.save(input, 'owned')", ""),
        ("return input # type: int", ""),
        ("while True:\n      input = torch.tanh(input)\n    return input", ""),
        ("return input", "  def __setstate__(self, state: Tensor) -> NoneType:\n    return None\n"),
        ("return torch.zeros([100000, 100000])", ""),
        ("return ops.aten.save(input, 'owned')", ""),
        ("_0 = torch.save\n    _1 = _0(input, 'owned')\n    return input", ""),
    ],
)
def test_a_torchscript_file_runs_nothing_but_plain_operators(body, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script(tmp_path / "a.pt", body, more)
    with pytest.raises(UserError, match="more than tensors and plain operators"):
        load_torchscript("a.pt")
    assert not Path("owned").exists()


def test_torchscript_that_never_ends_is_refused(tmp_path):
    script(tmp_path / "a.pt", net=Doubling(20))
    with pytest.raises(UserError, match="calls too much"):
        load_torchscript(str(tmp_path / "a.pt"))


def test_plain_torchscript_runs_traced_and_scripted(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))
    traced = torch.jit.trace(net.requires_grad_(False), torch.zeros(2, 3))
    function = torch.jit.trace(lambda x: net(x).tanh().clamp(-1, 1), torch.zeros(1, 3))
    x = torch.randn(5, 3)
    for module, expected in ((traced, net(x)), (torch.jit.script(net), net(x)), (function, net(x).tanh())):
        torch.jit.save(module, str(tmp_path / "a.pt"))
        torch.testing.assert_close(load_torchscript(str(tmp_path / "a.pt"))(x), expected)
