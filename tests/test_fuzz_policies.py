"""Damaged and made-up policy files: each is the policy that was written, or one line, soon and in little memory."""

import json
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from policy_files import d4rl_file, perceptron, sb3_ppo, sb3_sac, sb3_zip, vecnormalize
from torch import nn

from o2o_lightning.errors import UserError
from o2o_lightning.nn.actor import FloatArray
from o2o_lightning.policies.black_box import black_box
from o2o_lightning.policies.onnx_layers import NotLayersError
from o2o_lightning.policies.read import read_policy, recognise
from o2o_lightning.policies.statistics import read_statistics

STATES = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
SECONDS, KILOBYTES = 20, 500_000  # of the processor; WAITED is for what would wait for ever
WAITED = 300
CHECKED = ("sb3", "state_dict")  # formats whose zip knows of a changed byte


def processor() -> float:
    """Seconds that this process and its children took of it: on a busy machine the clock says nothing."""
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in used)


@contextmanager
def limits() -> Iterator[None]:
    """Ends what takes too long, and refuses what took too much memory."""

    def late(*_: object) -> None:
        raise AssertionError(f"not ended after {WAITED} s")

    began, before = processor(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(WAITED)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert processor() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES


def files(folder: Path) -> dict[str, Path]:
    """A sound file of each format."""
    torch.manual_seed(0)
    net = perceptron([3, 8, 1], nn.ReLU)
    torch.save({"actor": {f"net.{name}": value for name, value in net.state_dict().items()}}, folder / "a.pt")
    nodes = [helper.make_node("Gemm", ["o", "w", "b"], ["h"], transB=1), helper.make_node("Tanh", ["h"], ["y"])]
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (("w", (1, 3)), ("b", (1,)))
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("o", 3), ("y", 1))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), folder / "a.onnx")
    (alone := folder / "statistics").mkdir()  # beside the zip they would be asked about
    return {
        "sb3": sb3_zip(folder / "a.zip", sb3_sac()[0]),
        "state_dict": folder / "a.pt",
        "d4rl": d4rl_file(folder / "a.hdf5")[0],
        "onnx": folder / "a.onnx",
        "statistics": vecnormalize(alone / "a.pkl", np.ones(3), np.ones(3)),
    }


def read(path: Path, format: str) -> FloatArray | None:
    """The actions of a file, and None where it is refused in one line."""
    try:
        with limits():
            if format == "statistics":
                return read_statistics(path)[0].numpy(STATES)
            recognise(str(path))
            if format == "onnx":
                with suppress(NotLayersError):
                    return read_policy(str(path), format).actions(STATES)
                return black_box(str(path), "onnx", (3, 1), None).act(STATES)
            return read_policy(str(path), format).actions(STATES)
    except UserError as error:
        assert "\n" not in str(error) and str(error)
        return None


def damaged(content: bytes, draw: np.random.Generator) -> bytes:
    """Flipped bits, a cut, a block of zeros or of noise, a block twice."""
    found, size = bytearray(content), len(content)
    start = int(draw.integers(size))
    stop = min(start + int(draw.integers(1, 64)), size)
    match draw.integers(5):
        case 0:
            for at in draw.integers(size, size=draw.integers(1, 4)):
                found[at] ^= 1 << int(draw.integers(8))
        case 1:
            del found[start:]
        case 2:
            found[start:stop] = bytes(stop - start)
        case 3:
            found[start:stop] = draw.bytes(stop - start)
        case _:
            found[start:start] = found[start:stop]
    return bytes(found)


def damage(tmp_path: Path, format: str, times: int) -> None:
    path, draw = files(tmp_path)[format], np.random.default_rng(0)
    sound, content = read(path, format), path.read_bytes()
    assert sound is not None
    for _ in range(times):
        path.write_bytes(damaged(content, draw))
        found = read(path, format)
        if found is not None and format in CHECKED:
            np.testing.assert_array_equal(found, sound)
        assert found is None or np.isfinite(found).all() or format == "statistics"


@pytest.mark.parametrize("format", ["sb3", "state_dict", "d4rl", "onnx", "statistics"])
def test_a_damaged_file_is_the_same_policy_or_one_line(tmp_path: Path, format: str) -> None:
    damage(tmp_path, format, 80)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["sb3", "state_dict", "d4rl", "onnx", "statistics"])
def test_thousands_of_damaged_files_are_the_same_policy_or_one_line(tmp_path: Path, format: str) -> None:
    damage(tmp_path, format, 5000)


TEXTS = st.text(max_size=12) | st.sampled_from(["nan", "1e999", "[", "<class 'torch.nn.modules.activation.ELU'>"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["policy_kwargs", "action_space", "observation_space", "policy_class", "use_sde", "squash_output"]
)
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made_up(tmp_path: Path, make: Callable[[], Any], data: dict[str, Any]) -> None:
    torch.manual_seed(0)
    state, _ = make()
    path = sb3_zip(tmp_path / "a.zip", state, **data)
    try:
        with limits():
            policy = read_policy(str(path), "sb3")
    except UserError as error:
        assert "\n" not in str(error)
        return
    name = "action_net.weight" if make is sb3_ppo else "actor.mu.weight"
    np.testing.assert_array_equal(policy.mean[0], state[name].double())


@pytest.mark.parametrize("make", [sb3_sac, sb3_ppo])
@settings(QUICK, max_examples=40)
@given(data=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_json_beside_the_weights_leaves_them_as_they_are(
    tmp_path: Path, make: Callable[[], Any], data: dict[str, Any]
) -> None:
    made_up(tmp_path, make, data)


@pytest.mark.slow
@pytest.mark.parametrize("make", [sb3_sac, sb3_ppo])
@settings(QUICK, max_examples=2000)
@given(data=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_json_of_thousands_leaves_the_weights_as_they_are(
    tmp_path: Path, make: Callable[[], Any], data: dict[str, Any]
) -> None:
    made_up(tmp_path, make, data)


WORDS = st.sampled_from(
    ["actor", "pi", "net", "mu", "log_std", "std", "v", "critic", "0", "2", "fc1", "weight", "bias"]
)
SHAPES = st.lists(st.sampled_from([0, 1, 3, 8]), max_size=3)


@settings(QUICK, max_examples=80)
@given(entries=st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), SHAPES), max_size=6))
def test_any_names_and_shapes_are_a_policy_or_one_line(
    tmp_path: Path, entries: list[tuple[list[str], list[int]]]
) -> None:
    torch.save({".".join(name): torch.ones(shape) for name, shape in entries}, tmp_path / "a.pt")
    try:
        with limits():
            policy = read_policy(str(tmp_path / "a.pt"), "state_dict")
            assert policy.actions(np.zeros((2, policy.observation_dim), np.float32)).shape == (2, policy.action_dim)
            policy.build_actor()
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [2_000_000_000, 200_000])
def test_a_tiny_zip_that_unpacks_to_much_takes_little(tmp_path: Path, size: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", json.dumps({"x": 1}))
        if size > 10**6:
            with archive.open("policy.pth", "w", force_zip64=True) as member:
                for _ in range(40):
                    member.write(bytes(2**21))
        else:
            for i in range(20_000):
                archive.writestr(f"{i}", b"")
            archive.writestr("policy.pth", b"")
    assert read(tmp_path / "a.zip", "sb3") is None
