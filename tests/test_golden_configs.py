"""The composed configurations are those of the committed file, wherever in the code an argument lives.

Where a change is meant: ``python benchmarks/golden.py configs``, and the difference of the file shows it.
"""

from __future__ import annotations

import golden_configs
import pytest

GOLDEN = golden_configs.unpacked(golden_configs.FILE.read_text())


# Options that these had not when the file was made: a method has those of the rule that it extends, and what can be
# compiled is the engine's affair. With the values that leave the method as it was.
EVERY: golden_configs.Row = {
    "model.products": None,
    "data.env_kwargs": {},
    "data.actions": "auto",
    "data.terminals": "auto",
}
EVERY |= {"data.device_limit_gb": 8.0, "data.env_process": False}
TRIALS: golden_configs.Row = {
    "model.trials.confidence": 1.0,
    "model.trials.confirmations": 20,
    "model.trials.tolerance": 0.05,
    "model.trials.retreats": 2,
    "model.trials.ease": 4.0,
    "model.trials.share": 0.5,
}
RETURNS: golden_configs.Row = {
    "model.returns.window": 20,
    "model.returns.least": 5,
    "model.returns.every": 1000,
    "model.returns.max_age": 30_000,
    "model.returns.alarm": 3,
    "model.returns.restore": False,
    "model.returns.judges": 4,
    "model.returns.patience": 40,
}
CONSTRAINED: golden_configs.Row = {
    "model.hand_on": "aligned",
    "model.judge_episodes": 30,
    "model.actor_moments": "carried",
    "model.penalty_limit": None,
    "model.policy_after": 0,
    "model.multiplier.rule": "adam",
    "model.multiplier.integral": 0.02,
    "model.multiplier.proportional": 0.5,
    "model.multiplier.least": 0.001,
    "model.multiplier.cap": 100.0,
    **TRIALS,
    **RETURNS,
    "model.threshold.measured": False,
    "model.threshold.episodes": 20,
    "model.moments": "method",
    "data.seeds": 0,
    "data.collect": 1,
    "data.first_round": 1,
    "data.warmup_by": "auto",
    "data.warmup_learns": False,
    "data.offline_share": 0.5,
    "data.entry.rule": "largest",
    "data.entry.share": 0.5,
}
HASTENED: golden_configs.Row = {"model.fast_polyak": 0.05, "model.fast_updates": 0, "model.initial_value": "zero"}
SHARE: golden_configs.Row = {"model.convergence.share": 0.9}
EARNED: golden_configs.Row = {"model.earned": True}
HUNTING: golden_configs.Row = {"model.actor_after": 0, "model.restart_every": 0}
NEW: dict[str, golden_configs.Row] = {
    "offline offline=cql": {"model.critics": 2, "model.layer_norm": False, "model.temperature_lr": None}
    | {"model.subset": None, "model.lagrange_weighted": True},
    "offline offline=iql": {"model.actor_schedule": "cosine", "model.order": "together"},
    "offline offline=td3_bc": {
        "model.exploration_noise": 0.1,
        "model.layer_norm": False,
        "model.exploration_clip": None,
    },
    "offline offline=dt": {"model.compile": "auto"},
    "offline offline=odt": {"model.compile": "auto", "model.padded_entropy": False},
    **{f"online online={method}": CONSTRAINED | {"model.subset": None} for method in ("o2sac", "sac")},
    **{f"online online={method}": {**CONSTRAINED, "model.exploration_clip": None} for method in ("o2td3", "td3")},
    **{f"online online={method}": {**TRIALS, **RETURNS, "model.moments": "method"} for method in ("o2ppo", "ppo")},
    **{f"clone online={method}": {"model.teacher_actions": "auto"} for method in golden_configs.ONLINE},
    **{f"reevaluate online={method}": HASTENED | SHARE | EARNED for method in ("o2td3", "o2sac", "td3", "sac")},
    **{f"align online={method}": HUNTING | SHARE for method in ("o2td3", "o2sac", "td3", "sac")},
    **{f"reevaluate online={method}": {"model.bootstrap_tails": True} | SHARE | EARNED for method in ("o2ppo", "ppo")},
}


def compare(names: list[str]) -> None:
    expected = {}
    for name in names:
        if name in GOLDEN:
            new = EVERY | NEW.get(golden_configs.kind_of(name), {})
            assert not {*new} & {*GOLDEN[name]}
            expected[name] = GOLDEN[name] | new
    assert golden_configs.differences(expected, golden_configs.recomputed(names)) == []


def test_one_configuration_of_seventeen_is_as_it_was() -> None:
    compare(golden_configs.ROWS[::17])


@pytest.mark.slow
def test_every_configuration_is_as_it_was() -> None:
    compare(golden_configs.ROWS)


def test_the_file_holds_what_was_packed() -> None:
    assert golden_configs.packed(GOLDEN) == golden_configs.FILE.read_text()
    assert set(GOLDEN) <= set(golden_configs.ROWS)


def test_a_method_inside_a_phase_and_a_renamed_class_change_nothing() -> None:
    now = {"model": {"class_path": "a.AlignTD3", "init_args": {"stop": "steps", "actor_lr": 1.0, "every": {"n": 2}}}}
    method = {"class_path": "a.td3.Align", "init_args": {"actor_lr": 1.0, "every": {"n": 2}}}
    later = {"model": {"class_path": "a.Align", "init_args": {"stop": "steps", "method": method}}}
    assert golden_configs.flat(now) == golden_configs.flat(later)
    method["init_args"] = {"actor_lr": 1, "every": {"n": 3}, "new": None}
    found = golden_configs.differences({"row": golden_configs.flat(now)}, {"row": golden_configs.flat(later)})
    assert found == ["row: model.actor_lr: 1.0 -> 1; model.every.n: 2 -> 3; model.new: absent -> None"]
