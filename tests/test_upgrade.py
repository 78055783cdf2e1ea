"""``docs/upgrade.md``: the names of version 0.1 that it lists are those that are read, and lead to what it says."""

import re
from pathlib import Path

from o2o_lightning.cli.models import FORMER

PAGE = (Path(__file__).parents[1] / "docs" / "upgrade.md").read_text()


def test_every_class_of_version_01_that_files_may_name_is_in_the_table_beside_its_method() -> None:
    rows = [row.split("|")[1:4] for row in PAGE.splitlines() if row.startswith("| `")]
    pairs = [zip(*(re.findall("`([^`]+)`", cell) for cell in (row[0], row[2])), strict=True) for row in rows]
    listed = {f"o2o_lightning.phases.{old}": f"o2o_lightning.methods.{new}" for row in pairs for old, new in row}
    assert listed == FORMER
