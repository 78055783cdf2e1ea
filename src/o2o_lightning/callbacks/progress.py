"""Two Rich lines a phase: where it is, how good the policy is, what the constraint does, how fast it goes."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from rich import progress as rich_progress
from rich.console import Console, RenderableType
from rich.text import Text

from o2o_lightning.callbacks.hooks import PhaseCallback, Watched
from o2o_lightning.envs.episodes import Evaluation
from o2o_lightning.envs.scores import score_or_return

REFRESH_SECONDS = 0.25


class TwoLines(rich_progress.Progress):
    """The bar, and below it the status, so that both fit in eighty columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text(f"  {task.fields['status']}")


class PhaseProgress(ProgressBar, PhaseCallback):
    """Shows phase, clock, π_off / current / best score, λ, τ, divergence, updates a second and time left.

    ``after``: seconds of the phases that follow, where an estimate knows; then also the time that all of them take.
    ``forecast``: a line before the first update, once all callbacks have accepted the run.

    On a terminal they are live; elsewhere (a log file, CI) it prints one plain line an evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bar: TwoLines | None = None
        self._task = rich_progress.TaskID(0)
        self._drawn_at = 0.0
        self._speed_mark = (0.0, 0, 0)
        self.after: float | None = None
        self.forecast: str | None = None
        self._enabled = True
        self._best: float | None = None
        self._note: str | None = None
        self._run = ""  # which of several in one process

    def share(self, run: str, first: bool) -> None:
        """Lines name their ``run``, one of several in this process; on a terminal only the ``first`` one shows them."""
        self._run = f"{run}: "
        self._enabled = self._enabled and (first or not self._console.is_terminal)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, phase: Any) -> None:
        self._speed_mark = (time.monotonic(), phase.updates, phase.clock)
        self._note = phase.compile_note(phase.planned_updates)
        # of a resumed phase, what it has scored before
        self._best = max((score_or_return(score, return_) for _, return_, score in phase.curve), default=None)
        if not (self._enabled and self._console.is_terminal):
            return
        self._bar = TwoLines(*_columns(), console=self._console)
        unit = phase.clock_name.replace("_", " ")
        self._task = self._bar.add_task(f"{self._run}{phase.phase}", total=phase.total, unit=unit, status="")
        self._bar.start()

    def on_train_batch_start(self, trainer: L.Trainer, phase: Any, batch: Any, batch_idx: int) -> None:
        forecast, note = self.forecast, self._note
        self.forecast = self._note = None  # not before all callbacks have accepted the run
        if forecast is not None:
            self._say(forecast, of_run=False)
        if note is not None:
            self._say(f"{phase.phase}: {note}")

    def on_train_batch_end(self, trainer: L.Trainer, phase: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._drawn_at > REFRESH_SECONDS:
            self._drawn_at = now
            self._bar.update(self._task, completed=phase.clock, status=self._status(phase, now))

    def on_evaluation(self, trainer: L.Trainer, phase: Watched, result: Evaluation) -> None:
        self._best = result.value if self._best is None else max(self._best, result.value)
        phase.display["now"] = result.value
        if self._enabled and self._bar is None:
            clock = f"{phase.curve[-1][0]:,}/{phase.total:,} {phase.clock_name.replace('_', ' ')}"
            self._say(f"{phase.phase:<10} {clock}  {self._status(phase, time.monotonic())}")

    def on_fit_end(self, trainer: L.Trainer, phase: Any) -> None:
        if self._bar is not None:  # not at the end of training: one more evaluation comes there
            self._bar.update(self._task, completed=phase.clock, status=self._status(phase, time.monotonic()))
        self._stop()
        reasons = ((callback, getattr(callback, "stopping_reason_message", None)) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        said = [f"{phase.phase}: {type(callback).__name__}: {reason}" for callback, reason in reasons if reason]
        for line in (phase.conclusion(), *said):
            if line is not None:
                self._say(line)

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        self._stop()

    def _say(self, line: str, of_run: bool = True) -> None:
        if self._enabled:
            line = self._run + line if of_run else line
            self._console.print(line, highlight=False, soft_wrap=True)  # a log's lines are not a terminal's

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _status(self, phase: Watched, now: float) -> str:
        since, updates, clock = self._speed_mark
        shown, offline = phase.display, score_or_return(phase.scores.get("offline"), phase.returns.get("offline"))
        values = {"π_off": offline, "now": shown.get("now"), "best": self._best}
        values |= {name: shown.get(name) for name in ("sampled", "goal")}
        parts = [f"{name} {value:.1f}" for name, value in values.items() if value is not None]
        parts += phase.status()
        if now > since:
            parts.append(f"{(phase.updates - updates) / (now - since):,.0f} upd/s")
        if self.after and phase.clock > clock:
            left = (phase.total - phase.clock) * (now - since) / (phase.clock - clock) + self.after
            parts.append(f"all phases {timedelta(seconds=round(left))} left")
        return "  ".join(parts)


@contextmanager
def transitions(total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of ``total`` transitions there are, live on a terminal, as one line at the end elsewhere."""
    console = Console(stderr=True)
    with rich_progress.Progress(*_columns(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rollouts", total=total, unit="transitions")
        yield lambda done: bar.update(task, completed=done)
    if not console.is_terminal:
        console.print(f"rollouts   {total:,}/{total:,} transitions", highlight=False)


def _columns() -> tuple[rich_progress.ProgressColumn, ...]:
    return (
        rich_progress.TextColumn("[bold cyan]{task.description:<10}"),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
