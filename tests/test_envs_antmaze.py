"""AntMaze is D4RL's: its ant, its start and goal, what it sees, when it ends, and where its score is given."""

import mujoco
import numpy as np
import pytest

from o2o_lightning.envs.antmaze import MAZES, model_of
from o2o_lightning.envs.make import env_spec, make_env
from o2o_lightning.envs.scores import ANTMAZES
from o2o_lightning.envs.snapshot import can_restore

# the far corner of the goal's cell from the start's, in metres, counted on D4RL's maps: 2, 5 and 8 by 6 cells of 4 m
GOALS = {"umaze": (0.0, 8.0), "medium": (20.0, 20.0), "large": (32.0, 24.0)}


@pytest.mark.parametrize("name", ANTMAZES)
def test_each_dataset_has_its_task(name: str) -> None:
    spec = env_spec(f"antmaze-{name}-v2")
    assert (spec.observation_dim, spec.action_dim, spec.horizon) == (29, 8, 700 if "umaze" in name else 1000)
    assert (spec.action_low == -30.0).all() and (spec.action_high == 30.0).all()


@pytest.mark.parametrize("maze", MAZES)
def test_the_ant_starts_at_the_origin_and_the_goal_is_drawn_in_one_cell(maze: str) -> None:
    env = make_env(f"antmaze-{maze if maze == 'umaze' else f'{maze}-play'}-v2")
    starts, goals = [], []
    for seed in range(200):
        starts.append(env.reset(seed=seed)[0][:2])
        goals.append(env.unwrapped.goal)  # type: ignore[attr-defined]
    assert np.abs(starts).max() <= 0.1 and np.ptp(starts, 0).min() > 0.15
    offsets = np.array(goals) - GOALS[maze]
    assert offsets.min() >= 0.0 and offsets.max() <= 1.5  # U(0, 1) + U(0, 0.5)
    assert np.allclose(offsets.mean(0), 0.75, atol=0.1) and np.allclose(offsets.var(0), 1 / 12 + 0.25 / 12, atol=0.03)


@pytest.mark.parametrize("maze", MAZES)
def test_the_goal_can_be_reached_and_no_wall_can_be_left(maze: str) -> None:
    lines = MAZES[maze]
    cells = {(row, column) for row, line in enumerate(lines) for column, what in enumerate(line) if what != "#"}
    ((start,), (goal,)) = ([(r, c) for r, c in cells if lines[r][c] == what] for what in "RG")
    reached, border = {start}, [start]
    while border:
        row, column = border.pop()
        near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & cells - reached
        reached |= near
        border += near
    assert goal in reached
    assert all(0 < row < len(lines) - 1 and 0 < column < len(lines[0]) - 1 for row, column in cells)


def test_the_ant_is_d4rls_and_not_gymnasiums() -> None:
    model = mujoco.MjModel.from_xml_string(model_of(MAZES["umaze"]))
    assert (model.opt.timestep, model.nq, model.nv) == (0.02, 15, 14)
    assert (model.actuator_gear[:, 0] == 1.0).all() and (model.actuator_ctrlrange == [-30.0, 30.0]).all()
    torso = model.geom("torso_geom")
    assert torso.solref.tolist() == [0.02, 1.0] and torso.solimp[:3].tolist() == [0.8, 0.8, 0.01]
    assert model.geom("wall_0_0").pos.tolist() == [-4.0, -4.0, 1.0]  # left of and below the start
    assert make_env("antmaze-umaze-v2").unwrapped.dt == pytest.approx(0.1)  # type: ignore[attr-defined]


def test_an_episode_ends_at_the_goal_with_one_and_nowhere_else() -> None:
    env = make_env("antmaze-umaze-v2")
    env.reset(seed=0)
    inner = env.unwrapped
    assert env.step(np.zeros(8, np.float32))[1:4] == (0.0, False, False)
    place, speed = inner.data.qpos.copy(), np.zeros(14)  # type: ignore[attr-defined]
    place[2] = -0.3  # fallen
    inner.set_state(place, speed)  # type: ignore[attr-defined]
    assert env.step(np.zeros(8, np.float32))[1:4] == (0.0, False, False)
    inner.goal = inner.data.qpos[:2] + np.array([0.4, 0.0])  # type: ignore[attr-defined]
    observation, reward, terminated, truncated, _ = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, truncated) == (1.0, True, False) and observation.shape == (29,)


def test_its_state_is_kept_whole() -> None:
    assert can_restore(lambda: make_env("antmaze-umaze-v2"))
