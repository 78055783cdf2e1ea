"""The study of all methods has all methods, each after what its recipe runs before it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, config_dir

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
rivals = pytest.importorskip("rivals", reason="benchmarks are not in an sdist")


def test_each_recipe_is_studied_behind_its_own_phases() -> None:
    jobs = rivals.jobs()
    recipes = {path.stem for path in (config_dir() / "online").glob("*.yaml") if path.stem[0] != "_"}
    assert {name.removeprefix("online-") for name in jobs if name.startswith("online-")} == recipes
    assert jobs["online-o2sac"].parent == "align-o2sac" and jobs["reevaluate-o2sac"].parent == "offline-cql"
    assert jobs["online-pex"].parent == jobs["online-iql"].parent == "offline-iql"
    assert jobs["online-rlpd"].parent is None


def test_methods_that_share_an_offline_phase_have_it_from_the_same_options() -> None:
    for first, methods in rivals.METHODS.items():
        models = [rivals._composed("offline", method)["model"] for method in methods]
        assert all(model == models[0] for model in models), first


def test_what_is_typed_for_each_job_is_what_its_configuration_takes() -> None:
    for name, job in rivals.jobs().items():
        composed = compose(job.phase, split([f"--phase={job.phase}", *job.choices, "tier=medium", *rivals.typed(name)]))
        assert composed["data"]["batch_size"] == (128 if name == "online-so2" else 64), name
