"""``seeds=``: several seeds of one run in one process, each in a directory that looks like that of a run of its own."""

import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from o2o_lightning.callbacks.checkpoint import PhaseCheckpoint, StopSignals
from o2o_lightning.callbacks.progress import PhaseProgress
from o2o_lightning.checkpoint.io import write_json
from o2o_lightning.checkpoint.run import (
    LOCK,
    PLAN,
    add_to_plan,
    lock,
    read_plan,
    read_summary,
    seed_folder,
    unlock,
    write_plan,
)
from o2o_lightning.cli.command import Command, split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.lightning import Built
from o2o_lightning.cli.plan import Step, check
from o2o_lightning.cli.run import LAST, check_run_dir, foresee, remove, say, tidy, waiting_for_scores, write_run_summary
from o2o_lightning.data.mapped import opened_once
from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.lanes import Lane, Lanes
from o2o_lightning.errors import Failure, Interrupted, UserError
from o2o_lightning.phases.hardware import check_stackable, set_products

Start = tuple[Built, Path | None]  # a phase, and the checkpoint that it goes on from


def seeds_of(command: Command) -> list[int] | None:
    """What ``seeds=`` names, None where it is not given.

    Raises:
        UserError: no number, no list of different ones, or a seed beside them.
    """
    given = compose("offline", command)["seeds"]
    if given is None:
        return None
    seeds = [*range(given)] if type(given) is int else given
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"seeds={given}: a number of seeds, or a list of them such as seeds=[3,4,9], is needed.")
    if not seeds or len({*seeds}) < len(seeds):
        raise UserError(f"seeds={given}: at least one seed is needed, and each once.")
    if command.named("seed_everything") or command.overridden("seed_everything"):
        raise UserError("--seed_everything: seeds= names the seeds already. Leave one of them out.")
    return seeds


def entry_of_seed(entry: dict[str, Any], seed: int) -> dict[str, Any]:
    """A plan's entry of all seeds as that of a run of one."""
    one = split(["--phase", entry["phase"], *entry["overrides"], *entry["options"]]).of_seed(seed)
    kept = {key: value for key, value in entry.items() if key not in ("seeds", "datasets")}
    return {**kept, "overrides": one.overrides, "options": one.tokens}


def run(plans: dict[int, list[Step]], run_dir: Path, notes: list[str], entry: dict[str, Any]) -> None:
    """Runs the phases that were planned for each seed, every phase for all seeds before the next one."""
    seeds, phases = [*plans], [step.phase for step in next(iter(plans.values()))]
    check_run_dir(run_dir, phases, seeds)
    entries = {seed: entry_of_seed(entry, seed) for seed in seeds}
    for seed in seeds:
        check_run_dir(seed_folder(run_dir, seed), phases)
    built = [step.cli.build(seed_folder(run_dir, seeds[0]), step.phase, entries[seeds[0]]) for step in plans[seeds[0]]]
    check(built)
    for one in built:
        check_stackable(one.trainer, one.model.compiles)
    say(*notes, *waiting_for_scores(built))
    foresee(entry, plans[seeds[0]], built)
    with _begun(run_dir, entry):
        together = Together(run_dir, seeds)
        for k, phase in enumerate(phases):
            starts: dict[int, Start] = {}
            for seed in together.living:
                cli = plans[seed][k].cli
                own = built[k] if seed == seeds[0] else cli.build(seed_folder(run_dir, seed), phase, entries[seed])
                own.after = built[k].after
                starts[seed] = own, None
            together.fit(phase, starts, fresh=True)
        together.end()


class Together:
    """The seeds of a run, phase after phase; one that fails is left behind."""

    def __init__(self, run_dir: Path, seeds: list[int]) -> None:
        self.run_dir, self.seeds = run_dir, seeds
        self.failures: dict[int, BaseException] = {}
        self._open, self._before = opened_once(), dict[int, OfflineData]()

    @property
    def living(self) -> list[int]:
        """Those that have not failed."""
        return [seed for seed in self.seeds if seed not in self.failures]

    def fit(self, phase: str, starts: dict[int, Start], fresh: bool = False) -> None:
        """One phase of those seeds that ``starts`` names, each in its lane; ``fresh`` where bad input leaves nothing.

        Raises:
            Interrupted: all have stopped in good order.
            UserError: none of them could begin, all for the same reason.
        """
        if not starts:
            return
        lanes, signals = Lanes(len(self.seeds)), AllSignals()
        for number, (seed, (built, _)) in enumerate(starts.items()):
            check_stackable(built.trainer, built.model.compiles)
            self._join(lanes, seed, built, number == 0, signals)
        if any(built.model.method.draws for built, _ in starts.values()):
            say(f"{phase}: its steps draw random numbers themselves (dropout), so the seeds are made one by one")
        jobs = {self.seeds.index(seed): partial(self._live, seed, *start, fresh) for seed, start in starts.items()}
        signals.watch()
        try:
            errors = {self.seeds[place]: error for place, error in sorted(lanes.turns.run(jobs).items())}
        finally:
            signals.release()
            lanes.end()
            set_products("highest" if any(built.model.products for built, _ in starts.values()) else None)
        if len(errors) < len(starts):
            write_summary(self.run_dir, self.seeds)
            say(f"{phase}: done, {len(starts) - len(errors)} seeds, {self.run_dir}/seed-*/{phase}/{LAST}")
        self._judge(errors, len(starts))

    def end(self) -> None:
        """Raises what seeds have failed of."""
        for error in self.failures.values():
            if not isinstance(error, UserError | OSError):
                raise error
        if self.failures:
            said = " ".join(f"Seed {seed}: {error}" for seed, error in self.failures.items())
            raise Failure(f"{len(self.failures)} of {len(self.seeds)} seeds stopped. {said}")

    def _join(self, lanes: Lanes, seed: int, built: Built, first: bool, signals: "AllSignals") -> None:
        model, data = built.model, built.datamodule
        model.lane = Lane(lanes, self.seeds.index(seed))
        data.open = self._open
        if seed in self._before:
            data.follow(self._before[seed])
        self._before[seed] = data
        for callback in built.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PhaseProgress):
                callback.share(f"seed {seed}", first)
            if isinstance(callback, PhaseCheckpoint):
                signals.each.append(callback.signals)

    def _live(self, seed: int, built: Built, checkpoint: Path | None, fresh: bool) -> None:
        folder = seed_folder(self.run_dir, seed)
        with tidy(built, folder) if fresh else contextlib.nullcontext():
            built.fit(checkpoint)
        write_run_summary(folder)

    def _judge(self, errors: dict[int, BaseException], begun: int) -> None:
        stops = {seed: error for seed, error in errors.items() if isinstance(error, Interrupted)}
        failed = {seed: error for seed, error in errors.items() if seed not in stops}
        if len(failed) == begun and len({str(error) for error in failed.values()}) == 1:
            raise next(iter(failed.values()))
        self.failures |= failed
        say(*(f"seed {seed}: {error} It stops, the others go on." for seed, error in failed.items() if self.living))
        if stops:
            number = next(iter(stops.values())).exit_code - 128
            name = signal.Signals(number).name
            raise Interrupted(f"{name}: all seeds stopped and saved. Go on with `o2o resume {self.run_dir}`.", number)


class AllSignals(StopSignals):
    """Tells each seed of a signal, which only the main thread receives."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[StopSignals] = []

    def _note(self, number: int, frame: Any) -> None:
        super()._note(number, frame)
        for signals in self.each:
            signals.received = number


def write_summary(run_dir: Path, seeds: list[int]) -> None:
    """``RUN_DIR/summary.json``: what all seeds' summaries say alike, the mean of each score, and its deviation."""
    folders = {seed: seed_folder(run_dir, seed) for seed in seeds}
    found = {seed: read_summary(folder) for seed, folder in folders.items() if (folder / "summary.json").exists()}
    first, *others = found.values()
    alike = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    scores = {
        key: [summary["score"][key] for summary in found.values()]
        for key, value in first["score"].items()
        if isinstance(value, float) and all(key in other["score"] for other in others)
    }
    write_json(run_dir / "summary.json", {
        **{key: value for key, value in alike.items() if key != "score"},
        "seeds": [*found],
        "seconds": round(sum(summary["seconds"] for summary in found.values()), 3),
        "score": {key: mean(values) for key, values in scores.items()},
        "score_sd": {key: stdev(values) for key, values in scores.items() if len(values) > 1},
    })  # fmt: skip


@contextlib.contextmanager
def _begun(run_dir: Path, entry: dict[str, Any]) -> Iterator[None]:
    """Keeps the plan of all seeds; takes it back if no seed has begun a phase of it."""
    top = run_dir.absolute()
    places = (top / PLAN, top / LOCK, top, *top.parents)
    before, new = read_plan(run_dir), [path for path in places if not path.exists()]
    lock(run_dir)
    add_to_plan(run_dir, entry, {})  # each seed's own plan knows the dataset's digest
    try:
        yield
    except BaseException:
        folders = [seed_folder(run_dir, seed) / phase for seed in entry["seeds"] for phase in entry["phases"]]
        if not any(folder.exists() for folder in folders):
            write_plan(run_dir, before)
            unlock(run_dir)
            remove(new)
        raise
