"""What environments are made into, before anything acts in them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from data_files import arrays, write
from gymnasium import spaces

from o2o_lightning.checkpoint.handover import Handover
from o2o_lightning.data.module import OfflineData
from o2o_lightning.envs.episodes import Evaluator
from o2o_lightning.envs.make import env_spec, make_env
from o2o_lightning.errors import UserError


class Toy(gym.Env[Any, Any]):
    """Observes ``parts`` in their own order, each filled with its number; never ends an episode."""

    def __init__(self, parts: tuple[str, ...] = (), low: tuple[float, ...] = (-1.0,), space: Any = None) -> None:
        box = spaces.Box(-9, 9, (2,), np.float32)
        self.parts, self.space = parts, space
        own = spaces.Dict(OrderedDict((part, box) for part in parts)) if parts else box
        self.observation_space = own if space is None else space
        self.action_space = spaces.Box(np.array(low, np.float32), np.ones(len(low), np.float32))

    def _observation(self) -> Any:
        if self.space is not None:
            self.space.seed(0)
            return self.space.sample()
        values = OrderedDict((part, np.full(2, i, np.float32)) for i, part in enumerate(self.parts))
        return values or np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        return self._observation(), 1.0, False, False, {}


GOAL = ("observation", "achieved_goal", "desired_goal")


@pytest.fixture(scope="module", autouse=True)
def toys() -> Any:
    gym.register("O2OEndless-v0", Toy)
    gym.register("O2OOrdered-v0", Toy, max_episode_steps=5, kwargs={"parts": ("zebra", "ant")})
    gym.register("O2OGoal-v0", Toy, max_episode_steps=5, kwargs={"parts": GOAL})
    image, one = spaces.Box(0, 255, (96, 96, 3), np.uint8), spaces.Box(-1, 1, (1,))
    made = {
        "Keywords": spaces.Dict(z=one, y=spaces.Box(-1, 1, (3,)), a=one),
        "Nested": spaces.Dict(OrderedDict(z=spaces.Dict(OrderedDict(b=one, a=one)), c=one)),
        "Camera": spaces.Dict(camera=image, state=one),
    }
    for name, space in made.items():
        gym.register(f"O2O{name}-v0", Toy, max_episode_steps=5, kwargs={"space": space})
    gym.register("O2OFixed-v0", Toy, max_episode_steps=5, kwargs={"low": (-1.0, 1.0)})
    yield
    for name in ("Endless", "Ordered", "Goal", "Fixed", *made):
        del gym.registry[f"O2O{name}-v0"]


def test_episodes_of_an_environment_without_a_limit_end_after_1000_steps(capsys: pytest.CaptureFixture[str]) -> None:
    found = Evaluator("O2OEndless-v0", 2, 1, 0, None).run(lambda states: np.zeros((len(states), 1), np.float32))
    assert found.lengths == [1000] and found.returns == [1000.0]
    assert env_spec("O2OEndless-v0").horizon == 1000
    assert capsys.readouterr().err.count("registered without a time limit") == 1


def test_an_action_dimension_without_a_choice_is_refused() -> None:
    with pytest.raises(UserError, match="action dimension 1 has the bounds 1 and 1"):
        make_env("O2OFixed-v0")


@pytest.mark.parametrize("env_id", ["O2OOrdered-v0", "O2OGoal-v0", "O2OKeywords-v0", "O2ONested-v0"])
def test_a_dictionary_is_joined_as_gymnasiums_flatten_observation_joins_it(env_id: str) -> None:
    flat = gym.wrappers.FlattenObservation(gym.make(env_id, disable_env_checker=True))
    env = make_env(env_id, flat.observation_space.shape[0])  # type: ignore[index]
    expected = flat.reset(seed=0)[0]
    assert len(np.unique(expected)) > 1
    assert env.reset(seed=0)[0].tolist() == expected.tolist()


def test_a_width_that_several_orders_have_is_refused_with_their_names() -> None:
    with pytest.raises(UserError, match=r"achieved_goal,observation.*nothing tells which.*--layout"):
        make_env("O2OGoal-v0", 4)
    assert make_env("O2OGoal-v0", 4, ("desired_goal", "observation")).reset(seed=0)[0].tolist() == [2, 2, 0, 0]


def test_a_width_that_one_part_alone_has_is_that_part() -> None:
    assert env_spec("O2OKeywords-v0", 3).layout == ("y",)


def test_a_camera_among_the_parts_may_be_left_out_by_name() -> None:
    with pytest.raises(UserError, match="its observation 'camera' is an image"):
        env_spec("O2OCamera-v0")
    assert env_spec("O2OCamera-v0", layout=("state",)).observation_dim == 1


def test_a_checkpoints_columns_are_not_fed_in_another_order() -> None:
    actor = {"kind": "deterministic", "observation_dim": 4, "action_dim": 1}
    source = Handover("import", "sac", actor, None, {}, None, {}, layout=["b", "a"])
    source.check_policy(None, (4, 1), "", ("b", "a"))
    with pytest.raises(UserError, match=r"--data.observation_layout \[b,a\]"):
        source.check_policy(None, (4, 1), "", ("a", "b"))


@pytest.mark.parametrize("said, wanted", [
    ("observation,achieved_goal", ("observation", "achieved_goal")),
    ("desired_goal, observation", ("desired_goal", "observation")),
    ("concat(observation[2]=x,y; desired_goal[2]=gx,gy)", ("observation", "desired_goal")),
])  # fmt: skip
def test_a_file_that_says_the_order_of_its_columns_is_believed(
    said: str, wanted: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = arrays(terminals=(3,))
    columns = {"observations": np.zeros((12, 4), np.float32), "actions": made["actions"][:, :1]}
    path = write(tmp_path / "a.hdf5", **columns, **{"metadata/env_id": "O2OGoal-v0", "metadata/obs_layout": said})
    data = OfflineData(str(path), observation_layout=["achieved_goal", "observation"])
    data.setup("fit")
    assert data.env is not None and data.env.layout == data.layout == wanted
    assert "observation_layout achieved_goal, observation is left unused" in capsys.readouterr().err


@pytest.mark.parametrize("said", [{}, {"metadata/obs_layout": "where it is, then where it is to go"}])
def test_a_file_that_does_not_say_takes_the_option(said: dict[str, str], tmp_path: Path) -> None:
    columns = {"observations": np.zeros((12, 4), np.float32), "actions": arrays()["actions"][:, :1]}
    path = write(tmp_path / "a.hdf5", **columns, **{"metadata/env_id": "O2OGoal-v0"}, **said)
    data = OfflineData(str(path), observation_layout=["achieved_goal", "observation"])
    data.setup("fit")
    assert data.env is not None and data.env.layout == ("achieved_goal", "observation")


def test_antmaze_ends_at_its_goal_as_d4rls_does() -> None:
    pytest.importorskip("gymnasium_robotics")
    try:
        env = make_env("AntMaze_UMaze-v4", 29)
    except UserError as error:
        pytest.skip(str(error))
    env.reset(seed=0)
    inner: Any = env.unwrapped
    inner.goal = inner.ant_env.data.qpos[:2].copy()
    reward, terminated, truncated = env.step(np.zeros(8, np.float32))[1:4]
    assert (reward, terminated, truncated) == (1.0, True, False)
    env.close()
    assert make_env("AntMaze_UMaze-v4", 29, (), {"continuing_task": True}).unwrapped.continuing_task  # type: ignore[attr-defined]
