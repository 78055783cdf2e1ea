"""The study of the paper's arms: each command line that it makes is one that `o2o fit` takes."""

from __future__ import annotations

import argparse
import json
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


def score(start: float, aligned: float | None, curve: list[float]) -> dict[str, Any]:
    points = [[1000 * i, value, None] for i, value in enumerate(curve)]
    return {"offline": start, "aligned": aligned, "curve": points, "final": curve[-1]}


@pytest.mark.parametrize(
    ("start", "aligned", "lowest", "held"),
    [(50.0, 40.0, 48.0, True), (50.0, 60.0, 56.0, False), (-200.0, None, -209.0, True), (-200.0, None, -211.0, False)],
)
def test_a_run_is_held_where_no_early_evaluation_loses_a_twentieth_of_its_better_start(
    start: float, aligned: float | None, lowest: float, held: bool
) -> None:
    outside = lowest - 1000.0  # before 2,000 steps and after 6,000 it does not count
    curve = [start, outside, lowest + 5.0, lowest, lowest + 9.0, lowest + 1.0, lowest + 2.0, outside]
    assert learning.held(score(start, aligned, curve)) is held


def test_a_row_has_the_means_of_all_seeds_and_says_how_many_were_held() -> None:
    runs = [score(50.0, 40.0, [50.0, 50.0, v, v, v, v, v, v + 1.0]) for v in (49.0, 51.0)]
    early = "50.0 [49.0, 51.0]"
    assert learning.cells(runs) == [
        "50.0 [50.0, 50.0]",
        "40.0 [40.0, 40.0]",
        early,
        early,
        "51.0 [50.0, 52.0]",
        "2 of 2",
    ]
    assert learning.cells([score(50.0, None, [1.0] * 8)]) == ["50.0", "–", "1.0", "1.0", "1.0", "0 of 1"]


def test_the_aligned_policy_is_known_where_an_alignment_came_before() -> None:
    known = score(50.0, 40.0, [1.0] * 8)
    assert learning.scores({"source": {"phase": "align"}, "score": known}) == known
    direct = learning.scores({"source": {"phase": "offline"}, "score": known})
    assert learning.cells([direct])[:2] == ["50.0", "–"]


def study(out: Path, *more: str) -> argparse.Namespace:
    words = ["run", "--out", str(out), "--datasets", "a/pendulum.hdf5", "--seeds", "3", "7", "--arms", "o2td3", *more]
    return learning.parsed(words)


def test_seeds_of_one_job_start_from_their_own_checkpoints(tmp_path: Path) -> None:
    (chain,) = learning.chains(study(tmp_path, "--stacked", "--steps", "offline=5"))
    assert chain.folder == tmp_path / "pendulum/stacked"
    first, *_, last = chain.options
    assert chain.arguments(first)[-3:] == ["steps.offline=5", "--data.dataset=a/pendulum.hdf5", "seeds=[3,7]"]
    start = tmp_path / "pendulum/stacked/align_td3/seed-$SEED/align/checkpoints/last.ckpt"
    assert chain.arguments(last)[-1] == f"--model.init_from={start}"


def test_without_it_each_seed_is_a_chain_of_its_own(tmp_path: Path) -> None:
    chains = learning.chains(study(tmp_path))
    assert [chain.folder.name for chain in chains] == ["seed3", "seed7"]
    assert "--seed_everything=7" in chains[1].arguments("td3_bc")


def test_a_table_reads_seeds_that_were_made_apart_and_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, end in (("seed0/o2td3", 50.0), ("stacked/o2td3/seed-1", 52.0), ("stacked/o2td3/seed-2", 54.0)):
        folder = tmp_path / "pendulum" / run / "online"
        folder.mkdir(parents=True)
        known = {"source": {"phase": "align"}, "score": score(50.0, 50.0, [50.0] * 7 + [end])}
        (folder / "summary.json").write_text(json.dumps(known))
    assert [(seed, arm) for _, arm, seed, _ in learning.runs_in(tmp_path)] == [(n, "o2td3") for n in "012"]
    assert learning.main(["table", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    row = table.splitlines()[-1]
    assert row.startswith("| pendulum | o2td3 | 3 | 50.0 [50.0, 50.0] |") and row.endswith("| 3 of 3 |")

    file = tmp_path / "records.jsonl"
    earlier = {"run": ["pendulum", "o2td3", "2"], "score": score(0.0, 0.0, [0.0] * 8)}, {"run": ["maze", "o2sac", "2"]}
    file.write_text("".join(json.dumps(line) + "\n" for line in earlier))
    assert learning.main(["record", "--out", str(tmp_path), "--file", str(file)]) == 0
    kept = learning.records(file)
    assert [*kept] == [("maze", "o2sac", "2"), *(("pendulum", "o2td3", seed) for seed in "012")]
    assert kept["pendulum", "o2td3", "2"]["score"]["final"] == 54.0  # the study's, in the place of an earlier one
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    assert learning.main(["table", "--out", str(file)]) == 0
    assert capsys.readouterr().out.endswith(table)


def test_seeds_stand_apart_arm_beside_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {("o2td3", "0"): 50.0, ("o2td3", "1"): 60.0, ("o2td3", "2"): 1.0, ("o2td3_noutd", "1"): 40.0}
    curves = {key: score(end, end, [end - 8.0] + [end] * 7) for key, end in runs.items()}
    curves["o2td3", "1"]["curve"][4][1] = 40.0  # at 4,000 steps
    curves["o2td3_noalign", "0"] = score(50.0, None, [50.0] * 8)
    lines = [{"run": ["maze", *key], "source": {"phase": "align"}, "env_steps": 7000, "score": curve}
             for key, curve in curves.items()]  # fmt: skip
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = ["--arms", "o2td3", "o2td3_noutd", "o2td3_noalign"]
    assert learning.main(["apart", "--out", str(file), *arms]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| maze | 0, 1 | 50.0 [49.0], 60.0 [56.5]! | –, 40.0 [39.0] | 50.0 [50.0], – |"
    assert learning.main(["apart", "--early", "--out", str(file), *arms]) == 0
    assert "60.0 [56.0]!" in capsys.readouterr().out


EARNED = {"value": 292.4, "truth": 536.0, "correlation": 0.314}


def test_values_stand_beside_what_the_policy_earned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, facts in (("0", {"earned": EARNED}), ("1", {})):  # the second was not asked
        folder = tmp_path / f"maze/seed{seed}/reevaluate_td3/reevaluate"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(facts))
    assert learning.main(["values", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| maze | reevaluate_td3 | 292 of 536 | 0.31 |"]


@pytest.mark.slow
def test_a_stacked_study_runs_to_its_table(pendulum: str, tmp_path: Path) -> None:
    small = [f"steps.{phase}={n}" for phase, n in dict(offline=64, reevaluate=32, align=32, env=40).items()]
    words = ["run", "--out", str(tmp_path), "--stacked", "--datasets", pendulum, "--seeds", "0", "1", "--arms", "o2td3"]
    assert learning.main([*words, "--options", *small, "data.eval_episodes=2", "++data.batch_size=16"]) == 0
    assert len([run for run in learning.runs_in(tmp_path) if run[1] == "o2td3"]) == 2
