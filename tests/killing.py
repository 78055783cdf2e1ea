"""Runs of ``o2o`` that are killed at a chosen event, and what they must leave behind in the end."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EVENTS = ("update", "env_step", "write", "replace", "evaluate")


def run(argv: list[str], log: Path, prepare: Callable[[], None] = lambda: None, wait: bool = True) -> int:
    """Runs the command line in a forked process; its exit code (negative: the signal), or its pid if not waited for.

    A fork has everything imported: a run of hundreds of milliseconds need not wait seconds for torch.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return waited(pid) if wait else pid
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = os.fdopen(out, "w", buffering=1)  # pytest has put its own in their place
        from o2o_lightning.checkpoint import run as run_module
        from o2o_lightning.cli.main import main

        run_module._held.clear()
        warnings.resetwarnings()  # pytest's own would turn some into errors
        torch.set_num_threads(1)
        prepare()
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def on_a_file_system_of_its_own(folder: Path, size: str, scenario: Callable[[], None], log: Path) -> bool:
    """Runs ``scenario`` in a forked process that sees a tmpfs of ``size`` at ``folder``; False where that can't be."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        code = waited(pid)
        assert code in (0, 77), log.read_text()
        return code == 0
    code = 70
    try:
        libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
        if libc.unshare(0x10000000 | 0x00020000):  # a user namespace, and mounts of its own
            os._exit(77)
        try:
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            os._exit(77)
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
            os._exit(77)
        scenario()
        code = 0
    except BaseException:
        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def import_everything() -> None:
    """Before forking: each child would import torch, Lightning, Hydra and MuJoCo anew."""
    import hydra  # noqa: F401
    import mujoco  # noqa: F401

    import o2o_lightning.cli.fit
    import o2o_lightning.cli.plan
    import o2o_lightning.cli.resume
    import o2o_lightning.cli.run  # noqa: F401
    from o2o_lightning.cli.command import split
    from o2o_lightning.cli.compose import compose
    from o2o_lightning.cli.models import accepts

    compose("offline", split([]))
    for module in ("data.module.OfflineData", "data.online.OnlineData", "data.rollout.RolloutData"):
        accepts(f"o2o_lightning.{module}", "dataset")


def waited(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(event: str, count: int) -> Callable[[], None]:
    """For ``prepare``: SIGKILL at the ``count``-th gradient update, environment step, file write or rename."""

    def prepare() -> None:
        left = [count]

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        from lightning.pytorch.loops.optimization.manual import _ManualOptimization

        from o2o_lightning.checkpoint import io
        from o2o_lightning.envs.episodes import Evaluator
        from o2o_lightning.phases.descent import Descent
        from o2o_lightning.replay.interaction import Interaction

        owner, name = {
            "update": (Descent, "__call__"),
            "step": (_ManualOptimization, "_on_before_step"),  # of recorded updates too
            "env_step": (Interaction, "end"),
            "write": (io._Watched, "write"),
            "replace": (os, "replace"),
            "evaluate": (Evaluator, "run"),
        }[event]
        setattr(owner, name, counted(getattr(owner, name)))

    return prepare


# of each process: the attempt's token, and the names of the file that a maze writes for its simulator
OWN = ("token", ".attributes.tmp_xml_file_path", ".attributes.fullpath")


def differences(expected: Path, found: Path, phases: list[str]) -> list[str]:
    """What two finished runs differ in, wall-clock seconds apart; empty for equal bits."""
    wrong = []
    for phase in phases:
        for name in ("metrics.csv", "manifest.json", "config.yaml"):
            a, b = expected / phase / name, found / phase / name
            if name == "manifest.json":
                a, b = expected / name, found / name
            if a.read_bytes() != b.read_bytes():
                wrong.append(f"{phase}/{name}")
        if _summary(expected / phase) != _summary(found / phase):
            wrong.append(f"{phase}/summary.json")
        for name in ("last.ckpt", "best.ckpt"):
            a, b = expected / phase / "checkpoints" / name, found / phase / "checkpoints" / name
            if a.exists() or b.exists():
                wrong += [f"{phase}/{name}: {key}" for key in _unequal(_checkpoint(a), _checkpoint(b))]
        sides = [list((root / phase / "checkpoints").glob("last.*.state")) for root in (expected, found)]
        if [len(side) for side in sides] != [1, 1]:
            wrong.append(f"{phase}: {len(sides[1])} side states")
        else:
            a, b = (torch.load(side[0] / "rank-0.pt", weights_only=True) for side in sides)
            wrong += [f"{phase}/side state: {key}" for key in _unequal(a, b) if not key.endswith(OWN)]
    plans = [json.loads((root / "plan.json").read_text()) for root in (expected, found)]
    if plans[0] == plans[1] and _summary(expected) != _summary(found):
        wrong.append("summary.json")
    leftovers = [str(path.relative_to(found)) for path in found.rglob(".*") if path.name != ".lock"]
    return wrong + leftovers


def numbers_that_differ(expected: Path, found: Path, phases: list[str]) -> list[str]:
    """As :func:`differences`, of runs whose options differ, and the ends of whose chunks, where they are saved."""
    said = ("config.yaml", "hyper_parameters", "o2o_progress.config", "saved_at", "Monitors.due")
    return [line for line in differences(expected, found, phases) if not any(word in line for word in said)]


def _summary(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    for part in (summary, *summary.get("phases", {}).values()):
        part.pop("seconds")
    return summary


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    # Lightning counts batches since the start of the process; the phase's own clocks are under o2o_progress
    del checkpoint["loops"]
    checkpoint["callbacks"].pop("RunDirectory")
    checkpoint.get("o2o_resume", {}).pop("token", None)
    checkpoint.get("hyper_parameters", {}).pop("init_from", None)  # a path inside the run directory
    return checkpoint


def _unequal(a: Any, b: Any, where: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [found for key in keys for found in _unequal(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in _unequal(*pair, f"{where}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    else:
        same = type(a) is type(b) and (a == b or (a != a and b != b))
    return [] if same else [where]
