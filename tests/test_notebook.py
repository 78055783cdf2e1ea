"""The notebooks of docs/ run from their first cell to their last, at small counts, and hold no output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))
SMALL = {"OFFLINE": 6, "REEVALUATE": 6, "ALIGN": 6, "ENV_STEPS": 20, "EPISODES": 1, "HIDDEN": (16, 16)}


def cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    here: dict[str, Any] = {}
    first, *rest = ("".join(cell["source"]) for cell in cells(notebook))
    exec(first, here)
    assert SMALL.keys() <= here.keys()
    here |= SMALL
    for source in rest:
        exec(compile(source, notebook.name, "exec"), here)
    assert [step for step, _, _ in here["online"].curve] == [0, 20]
    assert here["policy"](here["online"].data.store["observation"][:2].numpy()).shape == (2, 3)
    found = json.loads((tmp_path / "runs/report/report.json").read_text())
    assert "O2TD3" in json.dumps(found) and here["picture"].stat().st_size > 10_000


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_no_output(notebook: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook))
