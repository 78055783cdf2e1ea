"""Random damage to every file of ours: each is used with the right content, or refused in one line, in bounded memory.

Seconds here; ``make test-slow`` does the same with hundreds of damages a file.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import numpy as np
import pytest
import torch
from conftest import Run
from data_files import env_of, raw_of

from o2o_lightning.checkpoint import side_state
from o2o_lightning.checkpoint.handover import read_checkpoint, read_handover
from o2o_lightning.checkpoint.io import save_atomically
from o2o_lightning.checkpoint.run import read_config, read_plan, write_config, write_plan
from o2o_lightning.data.mapped import mapped_store
from o2o_lightning.errors import UserError

Use = Callable[[], Any]  # everything that is made of the file, for a comparison
MEMORY = 300_000  # kilobytes that all damages of a file together may take


def damaged(content: bytes, chance: random.Random) -> bytes:
    """``content`` with bits flipped, its end cut off, a block zeroed, moved or repeated, or bytes put in."""
    made, kind = bytearray(content), chance.choice(("flip", "flips", "cut", "zero", "move", "repeat", "insert"))
    at, size = chance.randrange(len(made)), chance.choice((1, 16, 64, 512, 4096))
    if kind == "flip":
        made[at] ^= 1 << chance.randrange(8)
    elif kind == "flips":
        for _ in range(chance.randint(2, 50)):
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del made[at:]
    elif kind == "zero":
        made[at : at + size] = bytes(len(made[at : at + size]))
    elif kind == "move":
        other = chance.randrange(len(made))
        made[at : at + size] = made[other : other + len(made[at : at + size])]
    elif kind == "repeat":
        made[at:at] = made[at : at + size]
    else:
        made[at:at] = chance.randbytes(size)
    return bytes(made)


def checkpoint(folder: Path, chain: dict[str, Run]) -> tuple[list[Path], Use]:
    path = folder / "last.ckpt"
    save_atomically(path, torch.load(chain["align"].checkpoint, weights_only=True))

    def use() -> Any:
        handover = read_handover(path)
        nets = handover.build_policy(), handover.build_critic()
        return read_checkpoint(path), [net.state_dict() for net in nets], handover.build_normalizer().state()

    return [path], use


def side(folder: Path, chain: dict[str, Run]) -> tuple[list[Path], Use]:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    state = {"data": {"rows": rows, "cursor": 7}, "random": side_state.random_state()}
    side_state.write(folder / "last.ckpt", "abc", 0, state)
    return [folder / "last.abc.state/rank-0.pt"], lambda: side_state.read(folder / "last.ckpt", "abc", 0)


def cache(folder: Path, chain: dict[str, Run]) -> tuple[list[Path], Use]:
    ends = np.zeros((2, 200), np.bool_)
    ends[1, 9::10] = True

    def use() -> Any:
        store = mapped_store(raw_of(*ends), env_of(), folder)
        return store.matrix.clone(), store.td_rows, store.episodes, store.complete, store.manifest.to_dict()

    use()
    return sorted(folder.glob("transitions/*/*")), use


def plan(folder: Path, chain: dict[str, Run]) -> tuple[list[Path], Use]:
    entry = {"phase": "all", "phases": ["offline", "align"], "overrides": ["steps.offline=60"], "options": ["--a", "1"]}
    write_plan(folder, [{**entry, "cwd": "/", "datasets": {"d.hdf5": "0123456789abcdef"}}])
    return [folder / "plan.json"], lambda: read_plan(folder)


def config(folder: Path, chain: dict[str, Run]) -> tuple[list[Path], Use]:
    write_config(folder / "config.yaml", "model:\n  discount: 0.99\n  hidden: [256, 256]\n" * 20)
    return [folder / "config.yaml"], lambda: read_config(folder / "config.yaml")


KINDS = (checkpoint, side, cache, plan, config)


def fuzz(kind: Callable[..., tuple[list[Path], Use]], count: int, seed: int, folder: Path, chain: Any) -> int:
    """``count`` damages, one after the other; how many of them were refused, or mended."""
    files, use = kind(folder, chain)
    right, whole = use(), {path: path.read_bytes() for path in files}
    chance, found, before = random.Random(seed), 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        path = chance.choice(files)
        path.write_bytes(made := damaged(whole[path], chance))
        try:
            used = use()
        except UserError as error:
            assert "\n" not in str(error) and error.exit_code == 2
            found += 1
        else:
            assert killing._unequal(list(right), list(used)) == [], f"damage {i} of {path.name} was used"
            found += path.read_bytes() != made
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[path])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_never_used(kind, chain, tmp_path):
    assert fuzz(kind, 40, 0, tmp_path, chain) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_never_used_in_hundreds_of_tries(kind, seed, chain, tmp_path):
    found = fuzz(kind, 300, seed, tmp_path, chain)
    print(f"{kind.__name__}: 300 damages, {found} refused or mended, the others of bytes that mean nothing")
    assert found > 150
