"""Bad policy files: one line that says what to do, exit code 2, and nothing in them ever runs."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from policy_files import Payload, d4rl_file, perceptron, sb3_ppo, sb3_sac, sb3_zip, vecnormalize
from torch import nn

from o2o_lightning.cli.main import main
from o2o_lightning.errors import UserError
from o2o_lightning.policies.statistics import read_statistics


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, file: Path | str, *options: str) -> str:
    capsys.readouterr()
    run = ["--run_dir", str(tmp_path / "run"), "--episodes", "0"]
    assert main(["policy", "import", str(file), *run, *options]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    # distilling is a fit, which may first say how it chose its hyper-parameters
    lines = [line for line in lines if not line.startswith("hyper-parameters:")]
    assert len(lines) == 1 and lines[0].startswith("o2o: "), captured.err
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    return lines[0]


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trap"
    payload = Payload(trap)
    pickle.loads(pickle.dumps(payload)).close()  # it is real
    trap.unlink()

    torch.save({"actor": payload}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"actor": payload}))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.write(tmp_path / "a.pt", "policy.pth")
    good = sb3_zip(tmp_path / "d.zip", sb3_sac()[0])
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps(payload))
    vecnormalize(tmp_path / "mixed.pkl", np.ones(3), np.ones(3), ret_rms=payload)

    assert "nothing of it ran" in refused(capsys, tmp_path, tmp_path / "a.pt")
    refused(capsys, tmp_path, tmp_path / "b.pt")
    assert "policy.pth" in refused(capsys, tmp_path, tmp_path / "c.zip")
    for name in ("stats.pkl", "mixed.pkl"):
        assert "open" in refused(capsys, tmp_path, good, "--normalizer", str(tmp_path / name))
    assert not trap.exists()


def test_json_of_too_many_levels_or_digits_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = sb3_zip(tmp_path / "good.zip", sb3_sac()[0])
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(tmp_path / "deep.zip", "w") as deep:
        deep.writestr("policy.pth", archive.read("policy.pth"))
        deep.writestr("data", "[" * 200_000)
    assert "levels" in refused(capsys, tmp_path, tmp_path / "deep.zip")
    for content in ('{"mean":' + "[" * 100_000, '{"mean":[' + "9" * 400 + ',0,0],"std":[1,1,1]}'):
        (tmp_path / "n.json").write_text(content)
        assert "n.json" in refused(capsys, tmp_path, good, "--normalizer", str(tmp_path / "n.json"))


def test_a_pickle_that_asks_for_a_memo_of_gigabytes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(b"\x80\x04}r" + (1_292_340_372).to_bytes(4, "little") + b".")
    with pytest.raises(UserError, match=r"n\.pkl"):
        read_statistics(tmp_path / "n.pkl")


def test_d3rlpys_files_are_called_by_their_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"_encoder._layers.0.weight": torch.zeros(4, 3), "_mu.weight": torch.zeros(1, 4)}
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "algo.d3").write_bytes(pickle.dumps({"torch": (tmp_path / "model.pt").read_bytes(), "config": "{}"}))
    for name in ("model.pt", "algo.d3"):
        options = () if name == "model.pt" else ("--format", "state_dict")
        said = refused(capsys, tmp_path, tmp_path / name, *options)
        assert "it is d3rlpy's" in said and "save_policy('p.onnx')" in said


def test_the_pickles_inside_a_zips_json_are_never_opened(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    hidden = base64.b64encode(pickle.dumps(Payload(trap))).decode()
    file = sb3_zip(
        tmp_path / "agent.zip", sb3_sac()[0], policy_kwargs={":serialized:": hidden}, lr={":serialized:": hidden}
    )
    assert main(["policy", "import", str(file), "--out", str(tmp_path / "x.ckpt"), "--episodes", "0"]) == 0
    assert not trap.exists()


def test_an_exported_program_with_pickled_objects_is_not_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 2

    trap, good, bad = tmp_path / "trap", tmp_path / "good.pt2", tmp_path / "bad.pt2"
    torch.export.save(torch.export.export(Double(), (torch.zeros(2, 3),)), good)
    with zipfile.ZipFile(good) as before, zipfile.ZipFile(bad, "w") as after:
        root = before.namelist()[0].split("/")[0]
        for name in before.namelist():
            after.writestr(name, before.read(name))
        after.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Payload(trap)))
        after.writestr(f"{root}/data/constants/more.json", json.dumps({"x": {"path_name": "opaque_obj_0"}}))
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    options = ["--format", "torch_export", "--family", "deterministic", "--dataset", str(data), "--episodes", "1"]
    line = refused(capsys, tmp_path, bad, *options)
    assert "more than a graph" in line and not trap.exists()


def test_programs_run_only_when_named_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.trace(perceptron([3, 4, 1], nn.ReLU), torch.zeros(1, 3)), tmp_path / "a.pt")
    assert "--format torchscript" in refused(capsys, tmp_path, tmp_path / "a.pt")


def test_a_broken_zip_is_said_to_be_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0]).read_bytes()
    for size in (0, 10, 500, len(content) - 30):
        (tmp_path / "cut.zip").write_bytes(content[:size])
        refused(capsys, tmp_path, tmp_path / "cut.zip")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    (tmp_path / "cut.zip").write_bytes(damaged)
    refused(capsys, tmp_path, tmp_path / "cut.zip")


def test_layers_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, shape in (
        ("actor.mu.weight", (1, 9)),
        ("actor.latent_pi.2.weight", (8, 15)),
        ("actor.log_std.bias", (2,)),
    ):
        state, _ = sb3_sac()
        state[key] = torch.zeros(shape)
        refused(capsys, tmp_path, sb3_zip(tmp_path / "agent.zip", state))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = sb3_sac()
    state["actor.mu.bias"][0] = float("nan")
    assert "NaN" in refused(capsys, tmp_path, sb3_zip(tmp_path / "agent.zip", state))


def test_tensors_that_would_be_left_out_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = perceptron([3, 8, 1], nn.ReLU, nn.Tanh).state_dict()
    statistics = {"obs_mean": torch.ones(3), "obs_std": torch.ones(3)}
    for prefix in ("net", "net.net", "base_network"):
        torch.save({f"{prefix}.{key}": value for key, value in net.items()} | statistics, tmp_path / "a.pt")
        assert "'obs_" in refused(capsys, tmp_path, tmp_path / "a.pt")
    torch.save(net, tmp_path / "b.pt")
    assert "--mean" in refused(capsys, tmp_path, tmp_path / "b.pt", "--mean", "linear")
    for make in (sb3_sac, sb3_ppo):
        prefix = "actor." if make is sb3_sac else ""
        extractor = {f"{prefix}features_extractor.linear.0.weight": torch.ones(3, 3), **make()[0]}
        assert "features extractor" in refused(capsys, tmp_path, sb3_zip(tmp_path / "c.zip", extractor))
        norm = {f"{prefix}norm.weight": torch.ones(3), **make()[0]}
        assert "architecture" in refused(capsys, tmp_path, sb3_zip(tmp_path / "c.zip", norm))


def test_tensors_of_other_forms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = {"base_network.0.weight": torch.ones(2, 3), "base_network.0.bias": torch.ones(2)}
    for state in (
        {"base_network.0.weight": torch.ones(3)},
        {"net.0.weight": torch.ones(())},
        {**layer, "base_network.0.bias": torch.ones(())},
        {"layer.weight": torch.ones(4, 3).to_sparse()},
        {"layer.weight": torch.ones(4, 3, dtype=torch.int64)},
        {**layer, "log_std_multiplier.constant": torch.ones(2)},
        {"layer.weight": torch.ones(1, 3), "log_std": torch.full((1,), float("nan"))},
    ):
        torch.save(state, tmp_path / "a.pt")
        refused(capsys, tmp_path, tmp_path / "a.pt")
    state = {"actor.latent_pi.0.weight": torch.ones(3), **sb3_sac()[0], "actor.mu.weight": torch.ones(8)}
    refused(capsys, tmp_path, sb3_zip(tmp_path / "a.zip", state))


def test_damaged_and_encrypted_members_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = sb3_zip(tmp_path / "good.zip", sb3_sac()[0])
    np.savez_compressed(tmp_path / "stats.npz", mean=np.random.default_rng(0).normal(size=900), std=np.ones(900))
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(good) as before, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as after:
        for name in ("policy.pth", "data"):
            after.writestr(name, before.read(name))
    for path in (packed, tmp_path / "stats.npz"):
        content = bytearray(path.read_bytes())
        content[100:130] = b"\xff" * 30
        path.write_bytes(content)
    refused(capsys, tmp_path, packed)
    refused(capsys, tmp_path, good, "--normalizer", str(tmp_path / "stats.npz"))
    content = bytearray(good.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption, in every header
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + place] |= 1
    packed.write_bytes(content)
    refused(capsys, tmp_path, packed)


@pytest.mark.parametrize("key", ["actor.mu.weight", "actor.log_std.weight", "actor.latent_pi.0.weight"])
def test_missing_tensors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    state, _ = sb3_sac()
    del state[key]
    refused(capsys, tmp_path, sb3_zip(tmp_path / "agent.zip", state))


def test_policies_that_are_no_perceptrons_of_vectors_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"actor.features_extractor.cnn.0.weight": torch.zeros(4, 3, 8, 8), **sb3_sac()[0]}
    assert "images" in refused(capsys, tmp_path, sb3_zip(tmp_path / "a.zip", images))
    discrete = {key: value for key, value in sb3_ppo()[0].items() if key != "log_std"}
    assert "discrete" in refused(capsys, tmp_path, sb3_zip(tmp_path / "b.zip", discrete))
    space = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "3"}
    q = {"q_net.q_net.0.weight": torch.zeros(3, 3)}
    assert "Discrete" in refused(capsys, tmp_path, sb3_zip(tmp_path / "c.zip", q, action_space=space))
    norm = {f"actor.latent_pi.4.{name}": torch.ones(8) for name in ("ra_mean", "ra_var", "scale", "bias")}
    noise = {key: value for key, value in sb3_sac()[0].items() if "log_std" not in key} | {
        "actor.log_std": torch.ones(8, 1)
    }
    assert "CrossQ's with gSDE" in refused(capsys, tmp_path, sb3_zip(tmp_path / "c.zip", norm | noise))
    unknown = {"actor.something.weight": torch.zeros(3, 3)}
    assert "architecture" in refused(capsys, tmp_path, sb3_zip(tmp_path / "d.zip", unknown))
    torch.save({"conv.weight": torch.zeros(1, 1, 3, 3)}, tmp_path / "e.pt")
    refused(capsys, tmp_path, tmp_path / "e.pt")


def test_another_environment_or_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    assert "Hopper-v5" in refused(capsys, tmp_path, file, "--env_id", "Hopper-v5")
    assert "embedded" in refused(capsys, tmp_path, file, "--dataset", "embedded:hopper-medium")
    wide = sb3_zip(tmp_path / "wide.zip", sb3_ppo(width=2)[0], action_space={})
    assert "2 actions" in refused(capsys, tmp_path, wide, "--env_id", "Pendulum-v1")


def test_statistics_of_another_size_or_form_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    vecnormalize(tmp_path / "four.pkl", np.ones(4), np.ones(4))
    (tmp_path / "no.json").write_text('{"average": [1]}')
    (tmp_path / "bad.json").write_text("{")
    vecnormalize(tmp_path / "cut.pkl", np.ones(3), np.ones(3))
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "cut.pkl").read_bytes()[:80])
    (tmp_path / "zero.json").write_text('{"mean": [0, 0, 0], "std": [1, 0, 1]}')
    for name in ("four.pkl", "no.json", "bad.json", "cut.pkl", "zero.json", "absent.json"):
        assert name in refused(capsys, tmp_path, file, "--normalizer", str(tmp_path / name)) or name == "four.pkl"


def test_a_dataset_without_a_policy_or_with_half_of_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = d4rl_file(tmp_path / "data.hdf5")
    with h5py.File(file, "a") as opened:
        del opened["metadata/policy/last_fc/bias"]
    assert "last_fc/bias" in refused(capsys, tmp_path, file)
    with h5py.File(file, "a") as opened:
        del opened["metadata/policy"]
    assert "holds no policy" in refused(capsys, tmp_path, file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metadata/policy/obs_clip", "five"),
        ("metadata/policy/obs_clip", np.ones(2)),
        ("metadata/policy/obs_std", np.zeros(3)),
        ("metadata/policy/fc0/weight", np.ones(3)),
        ("observations", np.zeros(50, np.float32)),
    ],
)
def test_a_dataset_whose_arrays_are_no_policys_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    file, _ = d4rl_file(tmp_path / "data.hdf5")
    with h5py.File(file, "a") as opened:
        opened["metadata/policy/obs_mean"] = opened["metadata/policy/obs_std"] = np.ones(3)
        if name in opened:
            del opened[name]
        opened[name] = value
    refused(capsys, tmp_path, file)


def test_what_is_no_policy_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.onnx").write_bytes(b"\x00\x01\x02")
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    data = d4rl_file(tmp_path / "data.hdf5")[0]
    for name in ("notes.txt", "empty.pt", "other.zip", "absent.zip"):
        refused(capsys, tmp_path, tmp_path / name)
    clone = ["--family", "deterministic", "--dataset", str(data), "--episodes", "1"]
    refused(capsys, tmp_path, tmp_path / "x.onnx", *clone)
    refused(capsys, tmp_path, "no_such_module:function", *clone)


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0]), tmp_path / "x.ckpt"
    target.write_text("mine")
    assert main(["policy", "import", str(file), "--out", str(target), "--episodes", "0"]) == 2
    assert target.read_text() == "mine"


def test_a_file_beside_the_result_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, notes = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0]), tmp_path / "x.json"
    notes.write_text("mine")
    for out in ("x.ckpt", "x.json"):
        assert main(["policy", "import", str(file), "--out", str(tmp_path / out), "--episodes", "0"]) == 2
    assert notes.read_text() == "mine" and not (tmp_path / "x.ckpt").exists()


def test_an_option_that_does_not_apply_to_a_zip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    for option, value in (("--family", "deterministic"), ("--mean", "linear")):
        assert f"{option}: it does not apply" in refused(capsys, tmp_path, file, option, value)


@pytest.mark.parametrize("told", ["normalize: true", "- - - normalize\n    - true", "normalize: dict(norm_obs=True)"])
def test_a_zip_that_was_normalised_is_not_imported_without_its_statistics(
    told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sb3_zip(tmp_path / "agent.zip", sb3_sac()[0])
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/config.yml").write_text(told)
    assert "--normalizer none" in refused(capsys, tmp_path, file)
    assert main(["policy", "inspect", str(file), "--normalizer", "none"]) == 0
    (tmp_path / "agent/config.yml").write_text("normalize: dict(norm_obs=False, norm_reward=True)")
    assert main(["policy", "inspect", str(file)]) == 0


def test_statistics_of_another_checkpoint_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sb3_zip(tmp_path / "rl_model_200_steps.zip", sb3_sac()[0])
    vecnormalize(tmp_path / "rl_model_vecnormalize_100_steps.pkl", np.ones(3), np.ones(3))
    assert "vecnormalize_100_steps" in refused(capsys, tmp_path, file)


@pytest.mark.parametrize("beside", ["env_stats.pkl", "VecNormalize.pkl", "../vecnormalize.pkl", "agent/stats.pkl"])
def test_statistics_of_any_name_are_asked_about(
    beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models/agent").mkdir(parents=True)
    file = sb3_zip(tmp_path / "models/agent.zip", sb3_sac()[0])
    (tmp_path / "models/other.pkl").write_bytes(b"a pickle of something else")
    assert main(["policy", "inspect", str(file)]) == 0
    vecnormalize(tmp_path / "models" / beside, np.ones(3), np.ones(3))
    assert f"{Path(beside).name} beside it is a VecNormalize" in refused(capsys, tmp_path, file)


def test_an_option_that_does_not_apply_to_a_black_box_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--normalizer", "s.json"), ("--out", "x.ckpt"), ("--states", "5"), ("--mean", "tanh")):
        assert main(["policy", "import", "module:function", "--family", "gaussian", option, value]) == 2
        assert f"o2o: {option}: it does not apply to module:function" in capsys.readouterr().err
