"""The D4RL datasets by name, read from the published files; the ``d4rl`` package itself is never imported.

Names and URLs follow D4RL (https://github.com/Farama-Foundation/D4RL, Apache License 2.0). The servers publish no
digests: the first download is trusted and its digest kept beside it, unless ``d4rl:NAME#sha256=HEX`` gives one.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py

from o2o_lightning.data.download import cache_dir, download
from o2o_lightning.data.hdf5 import file_sha256, read_hdf5
from o2o_lightning.data.raw import NOTHING, RawDataset, Said, wrong
from o2o_lightning.envs.scores import ANTMAZES, GYM_LEVELS
from o2o_lightning.errors import UserError

BASE_URL: Final = "http://rail.eecs.berkeley.edu/datasets/offline_rl"


@dataclass(frozen=True)
class D4RLTask:
    """Where a dataset is published and where its policies are evaluated."""

    path: str  # relative to BASE_URL
    env_id: str | None  # None where no present-day environment matches
    horizon: int  # splits episodes in files without `timeouts`

    @property
    def url(self) -> str:
        """Address of the file, at the mirror ``$O2O_D4RL_MIRROR`` if that is set."""
        return f"{os.environ.get('O2O_D4RL_MIRROR') or BASE_URL}/{self.path}"


def _tasks() -> dict[str, D4RLTask]:
    tasks = {}
    # -v4, not -v5: the closest physics to mujoco-py's v2 (Walker2d-v5 changed a foot's friction)
    # no env_id of ant: 84 of its 111 values are contact forces, which mujoco-py left at 0 and Gymnasium does not
    names = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4", "ant": None}
    for family, env_id in names.items():
        for level in GYM_LEVELS:
            path = f"gym_mujoco_v2/{family}_{level.replace('-', '_')}-v2.hdf5"
            tasks[f"{family}-{level}-v2"] = D4RLTask(path, env_id, 1000)
    mazes = {"umaze": ("u-maze", 700), "medium": ("big-maze", 1000), "large": ("hardest-maze", 1000)}
    for name in ANTMAZES:
        file, horizon = mazes[name.split("-")[0]]
        start, goal = name != "umaze", name.endswith("diverse")
        path = f"ant_maze_v2/Ant_maze_{file}_noisy_multistart_{start}_multigoal_{goal}_sparse_fixed.hdf5"
        tasks[f"antmaze-{name}-v2"] = D4RLTask(path, f"antmaze-{name}-v2", horizon)
    # no env_id: maze2d has one hidden goal, PointMaze a random one
    for maze, horizon in (("umaze", 300), ("medium", 600), ("large", 800)):
        tasks[f"maze2d-{maze}-v1"] = D4RLTask(f"maze2d/maze2d-{maze}-sparse-v1.hdf5", None, horizon)
        tasks[f"maze2d-{maze}-dense-v1"] = D4RLTask(f"maze2d/maze2d-{maze}-dense-v1.hdf5", None, horizon)
    for hand, horizon in (("pen", 100), ("hammer", 200), ("door", 200), ("relocate", 200)):
        for level in ("human", "cloned", "expert"):
            name = f"{hand}-{level}-v1"
            tasks[name] = D4RLTask(f"hand_dapg_v1/{name}.hdf5", f"AdroitHand{hand.capitalize()}-v1", horizon)
    # no env_id: FrankaKitchen's observation is a nested dictionary of other content than D4RL's 60 numbers
    for level, file in (
        ("complete", "mini_kitchen_microwave_kettle_light_slider"),
        ("partial", "kitchen_microwave_kettle_light_slider"),
        ("mixed", "kitchen_microwave_kettle_bottomburner_light"),
    ):
        tasks[f"kitchen-{level}-v0"] = D4RLTask(f"kitchen/{file}-v0.hdf5", None, 280)
    return tasks


D4RL_TASKS: Final = _tasks()


def cached_path(name: str) -> Path:
    """Where the file of a D4RL dataset lies, or would lie, in the cache."""
    return cache_dir() / "d4rl" / f"{name}.hdf5"


def load_d4rl(spec: str, said: Said = NOTHING) -> RawDataset:
    """Reads ``d4rl:NAME`` or ``d4rl:NAME#sha256=HEX``, downloading it at first use.

    Raises:
        UserError: unknown name, no network, or a digest other than the expected or first one.
    """
    name, expected = _parse(spec)
    task = D4RL_TASKS[name]
    path = cached_path(name)
    download(task.url, path, spec, accept=lambda part: bool(h5py.is_hdf5(part)))
    sidecar = path.with_name(path.name + ".sha256")
    if not path.is_file():
        raise wrong(spec, f"{path} is no file. Delete it, then run again to re-download.")
    found = file_sha256(path)
    # an empty one is what a full disk leaves
    remembered = next(iter(sidecar.read_text().lower().split()), None) if sidecar.exists() else None
    for wanted, origin in ((expected, "the spec asks for"), (remembered, "its first download had")):
        if wanted is not None and wanted != found:
            raise UserError(
                f"dataset {spec}: {path} has sha256 {found}, {origin} {wanted}. "
                f"Delete {path} and {sidecar.name} beside it, then run again to re-download."
            )
    own = dataclasses.replace(said, env_id=task.env_id, limit=task.horizon, units=said.units or "native")
    raw = read_hdf5(path, source=f"d4rl:{name}", said=own, sha256=found)
    if remembered is None:
        # a cache shared read-only is its owner's to vouch for
        with contextlib.suppress(OSError):
            partial = sidecar.with_name(f"{sidecar.name}.{os.getpid()}")
            partial.write_text(f"{found}  {path.name}\n")
            os.replace(partial, sidecar)
    return raw


def _parse(spec: str) -> tuple[str, str | None]:
    name, _, option = spec.removeprefix("d4rl:").partition("#")
    if name not in D4RL_TASKS:
        close = difflib.get_close_matches(name, D4RL_TASKS, n=1, cutoff=0.5)
        hint = f" Did you mean `d4rl:{close[0]}`?" if close else ""
        raise wrong(spec, f"D4RL has no '{name}'.{hint} `o2o data list` shows all names.")
    if not option:
        return name, None
    if not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", option):
        raise wrong(spec, f"'#{option}' is not understood. Write `d4rl:{name}#sha256=` and 64 hex digits.")
    return name, option.removeprefix("sha256=").lower()
