"""A bar for what is no phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def transitions(total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many of ``total`` transitions there are, live on a terminal, as one line at the end elsewhere."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("[bold cyan]rollouts  "),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} transitions"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("rollouts", total=total)
    with bar:
        yield lambda done: bar.update(task, completed=done)
    if not console.is_terminal:
        console.print(f"rollouts   {total:,}/{total:,} transitions", highlight=False)
