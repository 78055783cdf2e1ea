"""The training run behind a dataset: SAC from scratch by ``o2o fit``, ended at a goal, continued after a kill."""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from o2o_lightning.checkpoint import side_state
from o2o_lightning.checkpoint.handover import read_checkpoint
from o2o_lightning.checkpoint.io import write_json
from o2o_lightning.envs.make import EnvSpec, plain
from o2o_lightning.errors import Failure, UserError

TRAIN_STEPS = 1_000_000
RECORD = "record.f32"
REQUEST = "make.json"
LAST = Path("online", "checkpoints", "last.ckpt")
# Options and keys of `o2o fit` that are set here.
RESERVED = ("phase", "phases", "online", "experiment", "config", "c", "data.env_id", "data.env_kwargs",
            "data.env_steps", "steps.env", "data.dataset", "dataset", "data.mix", "model", "model.init_from",
            "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "data", "print_config",
            "trainer.callbacks", "trainer.callbacks+", "seed_everything")  # fmt: skip


class Goal(NamedTuple):
    """The mean of the sampled policy at which training ends."""

    value: float
    unit: Literal["score", "return"]

    def __str__(self) -> str:
        return f"{self.unit} {self.value:.4g}"


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    folder: Path  # its run directory
    env_steps: int  # that it took
    goal: Goal | None  # what was to be reached, None for the whole budget
    reached: bool  # whether it was
    curve: list[list[float | None]]  # [env_steps, return, score] of each look at the sampled policy

    @property
    def checkpoint(self) -> Path:
        """The policy that it ended with."""
        return self.folder / LAST

    @property
    def record(self) -> Path:
        """Simulator states and log-densities, see :class:`o2o_lightning.callbacks.recorder.Recorder`."""
        return self.folder / "online" / RECORD

    def facts(self) -> dict[str, Any]:
        """What the dataset says of it."""
        facts: dict[str, Any] = {"training_steps": self.env_steps}
        if self.goal is not None:
            facts["stopped_at"] = f"{self.goal} of the sampled policy"
            _, return_, score = self.curve[-1]
            facts |= {"sampled_return": return_} | ({} if score is None else {"sampled_score": score})
        return facts

    def buffer(self) -> dict[str, Any]:
        """The replay buffer's state."""
        token = read_checkpoint(self.checkpoint)["o2o_resume"]["token"]
        buffer: dict[str, Any] = side_state.read(self.checkpoint, token, 0)["data"]["interaction"]["buffer"]
        return buffer


def train(
    folder: Path, arguments: argparse.Namespace, env: EnvSpec, goal: Goal | None, before: Callable[[], None]
) -> Trained:
    """Trains, goes on with a training, or finds one finished in ``folder``; calls ``before`` when the policy changes.

    Raises:
        UserError: ``folder`` holds another training, or one that is longer than ``--train_steps``.
        Failure: the goal was not reached.
    """
    from o2o_lightning.cli import resume

    steps = arguments.train_steps or TRAIN_STEPS
    request = {"env_id": env.env_id, "goal": goal and list(goal), "seed": arguments.seed, "device": arguments.device}
    _claim(folder, {**request, "rest": arguments.rest, "env_kwargs": dict(env.kwargs)})
    found = _found(folder, goal)
    finished = (folder / "online" / "summary.json").exists()
    if not (found and finished and (found.reached or found.env_steps >= steps)):
        before()
        if found is None:
            _start(folder, arguments, env, goal, steps)
        else:
            resume.main([str(folder), "--data.env_steps", str(steps)])
        found = _found(folder, goal)
    assert found is not None
    if found.env_steps > steps:
        raise UserError(
            f"--train_steps {steps}: the policy in {folder} has learned for {found.env_steps} already. Pass as many, "
            "or remove that folder."
        )
    if goal is not None and not found.reached:
        column = 1 if goal.unit == "return" else 2
        best = max((value for point in found.curve if (value := point[column]) is not None), default=None)
        said = "the policy has not been updated at all" if best is None else f"the best was {best:.4g}"
        raise Failure(
            f"--train_steps {steps}: the sampled policy did not reach {goal} in them; {said}. The training is kept in "
            f"{folder}: the same command with a larger --train_steps goes on with it, another goal needs another "
            "--output."
        )
    return found


def _start(folder: Path, arguments: argparse.Namespace, env: EnvSpec, goal: Goal | None, steps: int) -> None:
    from o2o_lightning.cli import fit

    for leftover in ("online", "plan.json", "manifest.json"):  # killed before its first checkpoint
        path = folder / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    argv = ["--phase", "online", "online=sac", "experiment=scratch", "--run_dir", str(folder)]
    argv += ["--data.env_id", env.env_id, "--data.env_kwargs", plain(env.kwargs), "--data.env_steps", str(steps)]
    argv += ["--seed_everything", str(arguments.seed)]
    argv += arguments.rest
    if arguments.device is not None:
        argv += ["--trainer.accelerator", arguments.device]
    argv += _callback("recorder.Recorder", path=f"$RUN_DIR/$PHASE/{RECORD}")
    if goal is not None:
        argv += _callback("goal.StopAtGoal", goal=goal.value, unit=goal.unit)
    try:
        fit.main(argv)
    except UserError:
        if {path.name for path in folder.iterdir()} == {REQUEST}:
            shutil.rmtree(folder)  # bad input leaves nothing
        raise


def _callback(name: str, **arguments: Any) -> list[str]:
    return [f"--trainer.callbacks+=o2o_lightning.callbacks.{name}",
            *(f"--trainer.callbacks.{key}={value}" for key, value in arguments.items())]  # fmt: skip


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Only one kind of training is in a folder."""
    path = folder / REQUEST
    if path.exists():
        held = json.loads(path.read_text())
        name = next((name for name, value in request.items() if held.get(name) != value), None)
        if name is not None:
            raise UserError(
                f"--run_dir {folder}: its training has {name} {held.get(name)}, this one {request[name]}. Pass another."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"--run_dir {folder}: it holds something else than `o2o data make`'s training. Pass another.")
    else:
        write_json(path, request)


def _found(folder: Path, goal: Goal | None) -> Trained | None:
    """The training as its last checkpoint has it; None before there is one."""
    if not (folder / LAST).exists():
        return None
    checkpoint = read_checkpoint(folder / LAST)
    state = checkpoint["callbacks"].get("StopAtGoal", {"reached": False, "curve": []})
    return Trained(folder, checkpoint["o2o_progress"]["env_steps"], goal, state["reached"], state["curve"])
