"""`o2o reproduce`: every table and figure composes; small ones run, once, and stand beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_report import write_run

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, groups, lightning_config
from o2o_lightning.cli.jobs import Job, ordered
from o2o_lightning.cli.reproduce import chains, jobs, results, scaled
from o2o_lightning.report.groups import Group
from o2o_lightning.report.paper import Result, rows_beside, tall
from o2o_lightning.report.runs import read

O2O = Callable[..., int]
NAMES = [f"table{i}" for i in range(1, 7)] + [f"figure{i}" for i in range(1, 15)]
TINY = ("--scale", 1e-5, "--seeds", "0", "--trainer.accelerator=cpu", "--data.batch_size=8", "--data.eval_episodes=1")


def test_there_is_every_table_and_figure_of_the_paper() -> None:
    assert [*results()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_result_names_what_there_is_and_has_a_number_for_each_arm(name: str) -> None:
    result = results()[name]
    assert {*result.datasets} <= {*groups()["dataset"]}
    assert all(len(row) <= len(result.arms) for row in result.paper.values())
    assert {*result.paper} <= {*result.datasets, "total"}
    assert result.paper or result.says  # what it is to be compared with
    made = chains(result, Path("r"), dict.fromkeys(result.datasets, ""), [0, 1], 1.0, [])
    assert len(made) == 2 * len(result.datasets)


def test_every_step_composes() -> None:
    steps: dict[str, tuple[Job, tuple[str, ...]]] = {}
    for result in results().values():
        made = chains(result, Path("r"), {result.datasets[0]: ""}, [0], 1.0, [])[0]
        steps |= {name: (made.jobs[name], tuple(options)) for name, options in made.options.items()}
    for job, options in steps.values():
        command = split([f"--phase={job.phase}", *job.choices, *options])
        assert lightning_config(job.phase, compose(job.phase, command))["model"]["class_path"]
    assert {*jobs()} == {*steps}  # no step that nothing needs


def test_the_papers_totals_are_the_sums_of_its_columns_but_for_the_two_that_it_misprints() -> None:
    wrong = []
    for name, at in (("table1", 0), ("table1", -1), ("table2", 0), ("table4", 0), ("table4", -1)):
        result = results()[name]
        for i, arm in enumerate(result.arms):
            column = [float(row[i].split()[at].strip("()")) for row in result.paper.values()]
            if abs(sum(column[:-1]) - column[-1]) > 0.06:
                wrong.append(f"{name} {arm}")
    assert sorted({*wrong}) == ["table1 O2SAC", "table1 O2TD3"]


def test_shared_steps_come_once_each_behind_what_it_starts_from() -> None:
    table = {"a": Job("offline", ()), "b": Job("reevaluate", (), "a"), "c": Job("online", (), "b"),
             "d": Job("online", (), "a"), "e": Job("offline", ())}  # fmt: skip
    assert [*ordered(table, ["d", "c"])] == ["a", "b", "c", "d"]


def test_counts_evaluations_and_warm_up_are_scaled_alike() -> None:
    step = jobs()["o2sac"]  # 100,000 steps, an evaluation every 1,000, warm-up of 1,000
    found = scaled(step, ["dataset=hopper-medium-v2"], 0.01)
    assert found == ["steps.env=1000", "--data.eval_every=10", "--data.warmup_steps=10"]
    assert scaled(jobs()["cql"], [], 0.01)[0] == "steps.offline=10000"


def test_cells_are_means_over_seeds_and_totals_sums_over_all_datasets(tmp_path: Path) -> None:
    result = Result("x", ["a", "b"], {"A": "s", "B": "t"}, cell="{final:.1f} ± {spread:.1f} ({gain:+.1f})",
                    paper={"a": ["9 (1)"], "total": ["8 (2)", "7 (3)"]})  # fmt: skip
    found, sources = {}, {}
    for dataset, finals in {"a": (50.0, 60.0), "b": (10.0, 20.0)}.items():
        folders = [tmp_path / f"{dataset}{seed}" for seed in (0, 1)]
        ends = [((0, 0.0), (3000, final)) for final in finals]
        runs = [read(write_run(folder, seed=i, curve=ends[i])) for i, folder in enumerate(folders)]
        starts = [read(write_run(Path(f"{folder}-off"), curve=((0, 5.0),))) for folder in folders]
        found[dataset, "A"], sources[dataset, "A"] = Group("A", runs), starts
    rows = rows_beside(result, ["a", "b"], found, sources)
    # of two numbers that are ten apart the sample's deviation is √50
    assert [row["A"] for row in rows] == ["55.0 ± 7.1 (+50.0)\n9 (1)", "15.0 ± 7.1 (+10.0)\n–", "70.0 (+60.0)\n8 (2)"]
    assert [row["B"] for row in rows] == ["– (–)\n–", "– (–)\n–", "– (–)\n7 (3)"]
    assert tall(rows)[1] == {"dataset": "a", "arm": "B", "ours": "– (–)", "paper": "–"}
    part = rows_beside(result, ["a"], found, sources)
    assert [row["A"] for row in part][1:] == ["– (–)\n8 (2)"]  # the paper's total is of all


def test_a_small_reproduction_runs_what_is_missing_and_stands_beside_the_paper(
    pendulum: str, tmp_path: Path, o2o: O2O, capfd: pytest.CaptureFixture[str]
) -> None:
    local = ("--datasets", f"hopper-expert-v2={pendulum}", "--run_dir", tmp_path, *TINY)
    assert o2o("reproduce", "figure14", *local) == 0
    shown = capfd.readouterr().out
    assert shown.count(": done") == 1 and results()["figure14"].says in shown and "not the paper's" in shown
    seed = tmp_path / "hopper-expert-v2" / "seed0"
    assert (seed / "iql" / "offline" / "summary.json").exists() and (tmp_path / "figure14" / "report.html").exists()
    assert o2o("reproduce", "figure9", *local, "--dry_run") == 0
    assert "4 steps of 1 datasets and seeds: 3 runs to make" in capfd.readouterr().out  # one of them is there
    assert o2o("reproduce", "figure14", *local) == 0
    assert ": done" not in capfd.readouterr().out  # nothing was made again
    assert o2o("reproduce", "figure14", *local, "--data.utd", "2") == 2  # another study
    assert "begun with another" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["table7"], "there is no such result"),
        (["table2", "--scale", "2"], "--scale"),
        (["table2", "--datasets", "mine"], "Pass mine=FILE.hdf5"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_in_one_line(
    argv: list[str], said: str, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o("reproduce", *argv) == 2
    assert said in capsys.readouterr().err
