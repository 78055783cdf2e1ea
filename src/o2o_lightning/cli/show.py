"""What a command with one answer prints, on stdout, and where it does not write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from o2o_lightning.errors import UserError, visible


def say(line: str) -> None:
    """One line for the user, however long."""
    Console(highlight=False, markup=False, soft_wrap=True).print(visible(line))


def refuse_existing(options: str, *paths: Path) -> None:
    """Results are never written over; ``options`` choose another place."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: it exists, and nothing is written over. Pass another {options}.")


def show_facts(title: str, *sections: Mapping[str, str]) -> None:
    """Names and texts, a rule between the sections."""
    table = Table(title=escape(visible(title)), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for section in sections:
        for name, text in section.items():
            table.add_row(name, escape(visible(text)))
        table.add_section()
    Console().print(table)


def show_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row, its names at the head."""
    table = Table(*rows[0], title=escape(visible(title)))
    for row in rows:
        table.add_row(*(escape(visible(str(value))) for value in row.values()))
    Console().print(table)
