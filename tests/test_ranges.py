"""Values that make no sense are refused by their option's name, before anything is read or written."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil

import pytest
from policy_files import sb3_sac, sb3_zip

from o2o_lightning import methods
from o2o_lightning.cli.main import main
from o2o_lightning.data.module import OfflineData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.method import Method
from o2o_lightning.methods.o2 import td3
from o2o_lightning.ranges import RANGES


@pytest.mark.parametrize("line, words", [
    ("offline --seed_everything -1", "--seed_everything -1: it must be from 0 to 4294967295"),
    ("offline --seed_everything 4294967296", "--seed_everything 4294967296"),
    ("offline --model.hidden [-5]", "--model.hidden -5: it must be at least 1"),
    ("offline --data.batch_size 100000000000", "--data.batch_size 1e+11: it must be at most 16,777,216"),
    ("offline --model.discount 5", "--model.discount 5: it must be at most 1"),
    ("offline --model.policy_noise -0.5", "--model.policy_noise -0.5: it must be at least 0"),
    ("offline --model.polyak .nan", "--model.polyak nan"),
    ("offline --model.actor_lr .inf", "--model.actor_lr inf"),
    ("offline --data.reward_scale .nan", "--data.reward_scale nan"),
    ("online online=td3 experiment=scratch --model.exploration_noise -1", "--model.exploration_noise -1"),
    ("online online=td3 experiment=scratch --data.env_steps 0", "--data.env_steps 0: it must be at least 1"),
    ("online online=o2td3 experiment=scratch --model.threshold.end -1", "--model.threshold.end -1"),
    ("online online=td3 experiment=scratch --model.exploration_clip -1", "--model.exploration_clip -1"),
    ("online online=o2td3 experiment=scratch --model.actor_grad_clip 0", "--model.actor_grad_clip 0"),
    ("online online=o2td3 experiment=scratch --model.multiplier.integral -1", "--model.multiplier.integral -1"),
    ("online online=o2ppo --model.std_cap 0", "--model.std_cap 0"),
    ("clone --model.teacher a.onnx --model.check_every 0", "--model.check_every 0: it must be at least 1"),
    ("offline +model._target_=os.system", "model: {'_target_': 'os.system'} cannot be built"),
    ("offline data=4", "data: 4 cannot be built"),
    ("offline trainer=3", "configuration:"),
])  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_in_one_line(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["fit", "--phase", *line.split(), "--run_dir", "run"]
    assert main(argv if "env_steps" in line else [*argv, "--data.env_id", "Pendulum-v1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("o2o: ") and words in error, error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line, words", [
    ("policy import a.zip --episodes 1000000000", "--episodes 1e+09: it must be at most 65,536"),
    ("policy import a.zip --episodes -3", "--episodes -3: it must be at least 0"),
    ("policy import a.zip --states 100000000000", "--states 1e+11: it must be at most 16,777,216"),
    ("policy import a.zip --seed -1", "--seed -1: it must be at least 0"),
    ("policy import a.zip --env_kwargs {a", "--env_kwargs {a: it cannot be read"),
    ("data info a.hdf5 --env_kwargs {a", "--env_kwargs {a: it cannot be read"),
    ("play a.ckpt --record a.gif --seed -1", "--seed -1: it must be at least 0"),
    ("play a.ckpt --record a.gif --episodes 0", "--episodes 0: it must be at least 1"),
])  # fmt: skip
def test_a_command_that_is_no_phase_refuses_them_too(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sb3_zip(tmp_path / "a.zip", sb3_sac()[0])
    assert main([*line.split(), *(["--run_dir", "r"] if "import" in line else [])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("o2o: ") and words in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_sweep_of_nothing_is_refused(tmp_path, capsys):
    assert main(["sweep", "seed_everything=range(0)", "--run_dir", str(tmp_path / "s")]) == 2
    assert "it chooses no value" in capsys.readouterr().err


@pytest.mark.parametrize("make", [
    lambda: td3.Online(discount=1.5), lambda: OfflineData(batch_size=1), lambda: td3.Online(polyak=math.nan),
])  # fmt: skip
def test_options_from_python_are_checked_as_well(make):
    with pytest.raises(UserError, match=r"--(model|data)\.\w+ \S+: "):
        make()


def test_every_range_is_of_an_option_that_exists_and_holds_its_defaults():
    for found in pkgutil.walk_packages(methods.__path__, "o2o_lightning.methods."):
        importlib.import_module(found.name)
    classes: list[type] = [Method, OfflineData, OnlineData, RolloutData]
    names = set()
    while classes:
        kind = classes.pop()
        classes += kind.__subclasses__() if issubclass(kind, Method) else []
        for option in dataclasses.fields(kind) if kind is not Method else ():
            names.add(option.name)
            if dataclasses.is_dataclass(option.default):
                names |= {field.name for field in dataclasses.fields(option.default)}
    assert RANGES.keys() <= names
