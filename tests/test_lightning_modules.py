"""Phases as Lightning's users know modules: tested, validated, asked for predictions, loaded, all in Python."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import HIDDEN, Fit, Run
from every_phase import CASES, SEQUENCES, Case

from o2o_lightning import ClonePolicy, Offline, OfflineData, Online, OnlineData, Reevaluate, UserError, load_policy
from o2o_lightning.checkpoint.handover import read_checkpoint
from o2o_lightning.data.cloning import CloneData
from o2o_lightning.methods.clone import Clone
from o2o_lightning.methods.o2 import td3
from o2o_lightning.methods.sac import SAC
from o2o_lightning.methods.td3_bc import TD3BC

EVERY = {
    **CASES,
    **SEQUENCES,
    "clone": Case("td3_bc", lambda at: ClonePolicy(Clone(family="squashed_gaussian", hidden=HIDDEN), at), CloneData),
}


@pytest.fixture(scope="module")
def runs(fit: Fit, pendulum: str) -> dict[str, Run]:
    """Every phase of every algorithm, a few updates each, from the one before."""
    made: dict[str, Run] = {}
    for name, case in EVERY.items():
        start = str(made[case.after].checkpoint) if case.after else ""
        interacts = CASES.get(name, case).kind.__name__ in ("OnlineData", "RolloutData")
        data = lambda case=case: case.data(pendulum, 16, 1, 8)  # noqa: E731
        made[name] = fit(lambda case=case, start=start: case.make(start), data, -1 if interacts else 8)
    return made


def trainer(**options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", logger=False, max_epochs=1, **quiet, **options)


# ---- after training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_loaded_phase_is_the_one_that_was_saved(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    loaded = type(run.module).load_from_checkpoint(run.checkpoint)
    before, after = run.end(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert (loaded.updates, loaded.env_steps, loaded.scores) == (
        run.module.updates,
        run.module.env_steps,
        run.module.scores,
    )
    options = lambda phase: {f.name: getattr(phase.method, f.name) for f in dataclasses.fields(phase.method)}  # noqa: E731
    assert options(loaded) == options(run.module)


@pytest.mark.parametrize("name", EVERY)
def test_a_loaded_phase_is_tested_validated_and_predicts_as_the_trained_one(
    runs: dict[str, Run], pendulum: str, name: str
) -> None:
    run = runs[name]
    loaded = type(run.module).load_from_checkpoint(str(run.checkpoint))
    kind = EVERY[name].kind
    data = lambda: kind(pendulum, eval_episodes=2)  # noqa: E731
    tested = trainer().test(loaded, datamodule=data(), verbose=False)
    assert tested == trainer().test(run.module, datamodule=data(), verbose=False)
    assert tested == trainer().validate(loaded, datamodule=data(), verbose=False) and [*tested[0]] == ["return_mean"]
    actions = torch.cat(trainer().predict(loaded, datamodule=data()))
    assert actions.shape == (480, 1) and actions.abs().max() <= 1.0
    assert torch.equal(actions, torch.cat(trainer().predict(run.module, datamodule=data())))


def test_the_return_of_a_test_is_that_of_the_checkpoints_own_evaluation(runs: dict[str, Run], pendulum: str) -> None:
    run = runs["td3_bc"]
    loaded = Offline.load_from_checkpoint(run.checkpoint)
    found = trainer().test(loaded, datamodule=OfflineData(pendulum, eval_episodes=2), verbose=False)
    assert found[0]["return_mean"] == pytest.approx(run.module.curve[-1][1])


def test_predictions_are_the_policys_actions_in_the_datasets_order(runs: dict[str, Run], pendulum: str) -> None:
    run, data = runs["align_td3"], OfflineData(pendulum)
    actions = torch.cat(trainer().predict(run.module, datamodule=data))
    assert data.store is not None
    own = load_policy(run.checkpoint)(data.store["observation"].numpy())  # in Pendulum's ±2
    np.testing.assert_allclose(2.0 * actions.numpy(), own, atol=1e-5)


def test_a_trainer_tests_what_it_has_fitted(pendulum: str) -> None:
    phase, data = Offline(TD3BC(hidden=HIDDEN)), OfflineData(pendulum, batch_size=16, eval_episodes=2)
    once = trainer(max_steps=8)
    once.fit(phase, datamodule=data)
    assert once.test(phase, datamodule=data, verbose=False)[0]["return_mean"] == pytest.approx(phase.curve[-1][1])
    assert once.limit_val_batches == 1.0
    assert len(once.predict(phase, datamodule=data)) == 1


def test_a_checkpoint_of_lightnings_own_is_loaded_too(pendulum: str, tmp_path: Path) -> None:
    whole = L.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=4, default_root_dir=tmp_path, enable_progress_bar=False
    )
    whole.fit(Offline(TD3BC(hidden=HIDDEN)), datamodule=OfflineData(pendulum, batch_size=16, eval_episodes=1))
    path = whole.checkpoint_callback.best_model_path
    assert Offline.load_from_checkpoint(path).updates == 4
    assert whole.test(ckpt_path="best", datamodule=OfflineData(pendulum, eval_episodes=1), verbose=False)
    assert Reevaluate(td3.Reevaluate(hidden=HIDDEN), path).init_from == path


# ---- hyper-parameters ------------------------------------------------------------------------------------------------


def test_hyperparameters_are_plain_and_say_how_the_phase_was_made(runs: dict[str, Run]) -> None:
    run = runs["online_td3"]
    found = read_checkpoint(run.checkpoint)["hyper_parameters"]
    assert json.loads(json.dumps(found)) == found
    method = found["method"]
    assert method["class_path"] == "o2o_lightning.methods.o2.td3.Online"
    assert method["init_args"]["threshold"]["start"] == 0.001 and found["init_from"] == str(
        runs["align_td3"].checkpoint
    )
    assert read_checkpoint(run.checkpoint)["datamodule_hyper_parameters"]["warmup_steps"] == 0


def test_the_command_line_keeps_the_same_hyperparameters_as_python(
    o2o: Any, pendulum: str, tmp_path: Path, runs: dict[str, Run]
) -> None:
    argv = ["fit", "--phase", "offline", "--data.dataset", pendulum, "--trainer.max_steps", "2", "--run_dir", tmp_path]
    assert o2o(*argv, "--model.hidden", "[16,16]", "--data.eval_episodes", "1", "--trainer.accelerator", "cpu") == 0
    path = tmp_path / "offline/checkpoints/last.ckpt"
    typed, python = (read_checkpoint(at)["hyper_parameters"] for at in (path, runs["td3_bc"].checkpoint))
    assert typed == {name: value for name, value in python.items() if name != "init_from"}  # which the class has not
    assert Offline.load_from_checkpoint(path).method.hidden == (16, 16)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_phase_is_not_loaded(runs: dict[str, Run]) -> None:
    with pytest.raises(UserError, match=r"written by phase 'offline', and `Online.load_from_checkpoint`"):
        Online.load_from_checkpoint(runs["td3_bc"].checkpoint)


def test_a_checkpoint_does_not_choose_code_to_run(runs: dict[str, Run], tmp_path: Path) -> None:
    checkpoint = torch.load(runs["td3_bc"].checkpoint, weights_only=True)
    checkpoint["hyper_parameters"]["method"]["class_path"] = "antigravity.Rule"
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"'antigravity.Rule' is not of this package"):
        Offline.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert Offline.load_from_checkpoint(tmp_path / "evil.ckpt", method=TD3BC(hidden=HIDDEN)).updates == 8


def test_data_of_other_sizes_is_refused(runs: dict[str, Run]) -> None:
    loaded = Offline.load_from_checkpoint(runs["td3_bc"].checkpoint)
    with pytest.raises(UserError, match=r"takes 3 observation values and gives 1 action values, the data has 11 and 3"):
        trainer().test(loaded, datamodule=OfflineData("embedded:hopper-medium"), verbose=False)


# ---- short constructors ----------------------------------------------------------------------------------------------


def test_data_is_made_of_a_file_and_a_budget(fit: Fit, pendulum: str) -> None:
    run = fit(Online(SAC(hidden=HIDDEN, critic_hidden=HIDDEN)), OnlineData(pendulum, env_steps=12, warmup_steps=4))
    assert (run.module.env_steps, run.module.updates) == (12, 8)
    assert OfflineData(pendulum).dataset == OnlineData(pendulum, env_steps=12).dataset == pendulum
