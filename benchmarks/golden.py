"""Golden records: what every phase of every method does at tiny sizes, to be compared after the code was moved.

    python benchmarks/golden.py write golden.json            # with the package on PYTHONPATH, or the installed one
    python benchmarks/golden.py check golden.json --only online/o2td3
    python benchmarks/golden.py configs                      # writes tests/golden_configs.json

A record holds the rows of metrics.csv and a digest of each weight and optimizer moment of last.ckpt. Every case is a
command line in a process of its own, and only what it leaves behind is read, so classes and modules may be renamed.
Tensors have the names of version 0.1, for which the first records were made. Cases of ``kill/`` are killed between two
checkpoints and resumed, and must equal the run that was not. Records hold for one kind of processor and its libraries;
``tests/golden_configs.json`` for all.
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

import golden_cases
import golden_configs
from data_files import record_pendulum

NAMED = 6  # differences that are named one by one
Record = dict[str, Any]


class Case(NamedTuple):
    """The case whose checkpoint it starts from, what is typed, and the dataset, None for the packaged one."""

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
    if before is not None:
        if before["versions"] != versions():
            print(f"written with {before['versions']}, checked with {versions()}")
        expected = {name: record for name, record in before["cases"].items() if arguments.only in name}
        wrong += [
            line for name in {**expected, **found} for line in compared(name, expected.get(name), found.get(name))
        ]
    elif not wrong:
        arguments.file.write_text(json.dumps({"versions": versions(), "cases": found}, indent=0) + "\n")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    print(f"{len(wrong)} differences" if wrong else f"{len(found)} records {'equal' if before else 'written'}")
    return 1 if wrong or not found else 0


def run_all(folder: Path, only: str) -> tuple[dict[str, Record], list[str]]:
    """The records of the cases that were asked for, and what failed, or differs between a killed and a whole run."""
    cases = table("hopper", golden_cases.HOPPER, None)
    cases |= table("pendulum", golden_cases.PENDULUM, record_pendulum(folder / "pendulum.hdf5", 60, 8))
    killed = {name for name in golden_cases.KILLED if only in f"kill/{name}"}
    needed = {name for name in cases if only in name} | killed
    for name in reversed(cases):  # each starts from one above it
        needed |= {cases[name].start} if name in needed else set()
    found: dict[str, Record] = {}
    failed: dict[str, str] = {}
    wrong = []
    for name in (name for name in cases if name in needed):
        started = time.monotonic()
        if cases[name].start in failed:
            failed[name] = f"{cases[name].start} failed"
            continue
        argv, whole, again = command(cases[name], name, folder), place(folder, name), place(folder, f"kill/{name}")
        log = whole.with_suffix(".log")
        code = execute([*argv, f"--run_dir={whole}"], log)
        if name in killed and not code:
            code = execute([*argv, f"--run_dir={again}"], log, 5 if "/online/" in name else 3)
            code = execute(["resume", str(again)], log) if code == -signal.SIGKILL else code or 1
        if code:
            failed[name] = f"exit code {code}\n{log.read_text()[-2000:]}"
            continue
        record = recorded(whole)
        found |= {name: record} if only in name else {}
        if name in killed:
            found[f"kill/{name}"] = recorded(again)
            wrong += compared(f"killed and whole {name}", record, found[f"kill/{name}"])
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    return found, [*(f"{name}: {why}" for name, why in failed.items()), *wrong]


def table(dataset: str, text: str, path: Path | None) -> dict[str, Case]:
    """The cases of a table by name."""
    cases = {}
    for line in text.strip().splitlines():
        name, start, typed = (part.strip() for part in line.split("|"))
        cases[f"{dataset}/{name}"] = Case(start and f"{dataset}/{start}", tuple(typed.split()), path)
    return cases


def command(case: Case, name: str, folder: Path) -> list[str]:
    """The arguments of ``o2o`` for a case, ``--run_dir`` apart."""
    phase, typed = name.split("/")[1], list(case.typed)
    if case.dataset is not None:
        typed.append(f"--data.dataset={case.dataset}")
    if case.start:
        typed.append(f"--model.init_from={place(folder, case.start) / case.start.split('/')[1]}/checkpoints/last.ckpt")
    if phase in ("online", "all"):
        typed += golden_cases.ROLLOUT if "ppo" in name else golden_cases.REPLAY
    groups = tuple(token for token in typed if token.startswith(("offline=", "online=")))
    own, nested = arguments_of(("offline", "reevaluate") if phase == "all" else (phase,), groups)
    if phase != "online" or not case.start or "ppo" in name:  # the others take their networks from the checkpoint
        known = [f"--model.{key}={value}" for key, value in golden_cases.WIDTHS.items() if key in own | nested]
        typed += [token for token in known if not any(option(token) == option(given) for given in typed)]
    return ["fit", "--phase", phase, golden_configs.PRESET, *golden_cases.SMALL, *typed]


def option(token: str) -> str | None:
    """The argument of the model that a token sets, or part of."""
    return token[8:].partition("=")[0].partition(".")[0] if token.startswith("--model.") else None


@cache
def arguments_of(phases: tuple[str, ...], groups: tuple[str, ...]) -> tuple[set[str | None], set[str | None]]:
    """The model's arguments, and those of a ``method`` inside it; printing them also imports what the forks need."""
    own, nested = set(), set()
    for phase in phases:
        model = (golden_configs.printed("--phase", phase, *groups) or {}).get("model", {}).get("init_args", {})
        own |= {*model} - {"method"}
        nested |= {*((model.get("method") or {}).get("init_args") or {})}
    return own, nested


def execute(argv: list[str], log: Path, die_at: int = 0) -> int:
    """Runs the command line in a fork; its exit code, negative: the signal.

    It dies instead of its ``die_at``-th rename to last.ckpt, if that is not 0.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
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


def recorded(folder: Path) -> Record:
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
        metrics = [",".join(rows[0])] + [",".join(row.values()) for row in rows]
        phases[path.parents[1].name] = {"metrics": metrics, "weights": weights, "moments": moments}
    return phases


def short(name: str) -> str:
    """A tensor's name in version 0.1, without the attribute that holds the networks."""
    name = name.removeprefix("agent.").removeprefix("method.")
    return {"threshold_now": "threshold"}.get(name, name.replace("reference_policy.", "reference."))


def kept(phase: str, name: str) -> bool:
    """Whether a checkpoint of that phase must hold the tensor: version 0.1 copied π_off once more, for nobody."""
    return phase not in ("reevaluate", "align") or not name.startswith("target_actor.")


def digest(value: Any) -> str:
    """The first 16 digits of a tensor's SHA-256, its type and shape included; other values as they are written."""
    if not hasattr(value, "numpy"):
        return repr(value)
    content = f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def compared(name: str, expected: Record | None, found: Record | None) -> list[str]:
    """A line for each part of a record that differs."""
    if expected is None or found is None:
        return [f"{name}: {'missing' if found is None else 'new'}"]
    lines = []
    for phase in {**expected, **found}:
        if phase not in expected or phase not in found:
            lines.append(f"{name}: {phase}: {'missing' if phase in expected else 'new'}")
            continue
        for part in ("metrics", "weights", "moments"):
            old, new = (named(record[phase][part]) for record in (expected, found))
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and kept(phase, key)]
            if keys:
                more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
                lines.append(f"{name}: {phase}: {len(keys)} of {part}: {', '.join(keys[:NAMED])}{more}")
    return lines


def named(part: dict[str, str] | list[str]) -> dict[str, str]:
    """A part of a record by name; of metrics every cell that is not empty."""
    if isinstance(part, dict):
        return part
    rows = [line.split(",") for line in part]
    cells = [
        (f"{key} in row {i}", value)
        for i, row in enumerate(rows[1:], 1)
        for key, value in zip(rows[0], row, strict=True)
    ]
    return {key: value for key, value in cells if value}


def place(folder: Path, name: str) -> Path:
    """Where a case runs."""
    return folder / name.replace("/", "-")


def versions() -> dict[str, str]:
    """What equal bits depend on."""
    import torch

    names = ("torch", "lightning", "numpy", "gymnasium", "mujoco")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "processor": torch.backends.cpu.get_cpu_capability()}


if __name__ == "__main__":
    sys.exit(main())
