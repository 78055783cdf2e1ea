"""`o2o hub`: what is pushed comes back the same and is checked; a hub is a stand-in that the real client speaks to."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_stand_in import COMMIT, hub

from o2o_lightning import load_policy
from o2o_lightning.checkpoint.run import policy_to_take
from o2o_lightning.cli.main import main

O2O = Callable[..., int]
OBSERVATIONS = np.random.default_rng(0).normal(size=(64, 3))
# the client knows its hub from when it is first imported: a process of its own, that takes commands one by one
CLIENT = """
import contextlib, io, json, sys
from o2o_lightning.cli.main import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = main(json.loads(line))
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pendulum: str) -> Path:
    """A finished run of two phases."""
    folder = tmp_path_factory.mktemp("hub") / "run"
    argv = ["fit", "--phase", "all", "phases=[offline,reevaluate]", "steps.offline=6", "steps.reevaluate=6",
            "--data.dataset", pendulum, "--data.batch_size", "4", "--data.eval_episodes", "1", "--model.hidden", "[8]",
            "--trainer.accelerator", "cpu", "--run_dir", str(folder)]  # fmt: skip
    assert main(argv) == 0
    return folder


@pytest.fixture
def pushed(run: Path, tmp_path: Path, o2o: O2O) -> Path:
    assert o2o("hub", "push", run, tmp_path / "pushed") == 0
    return tmp_path / "pushed"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sealed_again(folder: Path) -> None:
    """The digests of what is there now, as who tampers would write them."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents(folder).items()}
    digests.pop("digests.json")
    (folder / "digests.json").write_text(json.dumps({"format": 1, "sha256": digests}))


# ---- folders -----------------------------------------------------------------------------------------------------


def test_what_is_pulled_is_what_the_run_stands_for(run: Path, pushed: Path, tmp_path: Path, o2o: O2O) -> None:
    assert o2o("hub", "pull", pushed, "--to", tmp_path / "pulled") == 0
    found = contents(tmp_path / "pulled")
    assert {*found} == {
        "README.md", "policy.ckpt", "summary.json", "digests.json", "offline/config.yaml", "reevaluate/config.yaml"
    }  # fmt: skip
    assert found["policy.ckpt"] == policy_to_take(run / "reevaluate").read_bytes()
    assert found["summary.json"] == (run / "summary.json").read_bytes()
    assert found["offline/config.yaml"] == (run / "offline/config.yaml").read_bytes()
    assert 'load_policy("policy.ckpt")' in found["README.md"].decode()
    mine, theirs = load_policy(policy_to_take(run / "reevaluate")), load_policy(tmp_path / "pulled/policy.ckpt")
    assert (mine(OBSERVATIONS) == theirs(OBSERVATIONS)).all()


def test_a_pulled_policy_is_gone_on_with_and_reported(pushed: Path, pendulum: str, tmp_path: Path, o2o: O2O) -> None:
    assert o2o("hub", "pull", pushed, "--to", tmp_path / "pulled") == 0
    assert o2o(
        "fit", "--phase", "align", "--data.dataset", pendulum, "--model.init_from", tmp_path / "pulled/policy.ckpt",
        "--trainer.max_steps", 4, "--data.batch_size", 4, "--data.eval_episodes", 1, "--trainer.accelerator", "cpu",
        "--run_dir", tmp_path / "on",
    ) == 0  # fmt: skip
    assert o2o("report", tmp_path / "pulled", "--out", tmp_path / "report") == 0


def broken(kind: str, folder: Path) -> None:
    policy = folder / "policy.ckpt"
    content = policy.read_bytes()
    if kind == "a flipped bit":
        policy.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif kind == "a missing file":
        (folder / "summary.json").unlink()
    elif kind == "a pipe":
        policy.unlink()
        os.mkfifo(policy)
    elif kind == "another file named":
        digests = json.loads((folder / "digests.json").read_text())
        digests["sha256"]["../outside"] = "0" * 64
        (folder / "digests.json").write_text(json.dumps(digests))
    elif kind == "no digests":
        (folder / "digests.json").unlink()
    elif kind == "digests of another kind":
        (folder / "digests.json").write_text("[1, 2")
    elif kind == "no checkpoint":
        torch.save({"state_dict": {}}, policy)
        sealed_again(folder)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("a flipped bit", "its policy.ckpt is not what was pushed (another SHA-256)"),
        ("a missing file", "its summary.json is missing"),
        ("a pipe", "its policy.ckpt is missing"),
        ("another file named", "its digests.json names other files"),
        ("no digests", "it has no digests.json"),
        ("digests of another kind", "it is no policy that `o2o hub push` has pushed"),
        ("no checkpoint", "it was not written by o2o"),
    ],
)
def test_what_has_changed_or_is_something_else_is_refused_and_leaves_nothing(
    kind: str, said: str, pushed: Path, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(kind, pushed)
    before = {*tmp_path.iterdir()}
    assert o2o("hub", "pull", pushed, "--to", tmp_path / "pulled") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert {*tmp_path.iterdir()} == before


class Touches:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_would_run_code_runs_none_though_its_digests_are_right(
    pushed: Path, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"o2o_lightning": Touches(tmp_path / "has-run")}, pushed / "policy.ckpt")
    sealed_again(pushed)
    assert o2o("hub", "pull", pushed, "--to", tmp_path / "pulled") == 2
    assert "something other than tensors and plain values" in capsys.readouterr().err
    assert not (tmp_path / "has-run").exists() and not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    "argv, said",
    [
        ("push {run} {pushed}", "{pushed}: it exists, and nothing is written over"),
        ("pull {pushed} --to {run}", "{run}: it exists, and nothing is written over"),
        ("pull {tmp}/nowhere", "nowhere: there is no such folder"),
        ("push {tmp}/nowhere {tmp}/x", "nowhere: it is no run directory"),
        ("push {tmp} {tmp}/x", "it is no run directory"),
    ],
)
def test_what_cannot_be_pushed_or_pulled_is_one_line(
    argv: str, said: str, run: Path, pushed: Path, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"run": run, "pushed": pushed, "tmp": tmp_path}
    before = contents(run) | contents(pushed)
    assert o2o("hub", *argv.format(**places).split()) == 2
    error = capsys.readouterr().err
    assert said.format(**places) in error and error.count("\n") == 1
    assert contents(run) | contents(pushed) == before and not (tmp_path / "x").exists()


# ---- a hub -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_hub(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, dict[str, bytes]], Callable[..., tuple[int, str]]]]:
    """The repositories of a hub, and `o2o hub` with the hub's own client: its exit code, and what it said."""
    pytest.importorskip("huggingface_hub")
    repositories = {"me/photos": {"cat.png": b"another's"}}
    with hub(repositories) as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_TOKEN": "a token"}
        words = [sys.executable, "-c", CLIENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(words, env=os.environ | environment, **pipes) as process:

            def o2o_hub(*argv: Any) -> tuple[int, str]:
                process.stdin.write(json.dumps(["hub", *map(str, argv)]) + "\n")
                process.stdin.flush()
                return tuple(json.loads(process.stdout.readline()))

            yield repositories, o2o_hub
            process.stdin.close()


def test_a_repository_of_a_hub_is_made_filled_once_and_pulled(at_hub: Any, run: Path, tmp_path: Path) -> None:
    repositories, o2o_hub = at_hub
    code, said = o2o_hub("push", run, "hf:me/walker")
    assert code == 0, said
    held = {**repositories["me/walker"]}
    code, said = o2o_hub("push", run, "hf:me/walker")
    assert (code, repositories["me/walker"]) == (2, held) and "it holds 6 files, and nothing is written over" in said
    code, said = o2o_hub("pull", "hf:me/walker", "--to", tmp_path / "pulled")
    assert code == 0 and f"from hf:me/walker at {COMMIT}" in said
    held.pop(".gitattributes")
    assert contents(tmp_path / "pulled") == held


@pytest.mark.parametrize(
    "argv, said",
    [
        ("pull hf:me/other", "hf:me/other: the hub has no such repository"),
        ("pull hf:me/photos@v3", "hf:me/photos@v3: the repository has no such revision"),
        ("pull hf:me/photos", "hf:me/photos: it is no policy that `o2o hub push` has pushed"),
        ("pull hf:a/b/c", "hf:a/b/c: that is no name of a repository"),
        ("pull hf:gone/walker", "hf:gone/walker: the hub can't be reached ("),
        ("push {run} hf:full/walker", "hf:full/walker: the hub refused (403 Forbidden: Storage quota exceeded"),
    ],
)
def test_what_a_hub_refuses_or_has_not_is_one_line(
    argv: str, said: str, at_hub: Any, run: Path, tmp_path: Path
) -> None:
    to = ["--to", tmp_path / "x"] if "pull" in argv else []
    code, found = at_hub[1](*argv.format(run=run).split(), *to)
    errors = [line for line in found.splitlines() if line.startswith("o2o: ")]
    assert code == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in found
    assert not (tmp_path / "x").exists()


def test_a_missing_client_is_named_with_its_extra(
    run: Path, tmp_path: Path, o2o: O2O, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert o2o("hub", "push", run, "hf:me/walker") == 2
    assert "pip install 'o2o-lightning[hub]'" in capsys.readouterr().err
