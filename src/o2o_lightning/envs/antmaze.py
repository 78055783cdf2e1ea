"""D4RL's AntMaze, version 2: where its ant starts, where its goal lies, what it sees, and how strong its motors are.

Gymnasium-Robotics' mazes of that name are another task: start and goal are drawn anew over the whole maze, the maze is
mirrored, and a step lasts half as long under five times the torque. A policy of D4RL's sets is scored here.
"""

import importlib.resources
import tempfile
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# # wall, R start, G goal; rows along y, columns along x
MAZES = {
    "umaze": ("#####", "#R  #", "### #", "#G  #", "#####"),
    "medium": ("########", "#R ##  #", "#  #   #", "##   ###", "#  #   #", "# #  # #", "#   # G#", "########"),
    "large": (
        "############", "#R   #     #", "# ## # # # #", "#      #   #", "# #### ### #", "#  # #     #", "## # # # ###",
        "#  #   # G #", "############",
    ),
}  # fmt: skip
CELL = 4.0  # side of a cell, in metres
REACHED = 0.5  # distance from the goal at which an episode ends with the reward 1
# Where D4RL's ant differs from Gymnasium's: a step of five times 0.02 s, and motors of 30 N·m
TIMESTEP, FRAMES, TORQUE = "0.02", 5, 30.0
CONTACT = {"solref": ".02 1", "solimp": ".8 .8 .01"}


class AntMaze(MujocoEnv):
    """An ant that is to find the far end of a maze, and is told neither where that is nor how far.

    Observations ``[29]`` are the simulator's positions and velocities, actions ``[8]`` torques in N·m. It starts in
    the cell R, which is the origin; the goal is drawn at every reset, in the cell G. The reward is 1 within
    :data:`REACHED` of it, where the episode ends, else 0. No fall ends an episode.

    Args:
        maze: ``umaze``, ``medium`` or ``large``; D4RL's play and diverse sets have the same task.
        render_mode: as of any environment.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, maze: str = "umaze", render_mode: str | None = None, **options: Any) -> None:
        self.goal_cell = _cell(MAZES[maze], "G") - _cell(MAZES[maze], "R")
        space = spaces.Box(-np.inf, np.inf, (29,), np.float64)
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(model_of(MAZES[maze]))
            file.flush()
            super().__init__(file.name, FRAMES, space, render_mode, **options)
        self.goal = CELL * self.goal_cell

    def reset_model(self) -> FloatArray:
        """The ant near the origin, the goal in its cell, both drawn anew."""
        draw = self.np_random
        self.goal = CELL * self.goal_cell + draw.uniform(0.0, CELL / 4, 2) + draw.uniform(0.0, CELL / 8, 2)
        place = self.init_qpos + draw.uniform(-0.1, 0.1, self.model.nq)
        self.set_state(place, self.init_qvel + 0.1 * draw.standard_normal(self.model.nv))  # type: ignore[no-untyped-call]
        return self._observation()

    def step(self, action: NDArray[np.float32]) -> tuple[FloatArray, Any, bool, bool, dict[str, Any]]:
        self.do_simulation(action, self.frame_skip)
        reached = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= REACHED)
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call]
        return self._observation(), float(reached), reached, False, {"success": reached}

    def _observation(self) -> FloatArray:
        return np.concatenate([self.data.qpos, self.data.qvel])


def model_of(maze: Sequence[str]) -> str:
    """MuJoCo's XML of D4RL's ant between the walls of ``maze``."""
    ant = importlib.resources.files("gymnasium.envs.mujoco") / "assets/ant.xml"
    root = ElementTree.fromstring(ant.read_text(encoding="utf-8"))
    _set(root, "option", timestep=TIMESTEP)
    _set(root, "default/geom", **CONTACT)
    for motor in root.iterfind("actuator/motor"):
        motor.attrib |= {"gear": "1", "ctrlrange": f"{-TORQUE} {TORQUE}"}
    world = root.find("worldbody")
    assert world is not None
    start = _cell(maze, "R")
    for row, line in enumerate(maze):
        for column, what in enumerate(line):
            if what == "#":
                x, y = CELL * (np.array([column, row]) - start)
                wall = {"type": "box", "pos": f"{x} {y} {CELL / 4}", "size": f"{CELL / 2} {CELL / 2} {CELL / 4}"}
                look = {"name": f"wall_{row}_{column}", "rgba": "0.7 0.5 0.3 1"}
                ElementTree.SubElement(world, "geom", {**look, **wall, "contype": "1", "conaffinity": "1"})
    return ElementTree.tostring(root, encoding="unicode")


def _set(root: ElementTree.Element, path: str, **attributes: str) -> None:
    element = root.find(path)
    assert element is not None
    element.attrib |= attributes


def _cell(maze: Sequence[str], what: str) -> FloatArray:
    """Column and row of the cell ``what``."""
    return next(np.array([line.index(what), row], float) for row, line in enumerate(maze) if what in line)
