"""A dataset spec and its environment, opened."""

from __future__ import annotations

from typing import Literal, NamedTuple

from o2o_lightning.data.mapped import load_store
from o2o_lightning.data.spec import load_raw
from o2o_lightning.envs.make import EnvSpec, env_spec, foreign_id
from o2o_lightning.errors import UserError
from o2o_lightning.launch import note_once
from o2o_lightning.replay.store import TransitionStore


class Opened(NamedTuple):
    """Transitions, their environment with its id, and the keys of its observations where it has several."""

    store: TransitionStore | None
    env: EnvSpec | None
    env_id: str | None
    layout: tuple[str, ...]


def open_dataset(
    dataset: str, env_id: str | None, layout: tuple[str, ...], memmap: bool | Literal["auto"], limit: int
) -> Opened:
    """The transitions of ``dataset``, to evaluate in ``env_id`` or their own environment; options as OfflineData's."""
    raw = load_raw(dataset, env_id=env_id)
    env_id = env_id or foreign_id(raw.env_id, f"dataset {dataset}")
    if raw.layout and layout and raw.layout != layout:
        note_once(
            f"dataset {raw.source}: its observations are {', '.join(raw.layout)}, as it says itself; "
            f"observation_layout {', '.join(layout)} is left unused."
        )
    layout = raw.layout or layout
    env = None if env_id is None else env_spec(env_id, raw.observations.shape[1], layout)
    store = load_store(raw, env, memmap, limit)
    if store.td_count == 0:
        raise UserError(
            f"dataset {dataset}: none of its {len(raw)} rows has a known successor, each is a time-out or the last "
            "one. Store 'next_observations', or correct 'timeouts'."
        )
    return Opened(store, env, env_id, layout)
