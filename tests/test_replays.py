"""When a phase whose updates are replayed asks after them: late, and never after something was said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from every_phase import HIDDEN
from hypothesis import given
from hypothesis import strategies as st

from o2o_lightning.data.module import OfflineData
from o2o_lightning.engine.captured import Captured
from o2o_lightning.engine.health import NonFinite
from o2o_lightning.engine.noise import NoiseBlocks
from o2o_lightning.methods.td3_bc import TD3BC
from o2o_lightning.phases.offline import Offline
from o2o_lightning.phases.replays import sizes

CHUNK = 4  # sixteen updates a training step
BAD = 6


class Saving(L.Callback):
    """After each training step, as what saves by the clock on the wall does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def phase_of(dataset: str, how: Any, steps: int, rows_every: int, evaluate_every: int = 0, **options: Any) -> Offline:
    L.seed_everything(3, verbose=False)
    phase = Offline(TD3BC(hidden=HIDDEN))
    phase.compiling = how
    data = OfflineData(dataset, batch_size=16, chunk=CHUNK, eval_every_updates=evaluate_every, eval_episodes=1)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, max_steps=steps, logger=False, enable_checkpointing=False,
        log_every_n_steps=rows_every, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(phase, datamodule=data)
    return phase


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The noise of update BAD is no number; how many updates each replay is of."""
    draw, many, replay = NoiseBlocks.draw, NoiseBlocks.draw_many, Captured.replay
    replayed: list[int] = []

    def spoil(self: NoiseBlocks, found: Any, count: int) -> Any:
        before = self.__dict__.get("drawn", 0)
        self.__dict__["drawn"] = before + count
        if before < BAD <= before + count:
            found = {name: noise.clone() for name, noise in found.items()}
            for noise in found.values():
                noise[BAD - 1 - before] = torch.nan
        return found

    def one(self: NoiseBlocks, wanted: Any) -> Any:
        found = spoil(self, {name: noise[None] for name, noise in draw(self, wanted).items()}, 1)
        return {name: noise[0] for name, noise in found.items()}

    def watched(self: Captured, piece: Any, gather: Any) -> Any:
        replayed.append(len(piece.moments))
        return replay(self, piece, gather)

    monkeypatch.setattr(NoiseBlocks, "draw", one)
    monkeypatch.setattr(NoiseBlocks, "draw_many", lambda self, wanted, n: spoil(self, many(self, wanted, n), n))
    monkeypatch.setattr(Captured, "replay", watched)
    return replayed


@pytest.mark.parametrize("asked, steps, rows_every, evaluate_every, callbacks", [
    (32, 64, 1000, 0, False),  # the next chunk is under way
    (12, 64, 10, 0, False),  # no row is written of the tenth update
    (8, 64, 1000, 8, False),  # nothing is evaluated
    (16, 16, 1000, 0, False),  # nothing ends
    (16, 64, 1000, 0, True),  # nothing is saved
], ids=["chunk", "row", "evaluation", "end", "checkpoint"])  # fmt: skip
def test_a_chunk_is_asked_after_before_anything_is_said_of_it(
    asked: int, steps: int, rows_every: int, evaluate_every: int, callbacks: bool,
    spoilt: list[int], pendulum: str, tmp_path: Path,
) -> None:  # fmt: skip
    saved = tmp_path / "saved.ckpt"
    with pytest.raises(NonFinite, match=f"phase offline, update {BAD}: ") as failure:
        options = {"callbacks": [Saving(saved)]} if callbacks else {}
        phase_of(pendulum, "record", steps, rows_every, evaluate_every, **options)
    assert sum(spoilt) == asked and not saved.exists()
    assert failure.value.dump["update"] == BAD


class Keeping(L.Callback):
    """The phase that failed."""

    def on_exception(self, trainer: L.Trainer, phase: Any, exception: BaseException) -> None:
        self.phase = phase


def test_what_learns_is_as_it_was_before_the_failed_update(spoilt: list[int], pendulum: str) -> None:
    found = []
    for how in ("record", False):
        keeping = Keeping()
        with pytest.raises(NonFinite):
            phase_of(pendulum, how, 64, 1000, callbacks=[keeping])
        found.append(dict(keeping.phase.method.named_parameters()))
    assert len(spoilt) == 8
    moved = [key for key, value in found[0].items() if not torch.equal(value, found[1][key])]
    assert {key.partition(".")[0] for key in moved} <= {"target_critic", "target_actor"}  # these go on


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 16, 20]))
def test_pieces_are_full_ones_and_then_powers_of_two(count: int, most: int) -> None:
    found = [*sizes(count, most)]
    assert sum(found) == count and found[: count // most] == [most] * (count // most)
    rest = found[count // most :]
    assert rest == sorted(set(rest), reverse=True) and all(size & (size - 1) == 0 for size in rest)


def test_a_batch_that_the_host_gathered_is_named_too_and_whoever_asks_again_hears_the_same(
    spoilt: list[int], pendulum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfflineData, "keep_near", lambda self, device: False)
    keeping = Keeping()
    with pytest.raises(NonFinite, match=f"phase offline, update {BAD}: ") as failure:
        phase_of(pendulum, "record", 64, 1000, callbacks=[keeping])
    assert failure.value.dump["batch"]["observation"].shape[0] == 16
    with pytest.raises(NonFinite, match=f"phase offline, update {BAD}: "):
        keeping.phase.make_sure()
