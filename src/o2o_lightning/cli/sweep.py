"""``o2o sweep``: `o2o fit` over seeds, datasets, methods or any other choice, by a Hydra launcher."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from o2o_lightning.cli import search
from o2o_lightning.cli.command import Command, hydra_key, split
from o2o_lightning.cli.compose import config_dir, groups
from o2o_lightning.cli.messages import hydra_message
from o2o_lightning.errors import Failure, UserError

USAGE = """\
o2o sweep key=a,b,… [key=c,d,…] [hydra/launcher=NAME] --run_dir DIR [any arguments of `o2o fit`]

Runs `o2o fit` once for every combination, each in a folder of DIR that is named after it:

  o2o sweep seed_everything=0,1,2 online=o2td3,td3 dataset=hopper-medium-v2 --run_dir runs/s
  o2o sweep --model.threshold.end 0.01,0.04 --data.utd 1,5 --run_dir runs/t
  o2o sweep 'seed_everything=range(5)' hydra/launcher=joblib hydra.launcher.n_jobs=4 --run_dir runs/s experiment=quick

  o2o sweep '--model.threshold.end=interval(0.005,0.05)' hydra/sweeper=optuna hydra.sweeper.n_trials=20 --run_dir runs/u

Launchers: basic (one after the other), joblib (`pip install 'o2o-lightning[sweep]'`), submitit_slurm and
submitit_local ('o2o-lightning[slurm]'), ray ('o2o-lightning[ray]'). Optuna's sweeper ('o2o-lightning[optuna]') chooses
each job by what the earlier ones were worth: metric=final, or another measure of `o2o report`.

The same command again skips what is finished and goes on with what was interrupted. Exit code 1 if a job has failed.
"""
NO_LOGS = ("hydra/hydra_logging=disabled", "hydra/job_logging=disabled")
# Hydra's plugins, and the extras that install them
PLUGINS = {"joblib_launcher": "sweep", "submitit_launcher": "slurm", "ray_launcher": "ray", "optuna_sweeper": "optuna"}
# of the job that a launcher started, not of the processes that Lightning is to start
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "O2O_RUN_DIR")


@dataclass(frozen=True)
class Job:
    """What a launcher runs, perhaps elsewhere: one `o2o fit`, as a process of its own.

    A process, because Lightning's own launcher of several devices would run Hydra's command again; and a job that runs
    out of memory takes no other with it.
    """

    phase: str
    options: tuple[str, ...]
    searchpath: tuple[str, ...]
    swept: frozenset[str]
    typed: frozenset[str]  # of these, the options of LightningCLI: Hydra carries them as tokens of their own
    run_dir: Path
    cwd: str
    measure: str | None  # that a search goes by

    def __call__(self, config: Any) -> float | None:
        """Runs, resumes or skips the job that Hydra has set up; what it was worth to a search."""
        from o2o_lightning.cli.run import say

        tokens = [str(token) for token in HydraConfig.get().overrides.task]
        overrides, options = self.command(tokens)
        folder, state = self.folder(tokens), self.state(tokens)
        log = Path(f"{folder}.log")
        if state == "foreign":
            with log.open("a") as file:
                file.write(f"o2o: {folder}: it was begun with other options. Pass another --run_dir.\n")
            return None
        if state == "finished":
            say(f"{folder.name}: finished before")
        else:
            argv = ["fit", "--phase", self.phase, *overrides, *options, "--run_dir", str(folder)]
            say(f"{folder.name}: {'going on' if state == 'begun' else 'starting'}, its output is in {log}")
            self._process(["resume", str(folder)] if state == "begun" else argv, log)
        return search.worth(folder, self.measure) if self.measure else None

    def state(self, tokens: list[str]) -> str:
        """``new``, ``begun``, ``finished``, or ``foreign`` where the folder was begun with other options."""
        from o2o_lightning.checkpoint.run import read_plan, runs_of

        folder = self.folder(tokens)
        plan = read_plan(folder)
        if not plan:
            return "new"
        overrides, options = self.command(tokens)
        asked = {"phase": self.phase, "overrides": overrides, "options": options}
        if any(plan[-1][key] != value for key, value in asked.items()):
            return "foreign"
        runs = ((run, entry["phases"]) for entry in plan for run in runs_of(folder, entry))
        places = [folder, *(run / phase for run, phases in runs for phase in phases)]
        return "finished" if all((place / "summary.json").exists() for place in places) else "begun"

    def command(self, tokens: list[str]) -> tuple[list[str], list[str]]:
        """What the job's `o2o fit` gets: Hydra's tokens, and the options."""
        typed = [token.lstrip("+").partition("=") for token in tokens if hydra_key(token) in self.typed]
        plain = [token for token in tokens if hydra_key(token) not in self.typed]
        return [*plain, *self.searchpath], [*self.options, *(f"--{name}={value}" for name, _, value in typed)]

    def folder(self, tokens: list[str]) -> Path:
        """The job's run directory, named after the choices that make it differ from the others; its log is beside."""
        chosen = [token.lstrip("+") for token in tokens if hydra_key(token) in self.swept]
        return self.run_dir / (",".join(re.sub(r"[^\w.+=-]+", "-", choice) for choice in chosen) or "run")

    def _process(self, argv: list[str], log: Path) -> None:
        command = [sys.executable, "-m", "o2o_lightning.cli.main", *argv]
        kept = [key for key in os.environ if key not in LAUNCHED and not key.startswith("SLURM_")]
        inherited = {key: os.environ[key] for key in kept}
        with log.open("ab") as file:
            process = subprocess.Popen(command, cwd=self.cwd, env=inherited, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):  # the terminal interrupts it as well, and it is saving
                process.terminate()
            process.wait()
            raise


def main(argv: list[str]) -> int:
    """Runs ``o2o sweep``."""
    argv = argv[1:] if argv[:1] == ["fit"] else argv
    if "--" in argv:  # `o2o fit` and its arguments may follow
        rest = argv[argv.index("--") + 1 :]
        argv = argv[: argv.index("--")] + (rest[1:] if rest[:1] == ["fit"] else rest)
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE, end="")
        return 0
    from o2o_lightning.cli.plan import plan
    from o2o_lightning.cli.seeds import seeds_of

    command = split(argv)
    if command.run_dir is None:
        raise UserError("--run_dir: pass the directory of the sweep, which has a folder for each job.")
    own = [token for token in command.overrides if hydra_key(token).startswith("hydra")]
    command.overrides = [token for token in command.overrides if token not in own]
    _check_plugins(own)
    run_dir = Path(command.run_dir).resolve()
    measure = search.measure_of(command, own)
    typed = _typed(command)
    jobs, swept = _jobs(command, searched=measure is not None)
    searchpath = tuple(token for token in own if token.startswith("hydra.searchpath="))
    job = Job(command.phase, tuple(command.tokens), searchpath, swept, typed, run_dir, os.getcwd(), measure)
    if not jobs or (measure and not swept):
        raise UserError(f"{' '.join(command.overrides)}: it chooses no value, so there is nothing to run.")
    if len({job.folder(tokens) for tokens in jobs}) < len(jobs):
        raise UserError("two jobs of the sweep have the same name. Give each choice once.")
    # what no job could take is refused by the first one, as `o2o fit` does before it starts
    overrides, options = job.command(jobs[0])
    first = split([f"--phase={command.phase}", *overrides, *options]).without("print_config")
    seeds = seeds_of(first)
    plan(first.of_seed(seeds[0]) if seeds else first)
    run_dir.mkdir(parents=True, exist_ok=True)
    trouble = _launch(job, command.overrides, own)
    return _report_search(job, measure, trouble) if measure else _report(job, jobs, trouble)


def _hydra() -> Any:
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    return Hydra.create_main_hydra2("o2o", create_config_search_path(str(config_dir())))


def _typed(command: Command) -> frozenset[str]:
    """Makes tokens of the options that hold several values, as Hydra reads them; their names."""
    parser, swept = OverridesParser.create(_hydra().config_loader), []
    for option in command.options:
        with contextlib.suppress(HydraException):  # a value that is none of Hydra's, for instance of a class in JSON
            if option.value and parser.parse_override(f"{option.typed}={option.value}").is_sweep_override():
                swept.append(option)
    command.options = [option for option in command.options if option not in swept]
    command.overrides += [f"++{option.typed}={option.value}" for option in swept]
    return frozenset(option.typed for option in swept)


def _jobs(command: Command, searched: bool) -> tuple[list[list[str]], frozenset[str]]:
    """The Hydra tokens of every job, of a search one that it may choose; and the keys in which jobs differ."""
    try:
        parsed = OverridesParser.create(_hydra().config_loader).parse_overrides(command.overrides)
        if not searched and (endless := [item for item in parsed if item.is_interval_sweep()]):
            raise UserError(
                f"{endless[0].input_line}: a grid takes no interval. Write its values, or add hydra/sweeper=optuna."
            )
        jobs = [search.example(parsed)] if searched else BasicSweeper.split_arguments(parsed, None)[0]
    except HydraException as error:
        raise UserError(hydra_message(error, list(groups()))) from error
    return jobs, frozenset(hydra_key(item.get_key_element()) for item in parsed if item.is_sweep_override())


def _launch(job: Job, overrides: list[str], own: list[str]) -> str | None:
    """Hands the jobs to Hydra; what the launcher itself has failed of, if it has."""
    # what Hydra itself writes: nothing into the run directories
    place = QuotedString(str(job.run_dir), Quote.single).with_quotes()
    places = [f"hydra.sweep.dir={place}", "hydra.sweep.subdir=.hydra", *NO_LOGS]
    places += search.settings(job.measure, own) if job.measure else []
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _hydra().multirun("config", job, [*overrides, *places, *own], with_log_configuration=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error, list(groups()))) from error
    except Exception as error:  # of the launcher: a cluster that is down, a job that was taken away
        return f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGTERM, previous)
        GlobalHydra.instance().clear()
    return None


def _report(job: Job, jobs: list[list[str]], trouble: str | None) -> int:
    from o2o_lightning.checkpoint.run import read_summary
    from o2o_lightning.cli.run import say

    failed = []
    for tokens in jobs:
        folder = job.folder(tokens)
        if job.state(tokens) == "finished":
            final = read_summary(folder)["score"].get("final")
            say(f"{folder.name}: finished" + ("" if final is None else f", final {final:.1f}"))
        else:
            failed.append(f"{folder.name}: {_reason(Path(f'{folder}.log'))}")
    return _end(job, failed, len(jobs), trouble)


def _report_search(job: Job, measure: str, trouble: str | None) -> int:
    from o2o_lightning.cli.run import say

    ranked, worthless = search.ranked(job.run_dir, measure)
    say(*(f"{folder.name}: {measure} {value:.4g}" for value, folder in reversed(ranked)))
    if ranked:
        say(f"best of {len(ranked)}: {ranked[0][1]}, {measure} {ranked[0][0]:.4g}")
    failed = [f"{folder.name}: {_reason(Path(f'{folder}.log'))}" for folder in worthless]
    return _end(job, failed, len(ranked) + len(failed), None if failed else trouble)


def _end(job: Job, failed: list[str], jobs: int, trouble: str | None) -> int:
    from o2o_lightning.cli.run import say

    say(*failed)
    if trouble is not None:
        raise Failure(f"the launcher failed: {trouble}. The same command goes on with what is left.")
    if failed:
        raise Failure(
            f"{len(failed)} of {jobs} jobs failed; {job.run_dir} has what each said. "
            "The same command goes on with them, and skips the others."
        )
    return 0


def _reason(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    said = [line for line in lines if line.startswith("o2o: ")]
    return (said or lines or ["it was never started"])[-1].removeprefix("o2o: ")


def _check_plugins(tokens: list[str]) -> None:
    for token in tokens:
        kind, _, name = token.removeprefix("hydra/").partition("=")
        plugin, found = f"{name.partition('_')[0]}_{kind}", None
        if extra := PLUGINS.get(plugin):
            with contextlib.suppress(ModuleNotFoundError):
                found = find_spec(f"hydra_plugins.hydra_{plugin}")
            if found is None:
                raise UserError(f"{token}: its plugin is not installed. Run `pip install 'o2o-lightning[{extra}]'`.")
