"""What environments return and promise: taken where it can only mean one thing, else refused by name in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces

from o2o_lightning.cli.main import main
from o2o_lightning.data.check import check
from o2o_lightning.data.hdf5 import read_hdf5
from o2o_lightning.data.module import OfflineData
from o2o_lightning.envs import make as making
from o2o_lightning.envs.episodes import Evaluator
from o2o_lightning.envs.make import env_spec, make_env
from o2o_lightning.errors import Failure, UserError
from o2o_lightning.replay.interaction import Interaction
from o2o_lightning.replay.ring import Ring

BOX = spaces.Box(-9, 9, (3,), np.float32)


class Odd(gym.Env[Any, Any]):
    """Returns what it was made with from its second step on."""

    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, observation: Any = (1, 2, 3), reward: Any = 2.0, flag: Any = False, space: Any = BOX) -> None:
        self.observation_space = space
        self.observation, self.reward, self.flag, self.steps = observation, reward, flag, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps < 2:
            return np.zeros(3, np.float32), 0.0, False, False, {}
        return self.observation, self.reward, self.flag, False, {}


class Leaving(Odd):
    def __init__(self, at: str = "step", kind: type[BaseException] = SystemExit) -> None:
        super().__init__()
        self.at, self.kind = at, kind
        self.leave("making")

    def leave(self, where: str) -> None:
        if where == self.at:
            raise self.kind("no licence")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.leave("reset")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.leave("step")
        return super().step(action)


class Unbounded(Odd):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


CAMERA = spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def toys() -> Any:
    finite = spaces.Box(-1, 1, (1,), np.float32)
    gym.register("O2OOdd-v0", Odd, max_episode_steps=5)
    gym.register("O2OLeaving-v0", Leaving, max_episode_steps=5)
    gym.register("O2OUnbounded-v0", Unbounded, max_episode_steps=5)
    gym.register(
        "O2OBounded-v0",
        lambda: gym.wrappers.TransformAction(Unbounded(), lambda action: action, finite),
        max_episode_steps=5,
    )
    yield
    for name in ("Odd", "Leaving", "Unbounded", "Bounded"):
        del gym.registry[f"O2O{name}-v0"]


def second_step(**returned: Any) -> Any:
    env = make_env("O2OOdd-v0", None, (), returned)
    env.reset(seed=0)
    for _ in range(2):
        found = env.step(np.zeros(1, np.float32))
    return found


@pytest.mark.parametrize("reward", [np.array([-1.5]), np.array([[-1.5]]), np.float64(-1.5), np.array(-1.5)])
def test_a_reward_of_one_element_is_that_number(reward):
    found = second_step(reward=reward)[1]
    assert type(found) is float and found == -1.5


def test_flags_of_one_element_are_bools():
    assert second_step(flag=np.array([True]))[2] is True and second_step(flag=np.bool_(False))[2] is False


@pytest.mark.parametrize(("returned", "said"), [
    ({"reward": np.zeros(2)}, r"its reward has shape \(2,\), and a number is needed"),
    ({"reward": [1.0, 2.0]}, r"its reward has shape \(2,\)"),
    ({"reward": "high"}, "its reward is 'high', and a number is needed"),
    ({"reward": None}, "its reward is None"),
    ({"flag": "yes"}, "its 'terminated' is 'yes'"),
    ({"observation": np.zeros(5, np.float32)}, "its observation has 5 values, its space 3"),
    ({"observation": np.float32(1)}, "its observation has 1 values, its space 3"),
    ({"observation": np.zeros(1, np.float32)}, "its observation has 1 values, its space 3"),
])  # fmt: skip
def test_what_is_no_transition_is_refused_with_environment_and_step(returned, said):
    with pytest.raises(UserError, match=f"environment O2OOdd-v0: step 2 of an episode: {said}") as found:
        second_step(**returned)
    assert found.value.exit_code == 2


@pytest.mark.parametrize(("returned", "said"), [
    ({"reward": np.nan}, "its reward is NaN"),
    ({"reward": 1e300}, r"its reward is 1e\+300, beyond float32"),
    ({"reward": -np.inf}, "its reward is infinite"),
    ({"observation": np.array([0, np.nan, 0])}, "value 1 of its observation is NaN"),
    ({"observation": np.array([0, 0, 1e300])}, "value 2 of its observation is infinite"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_not_finite_is_named(returned, said):
    with pytest.raises(Failure, match=f"environment O2OOdd-v0: step 2 of an episode: {said}"):
        second_step(**returned)


@pytest.mark.parametrize("returned", [{"reward": np.zeros(2)}, {"observation": np.zeros(1)}, {"reward": None}])
def test_training_and_evaluation_refuse_alike_and_nothing_is_stored(returned):
    ring = Ring(9, 3, 1)
    interaction = Interaction(lambda: make_env("O2OOdd-v0", None, (), returned), ring, 0)
    with pytest.raises(UserError) as training:
        for _ in range(3):
            interaction.step(lambda _: np.zeros(1, np.float32))
    with pytest.raises(UserError) as evaluation:
        Evaluator("O2OOdd-v0", 3, 1, 0, None, (), returned).run(lambda states: np.zeros((len(states), 1), np.float32))
    assert str(training.value) == str(evaluation.value) and len(ring) == 1


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
@pytest.mark.parametrize("at", ["making", "reset", "step"])
def test_a_simulator_that_would_end_the_process_is_one_line(at, kind):
    evaluator = Evaluator("O2OLeaving-v0", 3, 1, 0, None, (), {"at": at, "kind": kind})
    with pytest.raises(UserError, match=rf"O2OLeaving-v0: .*would end the process \({kind.__name__}: no licence\)"):
        evaluator.run(lambda states: np.zeros((len(states), 1), np.float32))


def test_a_policy_that_is_not_finite_is_not_called_an_environment_at_fault():
    with pytest.raises(Failure, match="step 1 of an episode: the policy's action is not finite"):
        Evaluator("O2OOdd-v0", 3, 1, 0, None).run(lambda states: np.full((len(states), 1), np.nan, np.float32))


# ---- what environments promise ---------------------------------------------------------------------------------------


def test_the_remedy_for_infinite_bounds_works():
    with pytest.raises(UserError, match=r"infinite .*gymnasium\.wrappers\.TransformAction"):
        env_spec("O2OUnbounded-v0")
    assert env_spec("O2OBounded-v0").action_high.tolist() == [1.0]


def test_images_are_refused_wherever_they_come_from(tmp_path):
    import h5py

    with pytest.raises(UserError, match=r"environment O2OOdd-v0: its observation is an image, \(8, 8, 3\) of uint8"):
        env_spec("O2OOdd-v0", kwargs={"space": CAMERA})
    parts = spaces.Dict({"camera": CAMERA, "joints": BOX})
    with pytest.raises(UserError, match="its observation 'camera' is an image"):
        env_spec("O2OOdd-v0", kwargs={"space": parts})
    assert env_spec("O2OOdd-v0", layout=("joints",), kwargs={"space": parts}).observation_dim == 3
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.zeros((6, 8, 8, 3), np.uint8)
        file["actions"] = np.zeros((6, 1), np.float32)
        file["rewards"], file["terminals"] = np.zeros(6), np.zeros(6)
    assert [row.status for row in check(read_hdf5(tmp_path / "a.hdf5"))] == ["fail"]


def test_a_part_that_cannot_be_flattened_matters_only_where_it_is_taken():
    nested = {"observation": BOX, "achieved_goal": spaces.Dict({"a": spaces.Discrete(3)}), "desired_goal": BOX}
    found = env_spec("O2OOdd-v0", 3, kwargs={"space": spaces.Dict(nested)})
    assert (found.layout, found.observation_dim) == (("observation",), 3)
    with pytest.raises(UserError, match=r"its observation 'achieved_goal\.a' is Discrete"):
        env_spec("O2OOdd-v0", layout=("achieved_goal",), kwargs={"space": spaces.Dict(nested)})


def test_a_simulator_too_new_for_its_environments_is_named(monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    versions = {"mujoco": "4.0.0", "gymnasium-robotics": "1.4.2"}
    monkeypatch.setattr(making, "version", versions.__getitem__)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(gym, "make", fail)
    with pytest.raises(UserError, match=r"mujoco 4\.0\.0 is newer than gymnasium-robotics 1\.4\.2 knows.*mujoco<3\.4"):
        env_spec("FetchReach-v4")


@pytest.mark.parametrize("old, today", [
    ("HalfCheetah-v3", "Use HalfCheetah-v4 or HalfCheetah-v5"), ("HandReach-v0", "Use HandReach-v3"),
    ("FetchReach-v1", "Use FetchReach-v4"),
])  # fmt: skip
def test_a_version_of_mujoco_py_names_those_that_are_not(old, today):
    pytest.importorskip("gymnasium_robotics")
    with pytest.raises(UserError, match=f"{today}[.]$"):
        env_spec(old)


def test_what_todays_environment_trips_over_is_not_called_mujoco_py():
    with pytest.raises(UserError, match="unexpected keyword argument 'masss'") as found:
        env_spec("Hopper-v4", kwargs={"masss": 1})
    assert "mujoco-py" not in str(found.value)


@pytest.mark.parametrize("env_id, robotics", [("BipedalWalker-v3", False), ("FetchReach-v4", True)])
def test_a_missing_simulator_is_installed_by_what_brings_it(env_id, robotics, monkeypatch):
    pytest.importorskip("gymnasium_robotics")

    def fail(*_: Any, **__: Any) -> Any:
        raise gym.error.DependencyNotInstalled("it is not there, run `pip install it`")

    monkeypatch.setattr(gym, "make", fail)
    with pytest.raises(UserError, match="run `pip install it`") as found:
        env_spec(env_id)
    assert ("o2o-lightning[robotics]" in str(found.value)) is robotics


# ---- how environments are made ---------------------------------------------------------------------------------------

MODULE = """
import gymnasium as gym, numpy as np
class Toy(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,)); action_space = gym.spaces.Box(-1, 1, (1,))
    def __init__(self, gain=1.0): self.gain = gain
    def reset(self, *, seed=None, options=None): super().reset(seed=seed); return np.zeros(3, np.float32), {}
    def step(self, action): return np.zeros(3, np.float32), np.array([self.gain]), False, False, {}
gym.register("O2OHere-v0", Toy, max_episode_steps=4)
"""


def test_a_module_here_and_its_arguments_go_from_training_to_resume_and_test(tmp_path, monkeypatch, capfd):
    (tmp_path / "o2o_toy_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    argv = ["fit", "--phase", "online", "online=td3", "experiment=scratch", "--data.env_id", "o2o_toy_here:O2OHere-v0"]
    argv += ["--data.env_kwargs", "{gain: 2.5}", "--data.env_steps", "12", "--data.warmup_steps", "3"]
    argv += ["--data.batch_size", "4", "--model.hidden", "[8]", "--data.eval_episodes", "2", "--data.eval_every", "6"]
    try:
        assert main([*argv, "--data.eval_async", "true", "--run_dir", "run"]) == 0, capfd.readouterr().err
        assert main(["resume", "run", "--data.env_steps", "16"]) == 0, capfd.readouterr().err
        last = "run/online/checkpoints/last.ckpt"
        assert main(["test", "--ckpt_path", last, "--data.env_id", "o2o_toy_here:O2OHere-v0", "--run_dir", "run"]) == 0
    finally:
        gym.registry.pop("O2OHere-v0", None)
        sys.modules.pop("o2o_toy_here", None)
    assert json.loads(Path("run/test.json").read_text())["return_mean"] == 4 * 2.5  # steps × gain
    assert json.loads(Path("run/online/summary.json").read_text())["score"]["final"] == 4 * 2.5


def test_arguments_reach_every_environment_of_the_data_and_unknown_ones_are_named():
    data = OfflineData(env_id="Pendulum-v1", env_kwargs={"max_episode_steps": 7})
    data.setup("fit")
    assert data.env is not None and data.env.horizon == 7
    data.eval_episodes = 1
    assert data.evaluate(lambda states: np.zeros((len(states), 1), np.float32)).lengths == [7]
    with pytest.raises(UserError, match=r"unexpected keyword argument 'masss'.*Check --data\.env_kwargs"):
        OfflineData(env_id="Pendulum-v1", env_kwargs={"masss": 1}).setup("fit")
    with pytest.raises(UserError, match=r"--data\.env_kwargs .*not JSON serializable"):
        OfflineData(env_id="Pendulum-v1", env_kwargs={"mass": {1, 2}})


def test_what_a_model_has_deprecated_is_not_said_to_its_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_env("HalfCheetah-v5").close()
    assert capfd.readouterr() == ("", "") and not [*tmp_path.iterdir()]


def test_another_warning_of_mujoco_is_said_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    )
    state = mujoco.MjData(model)
    state.qpos[0] = np.nan
    with making._unsaid_deprecations():
        mujoco.mj_step(model, state)
    assert "MuJoCo: Nan, Inf or huge value in QPOS" in capfd.readouterr().err and not [*tmp_path.iterdir()]
    assert mujoco.get_mju_user_warning() is None  # in episodes it warns as ever
