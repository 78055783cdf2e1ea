"""Which library forms the products: measured once a machine, the same for a run and what goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HIDDEN, Fit
from filelock import FileLock

from o2o_lightning.data.module import OfflineData
from o2o_lightning.errors import UserError
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.nn import onednn
from o2o_lightning.nn.onednn import Onednn
from o2o_lightning.phases import products
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.products import measured, remembered, settle_library

SOME = Onednn(True, False, True)


class Meter:
    """A measurement by script, which counts how often it is made."""

    def __init__(self, says: Onednn) -> None:
        self.says, self.asked = says, 0

    def __call__(self) -> Onednn:
        self.asked += 1
        return self.says


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(onednn, "ONEDNN", Onednn(False, False, False))
    monkeypatch.delenv("O2O_PRODUCTS", raising=False)
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    products._chosen.cache_clear()
    yield
    products._chosen.cache_clear()


def test_a_machine_is_measured_once(tmp_path: Path) -> None:
    file, first, later = tmp_path / "own" / "products.json", Meter(SOME), Meter(Onednn(False, True, False))
    assert remembered(file, first) == remembered(file, later) == SOME
    assert (first.asked, later.asked) == (1, 0)


def test_another_processor_is_measured_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "products.json", Onednn(False, False, False)
    remembered(file, Meter(SOME))
    monkeypatch.setattr(products, "processor", lambda: "another")
    assert remembered(file, Meter(other)) == other
    monkeypatch.undo()
    assert remembered(file, Meter(other)) == SOME


def test_so_is_a_library_that_is_kept_to_older_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "products.json", Onednn(False, False, False)
    remembered(file, Meter(SOME))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert remembered(file, Meter(other)) == other


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"a": 1}', '{"a": {"forward": true}}', '{"a": {"forward": 1, "by_input": 2}}', "\x00"]
)
def test_a_damaged_file_is_measured_again_and_mended(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "products.json"
    file.write_text(damaged)
    assert remembered(file, Meter(SOME)) == SOME
    (choice,) = json.loads(file.read_text()).values()
    assert choice == SOME._asdict()


def test_values_that_are_no_flags_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "products.json"
    remembered(file, Meter(SOME))
    (machine,) = json.loads(file.read_text())
    file.write_text(json.dumps({machine: {"forward": "yes", "by_input": 1, "by_weight": None}}))
    meter = Meter(SOME)
    assert remembered(file, meter) == SOME and meter.asked == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_a_measurement_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o500)
    meter = Meter(SOME)
    assert remembered(folder / "products.json", meter) == remembered(folder / "products.json", meter) == SOME
    assert meter.asked == 2


def test_a_file_in_the_folder_s_place_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("not a folder")
    assert remembered(tmp_path / "own" / "products.json", Meter(SOME)) == SOME


def test_a_user_without_a_home_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", "~no-such-user/x")
    monkeypatch.setattr(products, "measured", Meter(SOME))
    settle_library()
    assert onednn.ONEDNN == SOME


def test_a_lock_that_somebody_keeps_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PATIENCE", 0.05)
    file, meter = tmp_path / "products.json", Meter(SOME)
    with FileLock(file.with_suffix(".lock")):
        # as another process would: filelock hands one object out a path in a process
        held = FileLock(file.with_suffix(".lock"), is_singleton=False)
        assert not held.is_locked and remembered(file, meter) == SOME
    assert meter.asked == 1 and not file.exists()


def test_a_measurement_says_of_each_kind_whether_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's products take a thousand times as long, and then no time at all."""
    plain = products.product
    monkeypatch.setattr(products, "product", lambda *operands: [plain(*operands) for _ in range(50)])
    assert measured() == Onednn(False, False, False)
    monkeypatch.setattr(products, "product", lambda *operands: None)
    assert measured() == Onednn(True, True, True)


def test_a_phase_decides_and_a_decision_stays(fit: Fit, pendulum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "measured", Meter(SOME))
    data = lambda: OfflineData(dataset=pendulum, batch_size=16, eval_episodes=1)  # noqa: E731
    fit(lambda: Offline(TD3BC(hidden=HIDDEN)), data, 1)
    assert onednn.ONEDNN == SOME
    monkeypatch.setenv("O2O_PRODUCTS", "mkl")
    settle_library()
    assert onednn.ONEDNN == SOME


@pytest.mark.parametrize(("word", "flag"), [("mkl", False), ("onednn", True)])
def test_the_environment_can_say_it(word: str, flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(SOME)
    monkeypatch.setattr(products, "measured", meter)
    monkeypatch.setenv("O2O_PRODUCTS", word)
    settle_library()
    assert Onednn(flag, flag, flag) == onednn.ONEDNN and not meter.asked


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_PRODUCTS", "cublas")
    with pytest.raises(UserError, match="O2O_PRODUCTS cublas: one of mkl, onednn"):
        settle_library()
