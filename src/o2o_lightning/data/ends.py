"""Where episodes end: one rule for every source, and the one by which environments are learned from.

A row that is terminated is terminal, be it truncated as well: nothing is bootstrapped from it. Many files keep a single
flag, true at either end (``done``), beside their time-outs or in place of them. They are told by the environment's step
limit: flags are independent of it, ``done`` is always set there.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.blocks import blocks
from o2o_lightning.data.raw import Column, Meaning
from o2o_lightning.launch import note_once

Flags = NDArray[np.bool_]


class Ends(NamedTuple):
    """Flags ``[N]``: the environment ended the episode; a limit, or the recording's end, cut it."""

    terminated: Flags
    truncated: Flags


def ends_of(
    source: str,
    terminals: Flags,
    timeouts: Flags | None,
    meaning: Meaning,
    horizon: int | None,
    cut: Flags | None = None,
) -> Ends:
    """The flags of a file.

    Args:
        source: what notes call it.
        terminals, timeouts: as stored ``[N]``; without ``timeouts``, each ``horizon``-th step is one, and each cut.
        meaning: of ``terminals``: terminations alone, the end of an episode in either way, or unsaid.
        horizon: the environment's step limit, where it is known.
        cut: rows that the next row does not go on from, where successors were recorded (:func:`jumps`).
    """
    given = timeouts is not None
    if timeouts is None:
        cut = np.zeros_like(terminals) if cut is None else cut & ~terminals
        timeouts = cut | timeouts_from_horizon(terminals | cut, horizon)
    if meaning == "auto" and horizon is not None:
        at_limit = timeouts & (steps_so_far(terminals | timeouts) >= horizon)
        meaning = "done" if at_limit.any() and terminals[at_limit].all() else "terminated"
    both = int((terminals & timeouts).sum())
    if meaning == "done" and (given or horizon is not None):
        terminals = terminals & ~timeouts
        if both:
            note_once(
                f"dataset {source}: {both} of its ends are terminal and time-outs in one, at the step limit or by its "
                "own word: they count as time-outs. Pass --data.terminals terminated if they are terminal states."
            )
    elif both and meaning == "auto":  # no limit is known
        note_once(
            f"dataset {source}: {both} rows are terminal and time-outs in one: they count as terminal. Pass the "
            "--data.env_id whose step limit tells, or --data.terminals done if its flag means the end of any episode."
        )
    elif meaning == "done" and terminals.any():
        note_once(
            f"dataset {source}: its ends do not say which are time-outs, and no known environment's step limit does: "
            "all count as terminal. Pass its --data.env_id, or add 'timeouts'."
        )
    return Ends(terminals, timeouts)


def timeouts_from_horizon(terminals: Flags, horizon: int | None) -> Flags:
    """Time-outs ``[N]`` of a file that has none: at each ``horizon``-th step since the last episode end.

    As D4RL's qlearning convention has it; without a horizon nothing is marked.
    """
    timeouts = np.zeros(len(terminals), np.bool_)
    if horizon is not None:
        ends = np.flatnonzero(terminals) + 1
        for start, stop in zip([0, *ends], [*ends, len(terminals)], strict=True):
            timeouts[start + horizon - 1 : stop : horizon] = True
    return timeouts


def steps_so_far(end: Flags) -> NDArray[np.int64]:
    """``[N]``: which step of its episode a row is, from 1."""
    row = np.arange(len(end))
    starts = np.where(np.concatenate([[True], end[:-1]]), row, 0)
    return row - np.maximum.accumulate(starts) + 1


def jumps(observations: Column, successors: Column) -> Flags:
    """``[N]``: rows whose recorded successor is not the next row's observation, beyond float32's rounding."""
    found = np.zeros(observations.shape[0], np.bool_)
    for rows in blocks(len(found) - 1):
        after: NDArray[Any] = np.asarray(observations[slice(rows.start + 1, rows.stop + 1)])
        near = np.isclose(np.asarray(successors[rows]), after, rtol=1e-4, atol=1e-5, equal_nan=True)
        found[rows] = ~near.all(axis=1)
    return found
