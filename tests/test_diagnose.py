"""`o2o diagnose`: its numbers against closed forms and plain evaluations, and what its verdict follows from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_lightning.objectives.diagnostics import (
    correlation,
    fitted_weights,
    kept_share,
    quadratic_features,
    support_distance,
)
from o2o_lightning.report.diagnosis import verdict

O2O = Callable[..., int]


def test_fitted_values_are_those_of_a_chain_that_can_be_solved_by_hand() -> None:
    # two states, one feature each: a (reward 1) leads to b, b (reward 3) to itself or, one time in two, to the end
    a, b, end = torch.eye(2, dtype=torch.double)[0], torch.eye(2, dtype=torch.double)[1], torch.zeros(2).double()
    features, following = torch.stack([a, a, b, b]), torch.stack([b, b, b, end])
    weights = fitted_weights(features, following, torch.tensor([1.0, 1.0, 3.0, 3.0]).double(), discount=0.9)
    at_b = 3.0 / (1.0 - 0.45)  # V(b) = 3 + 0.9 · V(b)/2
    assert weights.tolist() == pytest.approx([1.0 + 0.9 * at_b, at_b], rel=2e-3)  # the ridge's own part


def test_quadratic_features_are_all_products_of_a_few_parts_and_only_squares_of_many() -> None:
    assert quadratic_features(torch.tensor([[2.0, 3.0]])).tolist() == [[1.0, 2.0, 3.0, 4.0, 6.0, 9.0]]
    assert quadratic_features(torch.full((1, 41), 2.0)).shape == (1, 1 + 41 + 41)


def test_support_is_the_nearest_action_among_the_nearest_states() -> None:
    data = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.9], [0.2], [0.0]])
    state, action = support_distance(torch.tensor([[0.4]]), torch.tensor([[0.0]]), *data, neighbours=2)
    assert (state.tolist(), action.tolist()) == (pytest.approx([0.4]), pytest.approx([0.2]))  # not 0: that state is far


def test_what_is_kept_is_counted_from_the_worst_return() -> None:
    assert kept_share(-500.0, -1000.0, worst=-2000.0) == 1.5
    assert kept_share(10.0, 110.0, worst=10.0) == 0.0
    assert kept_share(3.0, 5.0, worst=7.0) == 1.0  # nothing to lose


def test_correlation_is_numpys_and_nothing_for_a_constant() -> None:
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 1.0, 7.0])
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, torch.ones(3)) == 0.0


def facts(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "phase": "offline", "policy": {"bears": 0.9}, "critic": {"error": 0.1}, "rehearsal": {"kept": 0.01},
        "own_critic": False,
    }  # fmt: skip
    return found | changed


@pytest.mark.parametrize(
    ("changed", "direct", "phases"),
    [
        ({}, "lost", ["align"]),
        ({"critic": {"error": 0.7}}, "lost", ["reevaluate", "align"]),
        ({"rehearsal": {"kept": 0.7}}, "dips", ["align"]),
        ({"rehearsal": {"kept": 1.8}, "critic": {"error": 0.7}}, "safe", []),
        ({"rehearsal": {"kept": 1.1}, "phase": "align"}, "holds", []),
        ({"critic": None, "rehearsal": None}, "refused", ["reevaluate", "align"]),
        ({"critic": None, "rehearsal": None, "own_critic": True}, "unknown", ["reevaluate", "align"]),
    ],
)
def test_the_verdict_follows_from_the_rehearsal_and_the_critics_error(
    changed: dict[str, Any], direct: str, phases: list[str]
) -> None:
    found = verdict(facts(**changed))
    assert (found.direct, found.phases) == (direct, phases)
    assert found.constraint == (direct != "safe")
    assert any("look better" in line for line in found.lines) == (direct in ("lost", "dips"))  # what was rehearsed


def test_a_policy_that_falls_over_a_small_shift_gets_the_tight_thresholds() -> None:
    assert not any("tier=expert" in line for line in verdict(facts()).lines)
    assert any("tier=expert" in line for line in verdict(facts(policy={"bears": 0.3})).lines)


def test_a_diagnosis_has_the_evaluation_of_the_policy_and_what_it_earned(
    chain: dict[str, Any], pendulum: str, tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, few = chain["offline"].checkpoint, ["--data.eval_episodes", 2, "--trainer.accelerator", "cpu"]
    target = tmp_path / "a.json"
    assert o2o("diagnose", checkpoint, "--updates", 8, "--json", target, *few, "--data.batch_size", 16) == 0
    shown = capsys.readouterr().out
    assert o2o("test", "--ckpt_path", checkpoint, *few[:2], "--run_dir", tmp_path) == 0
    found, plain = json.loads(target.read_text()), json.loads((tmp_path / "test.json").read_text())
    assert found["policy"]["return_mean"] == pytest.approx(plain["return_mean"])
    assert found["dataset"]["source"] == pendulum  # the checkpoint's own
    assert found["critic"]["truth"] < 0.0  # Pendulum's rewards are never positive
    assert found["rehearsal"]["updates"] == 8 and found["rehearsal"]["moved"] > 0.0
    assert f"verdict: {found['verdict']['direct']}" in shown
    assert len(shown.splitlines()) <= 45  # about a screen
    assert o2o("diagnose", checkpoint, "--json", target) == 2  # nothing is written over


def test_a_policy_without_a_critic_is_told_to_make_one(
    chain: dict[str, Any], tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(chain["offline"].checkpoint, weights_only=True)
    content["o2o"]["critic"] = None
    torch.save(content, tmp_path / "last.ckpt")
    assert o2o("diagnose", tmp_path / "last.ckpt", "--data.eval_episodes", 1, "--trainer.accelerator", "cpu") == 0
    assert "verdict: refused" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_is_refused_in_one_line(
    tmp_path: Path, o2o: O2O, capsys: pytest.CaptureFixture[str]
) -> None:
    assert o2o("diagnose", tmp_path) == 2
    assert "no phase before going online has left a checkpoint" in capsys.readouterr().err
