"""Golden records: what every phase of every method does at tiny sizes, to be compared after the code was moved.

    python benchmarks/golden.py write golden.json            # with the package on PYTHONPATH, or the installed one
    python benchmarks/golden.py check golden.json --only online/o2td3
    python benchmarks/golden.py configs                      # writes tests/golden_configs.json

A record holds the rows of metrics.csv and a digest of each weight and optimizer moment of last.ckpt. Every case is a
command line in a process of its own, and only what it leaves behind is read, so classes and modules may be renamed.
Tensors are named without a leading ``agent.`` or ``method.``, and an option of the model is spelled as ``--print_config``
nests it. Cases of ``kill/`` are killed between two checkpoints and resumed, and must equal the run that was not. Records
hold for one machine and its libraries; the configurations in ``tests/golden_configs.json`` for all.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import golden_configs  # noqa: E402

SMALL = (
    "steps.offline=40 steps.clone=40 steps.reevaluate=40 steps.align=40 steps.env=80 checkpoint_every=10 "
    "--trainer.accelerator=cpu --trainer.log_every_n_steps=5 --data.chunk=8 --data.batch_size=16 "
    "--data.eval_every=30 --data.eval_every_updates=20 --data.eval_episodes=1"
)
REPLAY, ROLLOUT = "--data.warmup_steps=20", "--data.rollout=32 --data.epochs=2"
WIDTHS = {"hidden": "[16,16]", "critic_hidden": "[16,16]", "value_hidden": "[16,16]", "width": "16", "layers": "1"}
WIDTHS |= {"heads": "2", "context": "4", "acting_context": "4"}
SETTLED = " ".join(
    f"--model.convergence.{name}={value}"
    for name, value in {"every": 5, "window": 2, "tolerance": 0.5, "patience": 1, "least": 10, "most": 40}.items()
)
# phase/method[/variant] | the case that it starts from | what is typed; on the Hopper set that ships with the package
HOPPER = f"""
offline/td3_bc | | offline=td3_bc
offline/cql | | offline=cql
offline/cql/antmaze | | offline=cql --model.lagrange_gap=0.8 --model.gap_min=-200 --model.max_target=true \
    --model.conservative_weight=5 --model.critic_hidden=[16,16,16] --model.actor_lr=1e-4 --data.normalize=false
offline/iql | | offline=iql
offline/iql/deterministic | | offline=iql --model.deterministic=true --model.anneal_updates=50
offline/awac | | offline=awac
offline/bc/deterministic | | offline=bc online=o2td3
offline/bc/gaussian | | offline=bc online=o2ppo
offline/bc/squashed_gaussian | | offline=bc online=o2sac
offline/bc10 | | offline=bc10
offline/dt | | offline=dt
offline/odt | | offline=odt
clone/td3_bc/o2sac | offline/td3_bc | online=o2sac --model.check_every=10
clone/td3_bc/o2ppo | offline/td3_bc | online=o2ppo --model.check_every=10 --model.patience=1 --model.progress=10
clone/td3_bc/o2td3 | offline/td3_bc | online=o2td3 --model.check_every=10
clone/iql/o2sac | offline/iql | online=o2sac --model.check_every=10
clone/iql/o2ppo | offline/iql | online=o2ppo --model.check_every=10 --model.labels=mode --model.mode_weight=0
clone/iql/o2td3 | offline/iql | online=o2td3 --model.check_every=10
clone/odt/o2sac | offline/odt | online=o2sac --model.check_every=10
reevaluate/o2td3 | offline/td3_bc | online=o2td3
reevaluate/o2td3/converged | offline/td3_bc | online=o2td3 stop=converged {SETTLED}
reevaluate/o2sac | offline/cql | online=o2sac
reevaluate/o2sac/clone | clone/td3_bc/o2sac | online=o2sac --model.critics=1 --model.layer_norm=false
reevaluate/o2sac/converged | offline/cql | online=o2sac stop=converged {SETTLED}
reevaluate/o2ppo | offline/iql | online=o2ppo
reevaluate/o2ppo/options | offline/iql | online=o2ppo --model.leak_returns=true --model.reward_scaling=dynamic
reevaluate/o2ppo/converged | offline/iql | online=o2ppo stop=converged {SETTLED}
align/o2td3 | reevaluate/o2td3 | online=o2td3
align/o2td3/direct | offline/td3_bc | online=o2td3 --model.curvature=0.5
align/o2td3/converged | reevaluate/o2td3 | online=o2td3 stop=converged {SETTLED}
align/o2sac | reevaluate/o2sac | online=o2sac
align/o2sac/clone | reevaluate/o2sac/clone | online=o2sac --model.temperature=0.5
align/o2sac/converged | reevaluate/o2sac | online=o2sac stop=converged {SETTLED}
online/o2td3 | align/o2td3 | online=o2td3
online/o2td3/utd | align/o2td3 | online=o2td3 --data.utd=3
online/o2sac | align/o2sac | online=o2sac
online/o2sac/utd | align/o2sac | online=o2sac --data.utd=3
online/o2sac/clone | align/o2sac/clone | online=o2sac
online/o2ppo | reevaluate/o2ppo | online=o2ppo
online/o2ppo/options | reevaluate/o2ppo | online=o2ppo --model.reward_scaling=dynamic --model.std_cap=0.05 \
    --model.decay_env_steps=100 --model.auxiliary.env_steps=100 --data.num_envs=2 --model.reference.mode=interval \
    --model.reference.period=20
online/td3 | offline/td3_bc | online=td3
online/sac | offline/cql | online=sac
online/ppo | reevaluate/o2ppo | online=ppo
online/td3/scratch | | online=td3 experiment=scratch --data.env_id=Hopper-v5
online/sac/scratch | | online=sac experiment=scratch --data.env_id=Hopper-v5
online/ppo/scratch | | online=ppo experiment=scratch --data.env_id=Hopper-v5
all/o2td3 | | offline=td3_bc online=o2td3
all/o2sac | | offline=cql online=o2sac
all/o2ppo | | offline=iql online=o2ppo
all/o2sac/cloned | | offline=td3_bc online=o2sac phases=auto
all/o2td3/no_alignment | | offline=td3_bc online=o2td3 experiment=no_alignment
all/o2sac/no_reevaluation | | offline=cql online=o2sac experiment=no_reevaluation
"""
# The same on 480 transitions of Pendulum-v1, whose actions are in ±2 and whose episodes only time ends.
PENDULUM = """
offline/td3_bc | | offline=td3_bc --model.policy_delay=1 --data.reward_scale=0.1 --data.reward_shift=-5
offline/cql | | offline=cql --data.reward_range=true --model.entropy_backup=true --model.importance_sampling=false
offline/iql | | offline=iql --data.normalize=false
reevaluate/o2td3 | offline/td3_bc | online=o2td3 --model.layer_norm=false --data.reward_range=true
reevaluate/o2sac | offline/cql | online=o2sac
reevaluate/o2ppo | offline/iql | online=o2ppo
align/o2td3 | reevaluate/o2td3 | online=o2td3
align/o2sac | reevaluate/o2sac | online=o2sac
online/o2td3/long | align/o2td3 | online=o2td3 steps.env=230 --data.warmup_steps=180
online/o2sac | align/o2sac | online=o2sac --model.reference.mode=interval --model.reference.period=25
online/o2ppo/long | reevaluate/o2ppo | online=o2ppo steps.env=240
online/o2ppo/frozen | reevaluate/o2ppo | online=o2ppo experiment=frozen_reference --model.auxiliary.joint=true
online/o2ppo/pairwise | reevaluate/o2ppo | online=o2ppo --model.auxiliary.pairwise=true --model.entropy=0
online/o2td3/all | align/o2td3 | online=o2td3 --data.mix=all
online/o2td3/part | align/o2td3 | online=o2td3 --data.mix=part
online/o2td3/none | align/o2td3 | online=o2td3 --data.mix=none --data.capacity=40
online/o2td3/multiplier | align/o2td3 | online=o2td3 --model.multiplier.every=3 --model.multiplier.lr=1e-2 \
    --model.multiplier.satisfied_weight=0.2 --model.multiplier.violated_weight=0.9 --model.multiplier.start=2
online/o2sac/multiplier | align/o2sac | online=o2sac --model.multiplier.every=2 --model.multiplier.lr=1e-2 \
    --model.multiplier.satisfied_weight=0.2 --model.multiplier.violated_weight=0.9 --model.threshold.env_steps=50
online/o2td3/interval | align/o2td3 | online=o2td3 --model.reference.mode=interval --model.reference.period=25 \
    --model.reference.threshold_scale=0.25 --model.actor_grad_clip=0.25
online/o2td3/frozen | align/o2td3 | online=o2td3 --model.reference.mode=frozen --model.reference.start=offline
online/o2td3/aligned | align/o2td3 | online=o2td3 --model.reference.start=aligned --model.threshold.end=0
online/o2sac/frozen | align/o2sac | online=o2sac --model.reference.mode=frozen --model.actor_grad_clip=0.1
online/o2td3/penalty | align/o2td3 | online=o2td3 --model.penalty=batch
online/o2td3/normalize_q | align/o2td3 | online=o2td3 --model.normalize_q=false --model.policy_delay=1
online/o2td3/unconstrained | align/o2td3 | online=o2td3 experiment=no_constraint --data.reward_scale=0.1
"""
KILLED = "offline/cql clone/td3_bc/o2sac reevaluate/o2sac align/o2td3 online/o2sac online/o2td3/utd online/o2ppo"
NAMED = 6  # differences that are named one by one


class Case(NamedTuple):
    """A command line, the case whose checkpoint it starts from, and the dataset, None for the packaged one."""

    start: str
    typed: tuple[str, ...]
    dataset: Path | None


def main() -> int:
    """Runs the sub-command; the exit code is 1 where something differs or fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("write", "check", "configs"))
    parser.add_argument("file", nargs="?", type=Path, help="of the records, with write and check")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases whose name has it")
    arguments = parser.parse_args()
    if arguments.command == "configs":
        golden_configs.FILE.write_text(golden_configs.packed(golden_configs.recomputed(golden_configs.ROWS)))
        return 0
    if arguments.file is None:
        parser.error(f"{arguments.command} needs a FILE")
    before = json.loads(arguments.file.read_text()) if arguments.command == "check" else None
    with tempfile.TemporaryDirectory() as folder:
        found, wrong = run_all(Path(folder), arguments.only)
    if before is None:
        arguments.file.write_text(json.dumps({"versions": versions(), "cases": found}, indent=0) + "\n")
    else:
        if before["versions"] != versions():
            print(f"written with {before['versions']}, checked with {versions()}")
        expected = {name: case for name, case in before["cases"].items() if arguments.only in name}
        wrong += [line for name in {**expected, **found} for line in compared(name, expected, found)]
    print(*wrong, f"{len(wrong)} differences" if wrong else f"{len(found)} records equal", sep="\n")
    return 1 if wrong or not found else 0


def run_all(folder: Path, only: str) -> tuple[dict[str, Any], list[str]]:
    """The records of the cases that were asked for, and what went wrong between killed and whole runs."""
    cases = table("hopper", HOPPER, None) | table("pendulum", PENDULUM, pendulum(folder / "pendulum.hdf5"))
    wanted = {name for name in cases if only in name}
    killed = [f"hopper/{name}" for name in KILLED.split() if only in f"kill/hopper/{name}"]
    needed, added = {*wanted, *killed}, [*wanted, *killed]
    while added := [start for name in added if (start := cases[name].start) and start not in needed]:
        needed.update(added)
    found, wrong = {}, []
    for name in (name for name in cases if name in needed):
        started = time.monotonic()
        execute(command(cases[name], name, folder), folder / f"{name}.log".replace("/", "-"))
        record = recorded(run_directory(folder, name))
        found |= {name: record} if name in wanted else {}
        if name in killed:
            again = run_directory(folder, f"kill/{name}")
            log, at = again.with_suffix(".log"), 5 if "/online/" in name else 3
            execute([*command(cases[name], name, folder)[:-1], f"--run_dir={again}"], log, at)
            execute(["resume", str(again)], log)
            found[f"kill/{name}"] = recorded(again)
            wrong += compared(f"kill/{name}", {f"kill/{name}": record}, found)
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    return found, wrong


def table(dataset: str, text: str, path: Path | None) -> dict[str, Case]:
    """The cases of a table."""
    lines = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return {
        f"{dataset}/{name}": Case(start and f"{dataset}/{start}", tuple(typed.split()), path)
        for name, start, typed in lines
    }


def command(case: Case, name: str, folder: Path) -> list[str]:
    """The arguments of ``o2o`` for a case, ``--run_dir`` last."""
    phase, typed = name.split("/")[1], list(case.typed)
    if case.dataset is not None:
        typed.append(f"--data.dataset={case.dataset}")
    if phase in ("online", "all"):
        typed += (ROLLOUT if "ppo" in name else REPLAY).split()
    groups = tuple(token for token in typed if token.startswith(("offline=", "online=")))
    own, nested = arguments_of(("offline", "reevaluate") if phase == "all" else (phase,), groups)
    given = {token.partition("=")[0] for token in typed}
    fresh = phase != "online" or "experiment=scratch" in typed or "ppo" in name
    widths = [f"--model.{key}={value}" for key, value in WIDTHS.items() if fresh and key in own | nested]
    typed += [token for token in widths if token.partition("=")[0] not in given]
    if case.start:
        start = run_directory(folder, case.start) / case.start.split("/")[1] / "checkpoints" / "last.ckpt"
        typed.append(f"--model.init_from={start}")
    for i, token in enumerate(typed):
        key = token.removeprefix("--model.").partition("=")[0].partition(".")[0]
        if token.startswith("--model.") and key in nested - own:
            typed[i] = token.replace("--model.", "--model.method.", 1)
    return ["fit", "--phase", phase, *SMALL.split(), *typed, f"--run_dir={run_directory(folder, name)}"]


@cache
def arguments_of(phases: tuple[str, ...], groups: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """The model's arguments, and those of a ``method`` inside it; printing them also imports what the forks need."""
    own, nested = set(), set()
    for phase in phases:
        model = (golden_configs.printed("--phase", phase, *groups) or {}).get("model", {}).get("init_args", {})
        own |= {*model} - {"method"}
        nested |= {*((model.get("method") or {}).get("init_args") or {})}
    return own, nested


def execute(argv: list[str], log: Path, die_at: int = 0) -> None:
    """Runs the command line in a fork, which dies instead of its ``die_at``-th rename to last.ckpt, if that is not 0."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != (-signal.SIGKILL if die_at else 0):
            raise SystemExit(f"o2o {' '.join(argv)}\n{log.read_text()}\nexit code {code}")
        return
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        import torch

        from o2o_lightning.cli.main import main

        torch.set_num_threads(1)
        replace, left = os.replace, [die_at]

        def counted(source: Any, target: Any, **kwargs: Any) -> None:
            left[0] -= Path(target).name == "last.ckpt"
            if die_at and left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target, **kwargs)

        os.replace = counted  # type: ignore[assignment]
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def recorded(folder: Path) -> dict[str, Any]:
    """What each phase of a run has left: rows of metrics, digests of weights, digests of moments and learning rates."""
    import torch

    phases = {}
    for path in sorted(folder.glob("*/checkpoints/last.ckpt")):
        checkpoint = torch.load(path, weights_only=True)
        with (path.parents[1] / "metrics.csv").open(newline="") as file:
            rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
        moments = {}
        for optimizer in checkpoint["optimizer_states"]:
            for group in optimizer["param_groups"]:
                for name, index in zip(group["param_names"], group["params"], strict=True):
                    state = {**optimizer["state"].get(index, {}), "lr": group["lr"]}
                    moments |= {f"{short(name)} {key}": digest(value) for key, value in state.items()}
        weights = {short(name): digest(value) for name, value in checkpoint["state_dict"].items()}
        kept = {"metrics": [",".join(rows[0])] + [",".join(row.values()) for row in rows]}
        phases[path.parents[1].name] = kept | {"weights": weights, "moments": moments}
    return phases


def short(name: str) -> str:
    """A tensor's name without the attribute that holds the networks."""
    return name.removeprefix("agent.").removeprefix("method.")


def digest(value: Any) -> str:
    """The first 16 digits of a tensor's SHA-256, its type and shape included; other values as they are written."""
    if not hasattr(value, "numpy"):
        return repr(value)
    content = f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def compared(name: str, expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each part of a case that differs."""
    a, b = expected.get(name, {}), found.get(name, {})
    lines = []
    for phase in {**a, **b}:
        if phase not in a or phase not in b:
            lines.append(f"{name}: {phase}: {'missing' if phase in a else 'new'}")
            continue
        for part in ("metrics", "weights", "moments"):
            old, new = (named(record[phase][part]) for record in (a, b))
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            if keys:
                more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
                lines.append(f"{name}: {phase}: {len(keys)} of {part}: {', '.join(keys[:NAMED])}{more}")
    return lines if a and b else [f"{name}: {'missing' if a else 'new'}"]


def named(part: dict[str, str] | list[str]) -> dict[str, str]:
    """A part of a record by name; of metrics every cell that is not empty."""
    if isinstance(part, dict):
        return part
    rows = [line.split(",") for line in part]
    cells = [(f"{key} in row {i}", value) for i, row in enumerate(rows[1:], 1) for key, value in zip(rows[0], row)]
    return {key: value for key, value in cells if value}


def run_directory(folder: Path, name: str) -> Path:
    """Where a case runs."""
    return folder / name.replace("/", "-")


def versions() -> dict[str, str]:
    """What equal bits depend on, the processor apart."""
    return {name: importlib.metadata.version(name) for name in ("torch", "lightning", "numpy", "gymnasium", "mujoco")}


def pendulum(path: Path) -> Path:
    """60 episodes of 8 random steps of Pendulum-v1, as a D4RL-style file."""
    import gymnasium
    import h5py
    import numpy as np

    env = gymnasium.make("Pendulum-v1", max_episode_steps=8)
    env.action_space.seed(0)
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for episode in range(60):
        observation, truncated = env.reset(seed=episode)[0], False
        while not truncated:
            action = env.action_space.sample()
            successor, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(rows, (observation, action, reward, terminated, truncated), strict=True):
                rows[key].append(value)
            observation = successor
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = np.array(values, np.bool_ if key in ("terminals", "timeouts") else np.float32)
        file["metadata/env_id"] = "Pendulum-v1"
    return path


if __name__ == "__main__":
    sys.exit(main())
