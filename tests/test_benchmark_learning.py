"""The study of the paper's arms: each command line that it makes is one that `o2o fit` takes."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose
from o2o_lightning.cli.jobs import ordered

PATH = Path(__file__).parents[1] / "benchmarks" / "learning.py"
if not PATH.exists():
    pytest.skip("benchmarks are not in an sdist", allow_module_level=True)
spec = spec_from_file_location("benchmarks_learning", PATH)  # tests have a module of that name
assert spec is not None
assert spec.loader is not None
learning: Any = module_from_spec(spec)
spec.loader.exec_module(learning)


@pytest.mark.parametrize("name", learning.JOBS)
def test_what_is_typed_for_each_job_is_what_its_configuration_takes(name: str) -> None:
    job = learning.JOBS[name]
    composed = compose(job.phase, split([f"--phase={job.phase}", *job.choices, "tier=medium"]))
    assert composed["model"]


def test_each_job_starts_from_one_whose_checkpoint_its_phase_takes() -> None:
    before = {"clone": "offline", "reevaluate": ("offline", "clone"), "align": "reevaluate"}
    for job in learning.JOBS.values():
        if job.phase in before:
            assert job.parent is not None
            assert learning.JOBS[job.parent].phase in before[job.phase]
    assert [*ordered(learning.JOBS, ["o2sac"])] == ["td3_bc", "clone", "reevaluate_sac", "align_sac", "o2sac"]
