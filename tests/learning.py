"""What the learning tests share: runs of the command line, their scores, and where a hand-off collapses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from o2o_lightning.cli.main import main


def fit(*argv: object) -> None:
    """``o2o fit ARGV``, which must succeed."""
    assert main(["fit", *map(str, argv)]) == 0


def last(run_dir: Path, phase: str) -> Path:
    """The checkpoint that a phase has ended with."""
    return run_dir / phase / "checkpoints" / "last.ckpt"


def beside_direct(directory: Path, seed: int, steps: list[str], methods: list[str], direct: str, start: str) -> None:
    """The whole pipeline in ``full``, and in ``direct`` plain fine-tuning of what its phase ``start`` ended with."""
    common = [*steps, "--seed_everything", seed]
    fit("--phase", "all", *methods, *common, "--run_dir", directory / "full")
    policy = ["--model.init_from", last(directory / "full", start)]
    fit("--phase", "online", f"online={direct}", *common, *policy, "--run_dir", directory / "direct")


def score(run_dir: Path, phase: str = "online") -> dict[str, Any]:
    """The scores of a phase."""
    found: dict[str, Any] = json.loads((run_dir / phase / "summary.json").read_text())["score"]
    return found


def early(score: dict[str, Any]) -> list[float]:
    """Scores between 2,000 and 6,000 environment steps; the first thousand is warm-up."""
    return [value for step, _, value in score["curve"] if 2000 <= step <= 6000]
