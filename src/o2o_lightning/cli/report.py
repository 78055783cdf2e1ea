"""``o2o report``: curves, tables and pictures of finished runs, seeds and methods side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.show import refuse_existing, say
from o2o_lightning.errors import UserError

if TYPE_CHECKING:
    from o2o_lightning.report.groups import Group

WIDE = 150  # columns of a terminal that has room for intervals
DESCRIPTION = """\
Reads run directories, folders of seeds, sweeps, or whole trees of them. Runs that differ in their seeds alone are one
row and one line with an interval; other options that differ are named. Writes report.md, report.html (one file that
needs no other), pictures as PNG and PDF, table.tex and report.json.
"""


def main(argv: list[str]) -> int:
    """Runs ``o2o report``."""
    parser = Parser("o2o report", description=DESCRIPTION)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", type=Path, help="a run, or a folder of runs")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument("--film", action="store_true", help="show an episode of each method's policy, as GIF")
    parser.add_argument("--card", action="store_true", help="write RUN_DIR/README.md instead, the card of its policy")
    arguments = parser.parse_args(argv)
    from o2o_lightning.report.groups import gather
    from o2o_lightning.report.report import is_report, write
    from o2o_lightning.report.runs import find
    from o2o_lightning.report.video import without_display

    if arguments.card:
        return _cards(arguments.run_dirs)
    out: Path = arguments.out
    if out.exists() and not (out.is_dir() and (is_report(out) or not any(out.iterdir()))):
        raise UserError(f"{out}: it is not a report of `o2o report`, and nothing is written over. Pass another --out.")
    if arguments.film:
        without_display()
    runs, notes = find(arguments.run_dirs)
    groups = gather(runs)
    notes = write(groups, notes, out, arguments.film)
    show(groups)
    for line in (*notes, f"{out}/report.html, report.md, table.tex, report.json, and pictures as PNG and PDF"):
        say(line)
    return 0


def _cards(folders: list[Path]) -> int:
    from o2o_lightning.checkpoint.io import write_atomically
    from o2o_lightning.report.card import card
    from o2o_lightning.report.runs import read

    cards = {folder / "README.md": card(read(folder)) for folder in folders}
    refuse_existing("RUN_DIR, or move it away", *cards)
    for target, text in cards.items():
        write_atomically(target, text.encode())
        say(f"{target}: the card of {target.parent}")
    return 0


def show(groups: "list[Group]") -> None:
    """Tables of scores and costs, as wide as the terminal is."""
    from rich.table import Table

    from o2o_lightning.report.figures import unit
    from o2o_lightning.report.report import costs, scores, tasks

    console = Console()
    wide = console.width >= WIDE
    for same in tasks(groups):
        what = f"{same[0].title}: {unit(same)}, IQM" + " [95 % interval]" * wide
        for title, found in ((what, scores(same, wide)), ("Costs, means over the seeds", costs(same))):
            table = Table(title=escape(title))
            for number, column in enumerate(found.columns):
                table.add_column(column, justify="right" if number else "left")
            for row in found.rows:
                table.add_row(*map(escape, row))
            console.print(table)
