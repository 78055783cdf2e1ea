"""What a phase hands on, and that nothing else is ever loaded, let alone executed."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HIDDEN, Fit, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from o2o_lightning.checkpoint.handover import load_weights, read_handover
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.o2.reference import Reference
from o2o_lightning.nn.critics import Critics
from o2o_lightning.phases.align import Align
from o2o_lightning.phases.online import Online
from o2o_lightning.phases.reevaluate import Reevaluate


def refusal(path: Path, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_handover(path, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rewritten(run: Run, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the run's checkpoint after ``change`` has edited it in place."""
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


# ---- what is handed on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["offline", "reevaluate", "align"])
def test_a_checkpoint_holds_tensors_and_plain_values_only(chain: dict[str, Run], phase: str) -> None:
    checkpoint = torch.load(chain[phase].checkpoint, weights_only=True)
    assert checkpoint["o2o"]["phase"] == phase
    assert checkpoint["global_step"] == 24
    assert checkpoint["o2o"]["env_id"] == "Pendulum-v1"
    assert len(checkpoint["o2o"]["manifest"]["sha256"]) == 64


def test_an_online_checkpoint_loads_as_safely_and_keeps_multiplier_and_reference(
    chain: dict[str, Run], fit: Fit, pendulum: str
) -> None:
    run = fit(
        lambda: Online(td3.Online(), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=8, warmup_steps=2, batch_size=32, eval_episodes=1),
    )
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    state = checkpoint["state_dict"]
    assert torch.equal(state["method.log_multiplier"], run.module.method.log_multiplier.detach())
    assert any(key.startswith("method.reference_policy.") for key in state)
    assert read_handover(run.checkpoint).phase == "online"


def test_the_next_phase_gets_the_same_networks_and_normaliser(chain: dict[str, Run]) -> None:
    run = chain["align"]
    handover = read_handover(run.checkpoint)
    observation, action = torch.randn(9, 3), torch.rand(9, 1) * 2 - 1
    method = run.module.method
    assert torch.equal(handover.build_actor()(observation), method.actor(observation))
    assert torch.equal(handover.build_actor("offline_actor")(observation), method.offline_actor(observation))
    assert torch.equal(handover.build_critic()(observation, action), method.critic(observation, action))
    targets = handover.build_critic("target_critic")
    assert torch.equal(targets(observation, action), method.target_critic(observation, action))
    assert torch.equal(handover.build_normalizer()(observation), run.module.normalizer(observation))
    assert not torch.equal(handover.build_normalizer()(observation), observation)


def test_the_next_phase_keeps_the_policys_normaliser_on_another_dataset(
    chain: dict[str, Run], fit: Fit, tmp_path: Path
) -> None:
    from data_files import record_pendulum

    other = record_pendulum(tmp_path / "other.hdf5", 5, 8)
    run = fit(
        lambda: Reevaluate(td3.Reevaluate(hidden=HIDDEN), str(chain["offline"].checkpoint)),
        lambda: OfflineData(dataset=str(other), batch_size=32),
        1,
    )
    assert torch.equal(run.module.normalizer.mean, chain["offline"].module.normalizer.mean)
    assert run.trainer.datamodule.normalizer is run.module.normalizer  # type: ignore[attr-defined]


def test_scores_travel_with_the_policy(chain: dict[str, Run]) -> None:
    handover = read_handover(chain["align"].checkpoint)
    assert handover.scores == chain["align"].module.scores
    assert handover.returns == chain["align"].module.returns


# ---- what version 0.1 has written --------------------------------------------------------------------------------

OUTSIDE = ("log_multiplier", "threshold", "reference_score", "log_lagrange", "log_temperature", "running_return")


def former(checkpoint: dict[str, Any]) -> None:
    """``checkpoint`` as version 0.1 wrote it: networks in ``agent``, all else of a phase beside it."""

    def name(key: str) -> str:
        key = key.removeprefix("method.").replace("reference_policy.", "reference.")
        key = {"threshold_now": "threshold"}.get(key, key)
        return key if key in OUTSIDE or key.startswith("reference.") else f"agent.{key}"

    state = {name(key): value for key, value in checkpoint["state_dict"].items()}
    if checkpoint["o2o"]["phase"] in ("reevaluate", "align") and "td3" in checkpoint["o2o"]["algorithm"]:
        copied = {key: value for key, value in state.items() if key.startswith("agent.offline_actor.")}
        state |= {key.replace("offline_actor", "target_actor"): value.clone() for key, value in copied.items()}
    checkpoint["state_dict"] = state
    for optimizer in checkpoint["optimizer_states"]:
        for group in optimizer["param_groups"]:
            group["param_names"] = [name(key) for key in group["param_names"]]


NEXT: dict[str, tuple[Callable[[str], Any], type[OfflineData]]] = {
    "offline": (lambda at: Reevaluate(td3.Reevaluate(hidden=HIDDEN), at), OfflineData),
    "reevaluate": (lambda at: Align(td3.Align(), at), OfflineData),
    "align": (lambda at: Online(td3.Online(), at), OnlineData),
}


@pytest.mark.parametrize("phase", NEXT)
def test_a_checkpoint_of_version_0_1_begins_the_next_phase_as_one_of_now(
    chain: dict[str, Run], fit: Fit, pendulum: str, tmp_path: Path, phase: str
) -> None:
    old = rewritten(chain[phase], tmp_path / "old.ckpt", former)
    keys = torch.load(old, weights_only=True)["state_dict"]
    assert keys and all(key.startswith("agent.") for key in keys)
    make, kind = NEXT[phase]
    sizes = {"dataset": pendulum, "batch_size": 32, "eval_episodes": 1}
    sizes |= {"env_steps": 8, "warmup_steps": 2} if kind is OnlineData else {}
    steps = -1 if kind is OnlineData else 4
    runs = [fit(lambda at=at: make(str(at)), lambda: kind(**sizes), steps) for at in (chain[phase].checkpoint, old)]
    for found in ("start", "end"):
        one, two = (run.start if found == "start" else run.end() for run in runs)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
    moments = [run.start_moments for run in runs]
    assert moments[0].keys() == moments[1].keys() and bool(moments[0]) == (phase != "offline")
    for name, state in moments[0].items():
        assert all(torch.equal(value, moments[1][name][key]) for key, value in state.items()), name
    assert runs[0].metrics() == runs[1].metrics()


def test_the_reference_policy_of_an_online_run_of_version_0_1_is_found(
    chain: dict[str, Run], fit: Fit, pendulum: str, tmp_path: Path, o2o: Callable[..., int]
) -> None:
    run = fit(
        lambda: Online(td3.Online(reference=Reference("frozen", "offline")), str(chain["align"].checkpoint)),
        lambda: OnlineData(dataset=pendulum, env_steps=8, warmup_steps=2, batch_size=32, eval_episodes=1),
    )
    old = rewritten(run, tmp_path / "old.ckpt", former)
    keys = torch.load(old, weights_only=True)["state_dict"].keys()
    assert {"log_multiplier", "threshold", "reference_score"} < keys
    assert any(key.startswith("reference.") for key in keys) and not any(key.startswith("method.") for key in keys)
    now, before = read_handover(run.checkpoint), read_handover(old)
    observation = torch.randn(9, 3)
    for name in ("actor", "offline_actor", "target_actor", "reference_policy"):
        assert before.has(name)
        assert torch.equal(before.build_actor(name)(observation), now.build_actor(name)(observation))
    assert not torch.equal(before.build_actor("reference_policy")(observation), before.build_actor()(observation))
    returns = []
    for path in (run.checkpoint, old):
        folder = tmp_path / path.stem
        line = ("--model.policy", "reference", "--data.eval_episodes", 1, "--run_dir", folder)
        assert o2o("test", "--ckpt_path", path, *line) == 0
        returns.append(json.loads((folder / "test.json").read_text())["return_mean"])
    assert returns[0] == returns[1]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "source", "phrase"),
    [
        (
            lambda at: Reevaluate(td3.Reevaluate(), at),
            "align",
            "was written by phase 'align', and `--phase reevaluate` starts from offline",
        ),
        (lambda at: Reevaluate(td3.Reevaluate(), at), "reevaluate", "was written by phase 'reevaluate'"),
        (lambda at: Align(td3.Align(), at), "align", "`--phase align` starts from reevaluate or offline"),
    ],
)
def test_a_checkpoint_of_another_phase_is_refused_with_the_one_that_fits(
    chain: dict[str, Run], fit: Fit, pendulum: str, make: Any, source: str, phrase: str
) -> None:
    with pytest.raises(UserError) as caught:
        fit(lambda: make(str(chain[source].checkpoint)), lambda: OfflineData(dataset=pendulum), 1)
    assert phrase in str(caught.value)
    assert "Pass --model.init_from" in str(caught.value)


def test_a_policy_of_other_sizes_is_refused(chain: dict[str, Run], fit: Fit) -> None:
    with pytest.raises(UserError, match="takes 3 observation values and gives 1 action values, the data has 11 and 3"):
        fit(
            lambda: Reevaluate(td3.Reevaluate(), str(chain["offline"].checkpoint)),
            lambda: OfflineData(dataset="embedded:hopper-medium"),
            1,
        )


def test_weights_of_other_shapes_are_refused_by_name() -> None:
    state = Critics(3, 1, (8,), layer_norm=True).state_dict()
    with pytest.raises(UserError, match=r"here: 'members\.\d\.\S+' has shape .* this network needs .* same sizes"):
        load_weights(Critics(3, 1, (9,), layer_norm=True), state, "here")
    with pytest.raises(UserError, match="has shape nothing, this network needs"):
        load_weights(nn.Linear(2, 1), {"weight": torch.zeros(1, 2)}, "here")
    with pytest.raises(UserError, match="this network needs nothing"):
        load_weights(nn.Linear(2, 1, bias=False), {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, "here")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused(chain: dict[str, Run], tmp_path: Path, keep: float) -> None:
    whole = chain["offline"].checkpoint.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "cut off" in refusal(path)


@given(content=st.binary(max_size=80).flatmap(lambda tail: st.sampled_from((tail, b"\x80\x02" + tail))))
@settings(max_examples=50)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_bytes_are_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.ckpt"
        path.write_bytes(content)
        refusal(path)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02J\x00"])
def test_bytes_that_break_the_unpickler_are_refused(tmp_path: Path, content: bytes) -> None:
    # an empty stack and a number that is cut off: IndexError and struct.error inside torch.load
    path = tmp_path / "noise.ckpt"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_a_payload_is_refused_and_not_executed(
    tmp_path: Path, chain: dict[str, Run], zipped: bool
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "payload.ckpt"
    checkpoint = torch.load(chain["offline"].checkpoint, weights_only=True)
    checkpoint["hyper_parameters"] = Payload(marker)
    if zipped:
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps({"o2o": Payload(marker)}))
    said = "other than tensors and plain values, so it was not loaded" if zipped else "cannot be read (it is no archive"
    assert said in refusal(path)
    assert not marker.exists()
    # the same bytes are dangerous where they are trusted
    if not zipped:
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.ckpt"
    text.write_text("not a checkpoint\n" * 20)
    assert "it is no archive of torch.save's" in refusal(text)
    for name, value in (("dict", {"state_dict": {}}), ("tensor", torch.zeros(3)), ("wrong", {"o2o": [1, 2]})):
        path = tmp_path / f"{name}.ckpt"
        torch.save(value, path)
        assert "was not written by o2o" in refusal(path)
    assert "a directory" in refusal(tmp_path)
    assert "missing" in refusal(tmp_path / "none.ckpt")


def test_an_incomplete_hand_over_is_refused(chain: dict[str, Run], tmp_path: Path) -> None:
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "no actor": lambda c: c["o2o"].pop("actor"),
        "no weights": lambda c: c.pop("state_dict"),
        "odd format": lambda c: c["o2o"].update(format="one"),
        "unknown key": lambda c: c["o2o"].update(surprise=1),
    }
    for i, (name, change) in enumerate(changes.items()):
        message = refusal(rewritten(chain["offline"], tmp_path / f"{i}.ckpt", change))
        assert "its hand-over part is incomplete" in message, name


def test_a_checkpoint_of_a_newer_format_asks_for_an_upgrade(chain: dict[str, Run], tmp_path: Path) -> None:
    path = rewritten(chain["offline"], tmp_path / "new.ckpt", lambda c: c["o2o"].update(format=99, surprise=1))
    assert "Upgrade" in refusal(path)


def test_a_policy_without_a_critic_says_to_re_evaluate_first(chain: dict[str, Run], tmp_path: Path) -> None:
    def drop(checkpoint: dict[str, Any]) -> None:
        checkpoint["o2o"]["critic"] = None

    handover = read_handover(rewritten(chain["offline"], tmp_path / "policy.ckpt", drop))
    message = r"a policy without an action-value critic\. Run `--phase reevaluate` on it first"
    with pytest.raises(UserError, match=message):
        handover.build_critic()


def test_the_command_line_refuses_a_bad_checkpoint_in_one_line(
    o2o: Callable[..., int], tmp_path: Path, pendulum: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps({"o2o": Payload(tmp_path / "executed")}))
    code = o2o(
        "fit", "--phase", "align", "--run_dir", tmp_path / "run", "--data.dataset", pendulum,
        "--model.init_from", path, "--trainer.max_steps", 1,
    )  # fmt: skip
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("o2o: ")]
    assert len(lines) == 1 and str(path) in lines[0]
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()
