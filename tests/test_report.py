"""`o2o report`: which runs belong together, what the numbers are, and what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from PIL import Image

from o2o_lightning import load_policy
from o2o_lightning.callbacks.run_directory import score_block
from o2o_lightning.cli.compose import config_dir
from o2o_lightning.cli.main import main
from o2o_lightning.cli.outcome import outcome
from o2o_lightning.report.groups import gather
from o2o_lightning.report.page import Table, latex
from o2o_lightning.report.runs import find, method_name
from o2o_lightning.report.statistics import interval, iqm, mean

O2O = Callable[..., int]


def write_run(
    folder: Path,
    algorithm: str = "o2td3",
    dataset: str = "d4rl:hopper-medium-v2",
    seed: int = 0,
    curve: tuple[tuple[float, float], ...] = ((0, 40.0), (1000, 30.0), (3000, 50.0)),
    start: str = "align",
    options: dict[str, Any] | None = None,
    scored: bool = True,
    **score: float,
) -> Path:
    """What a run of one online phase leaves, without the run."""
    points = [[clock, 10 * value, value if scored else None] for clock, value in curve]
    summary = {
        "phase": "online", "algorithm": algorithm, "env_id": "Hopper-v4", "dataset": dataset, "dataset_sha256": None,
        "source": {"phase": start, "algorithm": algorithm, "origin": "td3_bc"}, "seed": seed, "steps": 3000,
        "env_steps": 3000, "eval_env_steps": 500, "seconds": 90.0,
        "score": {"curve": points, "final": points[-1][-1] if scored else points[-1][1], "best": 50.0, **score},
    }  # fmt: skip
    align = {**summary, "phase": "align", "steps": 200, "env_steps": 0, "seconds": 10.0, "score": {"curve": []}}
    (folder / "online").mkdir(parents=True, exist_ok=True)
    (folder / "online" / "summary.json").write_text(json.dumps(summary))
    (folder / "summary.json").write_text(json.dumps(summary | {"phases": {"align": align, "online": summary}}))
    method = {"class_path": "Online", "init_args": {"threshold": {"end": 0.04}, **(options or {})}}
    config = {
        "trainer": {"max_steps": -1}, "model": {"init_args": {"method": method, "init_from": f"{folder}/a.ckpt"}},
        "data": {"init_args": {"warmup_steps": 500, "dataset": dataset}},
    }  # fmt: skip
    (folder / "online" / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def read_report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


# ---- statistics --------------------------------------------------------------------------------------------------

HOPPER, WALKER = np.array([[31.2], [48.9], [12.4], [77.7], [40.0]]), np.array([[64.0], [71.5], [55.3], [80.1], [20.6]])


@pytest.mark.parametrize(
    ("statistic", "expected"), [(iqm, (51.81666667, 33.26666667, 68.08333333)), (mean, (50.17, 36.85, 62.94))]
)
def test_values_and_intervals_over_datasets_are_those_of_rliable(
    statistic: Any, expected: tuple[float, float, float]
) -> None:
    # rliable 1.2.0 with pandas 2: get_interval_estimates, 50,000 resamples of aggregate_iqm and aggregate_mean
    value, low, high = interval(statistic, [HOPPER, WALKER])[:, 0]
    assert value == pytest.approx(expected[0])
    assert (low, high) == pytest.approx(expected[1:], abs=1.5)


def test_seeds_may_be_fewer_on_one_dataset_than_on_another() -> None:
    value = interval(iqm, [HOPPER[:3], WALKER])[0, 0]
    assert value == pytest.approx(np.mean([31.2, 48.9, 55.3, 64.0]))  # of 8 the middle 4


def test_one_seed_has_no_interval() -> None:
    value, low, high = interval(iqm, [HOPPER[:1]])[:, 0]
    assert value == 31.2 and np.isnan(low) and np.isnan(high)


# ---- the numbers of a run ----------------------------------------------------------------------------------------


def test_the_numbers_of_a_run_are_those_of_its_curve(tmp_path: Path) -> None:
    score = {"offline": 42.0, "aligned": 40.0, "lowest_early": 30.0}
    group = gather(find([write_run(tmp_path / "a", **score)])[0])[0]
    found = {name: group.column(name)[0] for name in ("offline", "aligned", "drop", "area", "regret", "final")}
    # 1000 steps at 35 on average, 2000 at 40; after the start it scores 30 and 50
    expected = {"offline": 42.0, "aligned": 40.0, "drop": 12.0, "area": 115 / 3, "regret": 0.6, "final": 50.0}
    assert found == pytest.approx(expected)
    assert group.cost("steps") == 3200 and group.cost("env_steps") == 3000 and group.cost("seconds") == 100.0


def test_returns_without_a_reference_have_no_regret(tmp_path: Path) -> None:
    group = gather(find([write_run(tmp_path / "a", scored=False)])[0])[0]
    assert np.isnan(group.column("regret")[0]) and group.column("final")[0] == 500.0


def test_curves_meet_on_one_clock_as_far_as_all_go(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, curve=((0, 0.0), (1000, 10.0), (2000, 20.0)))
    write_run(tmp_path / "b", seed=1, curve=((0, 40.0), (500, 20.0), (1500, 0.0)))
    group = gather(find([tmp_path])[0])[0]
    assert group.clock.tolist() == [0, 500, 1000, 1500]
    assert group.band[0].tolist() == [20, 12.5, 10, 7.5]


def test_the_lowest_early_score_is_of_a_policy_that_has_learned() -> None:
    curve = [[0, 0, 30.0], [1000, 0, 3.0], [2000, 0, 25.0], [6000, 0, 20.0], [9000, 0, 12.0], [30_000, 0, 1.0]]

    def block(budget: int, before_updates: int) -> Any:
        data = SimpleNamespace(budget=budget, steps_before_updates=before_updates)
        phase = SimpleNamespace(curve=curve, returns={}, scores={}, clock_name="env_steps", data=data)
        found = score_block(phase)
        assert found.get("min_first_tenth") == found.get("lowest_early")  # its old name
        return found.get("lowest_early")

    assert block(30_000, 1000) == 20.0  # 6,000 steps are more than a tenth, and at 1,000 nothing was learned yet
    assert block(30_000, 0) == 3.0
    assert block(100_000, 1000) == 12.0  # a tenth is more
    assert block(30_000, 7000) == 12.0  # nothing within 6,000: the first after
    assert block(30_000, 30_000) is None


# ---- which runs belong together ----------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seeds_alone_are_one_group(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"seed_everything={seed}", seed=seed)
    groups = gather(find([tmp_path])[0])
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [("O2TD3", [0, 1, 2])]


def test_every_recipe_has_a_name_that_a_talk_would_use() -> None:
    recipes = sorted(path.stem for path in (config_dir() / "online").glob("*.yaml") if path.stem[0] != "_")
    names = [method_name(recipe) for recipe in recipes]
    assert len(recipes) > 20 and [name for name in names if "_" in name or name == name.lower()] == []
    assert method_name("my_rule") == "my_rule"


def test_options_that_differ_are_named_and_nothing_else(tmp_path: Path) -> None:
    for end in (0.01, 0.04):
        options = {"threshold": {"end": end}, "actor_lr": 1e-4, "multiplier": {"every": None}}
        write_run(tmp_path / f"a{end}", options=options)
    labels = [group.label for group in gather(find([tmp_path])[0])]
    assert labels == ["O2TD3, threshold.end=0.01", "O2TD3, threshold.end=0.04"]


def test_another_start_or_another_offline_method_is_another_group(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", start="reevaluate")
    assert [group.label for group in gather(find([tmp_path])[0])] == ["O2TD3, from=align", "O2TD3, from=reevaluate"]


def test_plain_fine_tuning_of_a_policy_is_called_direct(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "td3", start="offline")
    assert [group.label for group in gather(find([tmp_path])[0])] == ["direct TD3"]


def test_one_file_by_two_paths_is_one_dataset(tmp_path: Path) -> None:
    for number, path in enumerate(("walker.hdf5", "/far/away/walker.hdf5")):
        folder = write_run(tmp_path / str(number), dataset=path, seed=number)
        for file in (folder / "summary.json", folder / "online" / "summary.json"):
            file.write_text(file.read_text().replace('"dataset_sha256": null', '"dataset_sha256": "82c3"'))
    (group,) = gather(find([tmp_path])[0])
    assert (group.task, len(group.runs)) == ("Hopper-v4, walker", 2)


def test_stacked_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "stacked")
    for seed in range(2):
        write_run(whole / f"seed-{seed}", seed=seed)
    runs, _ = find([tmp_path, whole])
    assert [run.path.name for run in runs] == ["seed-0", "seed-1"]


def test_an_unfinished_run_is_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "whole")
    half = write_run(tmp_path / "half")
    (half / "online" / "summary.json").unlink()
    plan = [{"phase": "online", "phases": ["online"], "overrides": [], "options": [], "cwd": "."}]
    (half / "plan.json").write_text(json.dumps(plan))
    runs, notes = find([tmp_path])
    assert [run.path.name for run in runs] == ["whole"]
    assert notes == [f"{half}: unfinished (phase 'online'), left out. `o2o resume {half}` goes on with it."]


@pytest.mark.parametrize("damage", ["{", '{"phase": "online", "algorithm": "td3", "score": {"curve": 3}}'])
def test_a_damaged_summary_costs_no_other_run_its_report(tmp_path: Path, damage: str) -> None:
    write_run(tmp_path / "whole")
    (write_run(tmp_path / "broken") / "summary.json").write_text(damage)
    assert [run.path.name for run in find([tmp_path])[0]] == ["whole"]


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two datasets, three seeds."""
    folder, draw = tmp_path_factory.mktemp("runs"), np.random.default_rng(3)
    for dataset, level in (("d4rl:hopper-medium-v2", 50.0), ("d4rl:walker2d-medium-v2", 70.0)):
        for algorithm, start, slope in (("o2td3", "align", 20.0), ("td3", "offline", -30.0)):
            for seed in range(3):
                clock = np.arange(0, 21_000, 1000)
                rise = slope * clock / 20_000 if slope > 0 else slope * np.exp(-(((clock - 4000) / 3000) ** 2))
                values = level + rise + 4 * draw.standard_normal(len(clock)) * (clock > 0)
                curve = tuple(zip(clock.tolist(), values.tolist(), strict=True))
                write_run(
                    folder / algorithm / f"{dataset[5:]}-{seed}", algorithm, dataset, seed, curve, start,
                    offline=level + seed, aligned=level, lowest_early=float(values[1:7].min()),
                )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def reported(twelve: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from o2o_lightning.cli.main import main

    folder = tmp_path_factory.mktemp("report")
    assert main(["report", str(twelve), "--out", str(folder)]) == 0
    return folder


def test_a_report_has_the_numbers_of_an_independent_computation(reported: Path) -> None:
    groups = read_report(reported)["groups"]
    assert [(group["method"], group["dataset"], group["seeds"]) for group in groups] == [
        ("O2TD3", "hopper-medium-v2", [0, 1, 2]), ("direct TD3", "hopper-medium-v2", [0, 1, 2]),
        ("O2TD3", "walker2d-medium-v2", [0, 1, 2]), ("direct TD3", "walker2d-medium-v2", [0, 1, 2]),
    ]  # fmt: skip
    for group in groups:
        summaries = [json.loads((Path(run["path"]) / "summary.json").read_text())["score"] for run in group["runs"]]
        values = [[point[2] for point in score["curve"]] for score in summaries]
        expected = {
            "final": np.mean([row[-1] for row in values]),
            "drop": np.mean([score["offline"] - score["lowest_early"] for score in summaries]),
            "area": np.mean([(sum(row) - (row[0] + row[-1]) / 2) / 20 for row in values]),
            "regret": np.mean([1 - value / 100 for row in values for value in row[1:]]),
        }
        for statistic in ("mean", "iqm"):  # of three runs the middle half is all
            found = {name: group["measures"][name][statistic][0] for name in expected}
            assert found == pytest.approx(expected)
        assert group["curve"]["iqm"] == pytest.approx(np.mean(values, axis=0))
        lowest, highest = np.min(values, axis=0), np.max(values, axis=0)
        low, high = np.array(group["curve"]["low"]), np.array(group["curve"]["high"])
        assert (lowest - 1e-9 <= low).all() and (high <= highest + 1e-9).all()


def test_a_report_is_the_same_bytes_again_and_replaces_itself(reported: Path, twelve: Path, o2o: O2O) -> None:
    before = {path.name: path.read_bytes() for path in reported.iterdir()}
    assert o2o("report", twelve, "--out", reported) == 0
    assert [path.name for path in reported.iterdir() if path.read_bytes() != before.pop(path.name)] == []
    assert not before


def test_the_page_stands_alone_and_its_pictures_lie_beside_it(reported: Path) -> None:
    names = [f"{kind}-Hopper-v4-{data}-medium-v2" for kind in ("curves", "handover") for data in ("hopper", "walker2d")]
    pictures = {*names, "all-datasets"}
    files = {path.name for path in reported.iterdir()}
    assert files == {f"{name}.{kind}" for name in pictures for kind in ("png", "pdf")} | {
        "report.md", "report.html", "table.tex", "report.json"
    }  # fmt: skip
    page = (reported / "report.html").read_text()
    assert page.count('src="data:image/png;base64,iVBOR') == len(pictures) and "http" not in page
    assert {*re.findall(r"\]\((.+?)\)", (reported / "report.md").read_text())} == {f"{name}.png" for name in pictures}


def test_a_folder_that_is_no_report_is_not_written_over(twelve: Path, tmp_path: Path, o2o: O2O, capsys: Any) -> None:
    (tmp_path / "thesis.md").write_text("mine")
    assert o2o("report", twelve, "--out", tmp_path) == 2
    assert "it is not a report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.md"]


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path, o2o: O2O, capsys: Any) -> None:
    (tmp_path / "summary.json").write_text('{"runs": {}}')
    assert o2o("report", tmp_path, "--out", tmp_path / "report") == 2
    error = capsys.readouterr().err
    assert error == f"o2o: {tmp_path}: no finished run in it. A run has a summary.json.\n"
    assert not (tmp_path / "report").exists()


def test_a_real_run_has_its_report(pendulum: str, tmp_path: Path, o2o: O2O) -> None:
    line = [
        "fit", "--phase", "online", "online=td3", "experiment=scratch", "--data.env_id", "Pendulum-v1",
        "--data.env_steps", 60, "--data.warmup_steps", 20, "--data.eval_every", 20, "--data.eval_episodes", 1,
        "--model.hidden", "[8]", "--trainer.accelerator", "cpu", "--run_dir", tmp_path / "run", "--seed_everything", 4,
    ]  # fmt: skip
    assert o2o(*line) == 0
    assert o2o("report", tmp_path / "run", "--out", tmp_path / "report") == 0
    (group,) = read_report(tmp_path / "report")["groups"]
    assert (group["method"], group["seeds"], group["unit"]) == ("TD3 from scratch", [4], "return")
    assert group["curve"]["at"] == [0, 20, 40, 60] and group["costs"]["env_steps"] == 60


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("film") / "run"
    line = [
        "fit", "--phase", "online", "online=td3", "experiment=scratch", "--data.env_id", "Pendulum-v1",
        "--data.env_steps", "40", "--data.warmup_steps", "20", "--data.eval_every", "20", "--data.eval_episodes", "1",
        "--model.hidden", "[8]", "--trainer.accelerator", "cpu", "--run_dir", str(run),
    ]  # fmt: skip
    assert main(line) == 0
    return run


def grey(torque: float) -> int:
    return int(120 + 60 * torque)


def test_a_film_shows_the_last_policy(
    small_run: Path, tmp_path: Path, o2o: O2O, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(self: PendulumEnv) -> Any:
        return np.full((64, 64, 3), grey(self.last_u or 0.0), np.uint8)

    monkeypatch.setattr(PendulumEnv, "render", drawn)  # pygame draws it else, which the tests go without
    assert o2o("report", small_run, "--film", "--out", tmp_path / "report") == 0
    policy, env = load_policy(small_run / "online/checkpoints/last.ckpt"), gym.make("Pendulum-v1")
    observation, _ = env.reset(seed=1000)
    expected = [grey(0.0)]
    for _ in range(199):
        observation, *_ = env.step(policy(observation))
        expected.append(grey(env.unwrapped.last_u))
    (path,) = (tmp_path / "report").glob("film-*.gif")
    film, shown = Image.open(path), []
    for number in range(film.n_frames):
        film.seek(number)
        shown.append(int(np.asarray(film.convert("L"))[8, 8]))
    assert film.size == (32, 32)
    assert shown == [value for i, value in enumerate(expected) if i == 0 or value != expected[i - 1]]
    page, beside = (tmp_path / "report/report.html").read_text(), (tmp_path / "report/report.md").read_text()
    assert 'src="data:image/gif;base64,R0lGOD' in page and f"]({path.name})" in beside


def test_what_cannot_be_filmed_is_said_in_a_line_of_a_whole_report(
    small_run: Path, tmp_path: Path, o2o: O2O, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def undrawn(self: PendulumEnv) -> None:
        raise RuntimeError("no GL here")

    monkeypatch.setattr(PendulumEnv, "render", undrawn)
    assert o2o("report", small_run, "--film", "--out", tmp_path / "report") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "no film" in line]
    assert len(said) == 1 and "it can't be drawn here (RuntimeError: no GL here)" in said[0]
    assert not [*(tmp_path / "report").glob("film-*")]
    assert read_report(tmp_path / "report")["left_out"] == said
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "report").iterdir()}
    assert len(modes) == 1  # what is to be sent is as readable as any file of the user's


def test_latex_writes_what_tex_would_read_otherwise() -> None:
    table = latex(Table(["method", "π_off"], [["10 %-BC, threshold.end=0.1 & more_", "–"]]))
    assert "10 \\%-BC, threshold.end=0.1 \\& more\\_ & -- \\\\" in table
    assert r"method & $\pi_\mathrm{off}$ \\" in table


# ---- the end of a run --------------------------------------------------------------------------------------------


def test_a_run_ends_with_what_came_of_it_and_the_policy_to_take(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", offline=42.0, aligned=40.0, lowest_early=30.0)
    checkpoint = run / "online" / "checkpoints"
    checkpoint.mkdir()
    (checkpoint / "best.ckpt").touch()
    assert outcome(run) == [
        "π_off 42.0 → π_on 40.0 → lowest early 30.0 → best 50.0 → final 50.0 (D4RL score); 3,000 environment steps, "
        "1 min 30 s",
        f"the policy to take: {checkpoint}/best.ckpt",
    ]


def test_an_offline_policy_that_scored_higher_is_the_one_to_take(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", offline=51.0)
    assert outcome(run)[1].endswith("last.ckpt; π_off scored higher, and is in it too: --model.policy offline")


def test_a_run_with_trials_ends_with_how_they_ended_and_what_training_returned(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", offline=42.0, aligned=40.0)
    played = {"actor": {"episodes": 12, "return_mean": 310.25}, "reference": {"episodes": 0, "return_mean": None}}
    for path in run.rglob("summary.json"):
        summary = json.loads(path.read_text())
        path.write_text(json.dumps({**summary, "trials": {"won": 2, "lost": 1, "neither": 4, "played": played}}))
    assert outcome(run)[1] == (
        "trials of the actor: 2 won, 1 lost, 4 undecided; training episodes: 12 of the actor's returned 310.2"
    )


# ---- the card ----------------------------------------------------------------------------------------------------


def test_a_card_says_what_a_policy_is_and_how_to_load_it(tmp_path: Path, o2o: O2O, capsys: Any) -> None:
    run = write_run(tmp_path / "run", offline=42.0, aligned=40.0, lowest_early=30.0)
    assert o2o("report", "--card", run) == 0
    _, front, text = (run / "README.md").read_text().split("---\n", 2)
    (found,) = yaml.safe_load(front)["model-index"]
    assert found["results"][0]["metrics"] == [{"type": "d4rl_score", "value": 50.0}]
    assert 'load_policy("online/checkpoints/last.ckpt")' in text and "offline method: TD3+BC" in text
    assert "| align | O2TD3 | 200 | 0 | 0 min 10 s |" in text and "| offline | 42 |" in text
    assert o2o("report", "--card", run) == 2 and "it exists" in capsys.readouterr().err
