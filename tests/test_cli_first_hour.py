"""What a user types and edits in the first hour: slips are a line, nothing is dropped, written over or lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from o2o_lightning.checkpoint.handover import read_handover
from o2o_lightning.cli.main import main

SMALL = ["--data.batch_size", "8", "--data.eval_episodes", "1", "--model.hidden", "[8,8]"]
COUNTS = [f"steps.{phase}={n}" for phase, n in dict(offline=4, clone=2, reevaluate=2, align=2, env=4).items()]


def offline(pendulum: str, run_dir: Path, *more: str) -> list[str]:
    counts = ["--trainer.max_steps", "4", "--data.batch_size", "8", "--data.eval_episodes", "1"]
    return ["fit", "--phase", "offline", "--data.dataset", pendulum, *counts, "--run_dir", str(run_dir), *more]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: {critic_lr: 0.5}", None),
        ("model: {critic_lr: 0.5, init_args: {hidden: [8, 8]}}", None),
        ("trainer:\nmodel: {critic_lr: 0.5}\n", None),  # a section of which all is commented out
        ("model: {foo: 3}", "--model.foo: TD3BC has no such option"),
        ("trainer: 3", "'trainer' needs names and values below it, not 3"),
        ("seed_everything: null", "--seed_everything null: it must be from 0"),
        ("model: {init_args: {hidden: null}}", "--model.hidden null: a value is needed"),
        ("data: {batch_size: null}", "--data.batch_size null: a value is needed"),
        ("", "names and values are needed, such as"),
        ("- a", "names and values are needed, such as"),
        (b"\xfa\xfb", "it is no text in UTF-8"),
    ],
)
def test_a_file_s_options_hold_in_their_short_form_and_its_slips_are_a_line(
    content: str | bytes, said: str | None, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "a.yaml", tmp_path / "run"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    typed = [token for token in offline(pendulum, run) if token != "--data.batch_size" and token != "8"]
    code = main([*typed, "--config", str(file)])
    if said is None:
        written = yaml.safe_load((run / "offline/config.yaml").read_text())
        assert code == 0 and written["model"]["init_args"]["method"]["init_args"]["critic_lr"] == 0.5
        return
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and said in error and not run.exists(), error


def test_checkpoints_stay_where_all_commands_look_for_them(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (str(tmp_path / "shared"), "null"):
        assert main(offline(pendulum, tmp_path / "run", "--checkpoint.dirpath", place)) == 2
        assert f"--checkpoint.dirpath {place}: they go to" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_a_finished_phase_without_its_last_checkpoint_is_left_as_it_is(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(offline(pendulum, run)) == 0
    (run / "offline/checkpoints/last.ckpt").unlink()
    (run / "offline/my_notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["resume", str(run), "--trainer.max_steps", "8"]) == 2
    assert "last.ckpt: missing, and a phase that has ended goes on from nothing else" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("count", ["2k", "0", "-5", "1.5", "true"])
def test_a_length_that_is_none_is_refused_before_the_interrupted_phase_goes_on(
    count: str, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", "--phase", "all", "phases=[offline]", "steps.offline=2", "--data.dataset", pendulum,
                 *SMALL, "--run_dir", str(run)]) == 0  # fmt: skip
    assert main(["resume", str(run), "--trainer.max_steps", count]) == 2
    assert f"--trainer.max_steps {count}: a whole number, at least 1, is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("best_of=3", "a list of offline, clone, align, online is needed"),
        ("best_of=[alig]", "a list of offline, clone, align, online is needed"),
        ("best_of=[reevaluate]", "a list of offline, clone, align, online is needed"),
        ("best_of=[align] --checkpoint.save_best false", "keep no best.ckpt"),
        ("best_of=[align] preset=paper --model.reference.mode frozen --data.eval_episodes 0", "keep no best.ckpt"),
        (
            "offline=bc family=gausian",
            "family=gausian: one of deterministic, gaussian, gaussian_head, ",
        ),
    ],
)
def test_a_choice_that_there_is_not_is_refused_before_anything_runs(
    given: str, said: str, pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", "--phase", "all", *COUNTS, "--data.dataset", pendulum, "--run_dir", str(tmp_path / "run")]
    assert main([*argv, *given.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_clone_is_of_the_family_that_goes_online_whatever_the_offline_policy_is(
    pendulum: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    argv = ["fit", "--phase", "all", *COUNTS, "--data.dataset", pendulum, *SMALL, "--run_dir", str(run)]
    assert main([*argv, "offline=bc", "family=gaussian", "online=o2td3"]) == 0
    kinds = [
        read_handover(run / phase / "checkpoints/last.ckpt").actor["kind"] for phase in ("offline", "clone", "online")
    ]
    assert kinds == ["gaussian", "deterministic", "deterministic"]


def test_a_sweep_of_several_seeds_starts_each_from_its_own_checkpoint(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(offline(pendulum, tmp_path / "s", "seeds=2", "--model.hidden", "[8,8]")) == 0
    start = str(tmp_path / "s/seed-$SEED/offline/checkpoints/last.ckpt")
    argv = ["--phase", "reevaluate", "seeds=2", "--model.init_from", start, "--data.dataset", pendulum]
    assert main(["fit", *argv, "--print_config"]) == 0
    assert "seed-0/offline/checkpoints/last.ckpt" in capsys.readouterr().out
    more = ["online=o2td3,td3", "--trainer.max_steps", "2", "--data.batch_size", "8", "--run_dir", str(tmp_path / "sw")]
    assert main(["sweep", *argv, *more, "--model.hidden", "[8,8]"]) == 0
    assert len([*(tmp_path / "sw").glob("*/seed-*/reevaluate/summary.json")]) == 4


def test_a_damaged_plan_does_not_send_its_checkpoints_to_the_bin(
    pendulum: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(offline(pendulum, run)) == 0
    (run / "plan.json").write_text("{")
    assert main(["resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "Choose another --run_dir; checkpoints of this one can start a run there" in error and "Remove" not in error
