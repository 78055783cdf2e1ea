"""How observations become vectors: one rule for environments, datasets and policies.

A Box is flattened. The parts of a dictionary are joined in the space's own order, as Gymnasium's FlattenObservation and
Stable-Baselines3 join them. What is joined otherwise, or without some parts, must say so by a *layout*: the names of
the parts in the order of their columns.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, islice, permutations
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from o2o_lightning.errors import UserError

FloatArray = NDArray[np.float32]
Path = tuple[str, ...]  # keys from the observation to one of its arrays

MOST_PARTS = 8  # of a dictionary whose selections are looked through
SHOWN = 4


def choose_layout(
    who: str, space: spaces.Space[Any], width: int | None = None, layout: Sequence[str] = ()
) -> tuple[str, ...]:
    """The parts of ``space`` in the order of their columns; empty for a Box.

    Args:
        who: whose space it is, for messages.
        space: a Box, or a dictionary of Boxes and such dictionaries.
        width: columns that a dataset or policy has; without ``layout``, less than all parts have only where one part
            alone has as many (of several, the one called observation).
        layout: the order that the user, or the file, asks for.

    Raises:
        UserError: images or other spaces, names that the space lacks, another width, or a width that several orders
            have and nothing tells which.
    """
    names = tuple(space.spaces) if isinstance(space, spaces.Dict) else ()
    if not {*layout} <= {*names} or len({*layout}) < len(layout):
        raise UserError(
            f"{who}: the observation layout names {', '.join(layout)}, its observation has "
            f"{', '.join(names) or 'no named parts'}. Pass names that it has, or the --data.env_id that belongs to "
            "them."
        )
    chosen = tuple(layout) or names
    why, whole = _no_vector(space, chosen), sum(_size(part) for _, part in leaves(space, chosen))
    if width in (None, whole) or layout or not names:
        if why is not None:
            raise UserError(f"{who}: {why}")
        if width in (None, whole):
            return chosen
    widths = {name: width for name, width in part_widths(space).items() if _no_vector(space, (name,)) is None}
    orders = [] if layout or width is None else [*islice(_orders(widths, width), SHOWN)]
    if ("observation",) in orders or len(orders) == 1:
        return ("observation",) if len(orders) > 1 else orders[0]
    if orders:
        raise UserError(
            f"{who}: {width} of its {whole} observation values may be in the order "
            f"{' or '.join(','.join(order) for order in orders)}, and nothing tells which. Say it: "
            f"--data.observation_layout [{','.join(orders[-1])}], for `o2o policy import` --layout "
            f"{','.join(orders[-1])}, or metadata/obs_layout in the file."
        )
    raise UserError(
        f"{who}: its observations have {whole} values, the dataset, checkpoint or policy has {width}. Pass the "
        "--data.env_id that belongs to it."
    )


def leaves(space: spaces.Space[Any], layout: Sequence[str] = (), path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each array of an observation by its keys, with its space, in the order in which they are joined."""
    if not isinstance(space, spaces.Dict):
        yield path, space
        return
    for name in layout or space.spaces:
        yield from leaves(space[name], (), (*path, name))


def join(observation: Any, paths: Sequence[Path], batch: bool = False) -> FloatArray:
    """An observation as float32 ``[S]``, or with ``batch`` a stack of T as ``[T, S]``."""
    parts = []
    for path in paths:
        part = observation
        for key in path:
            part = part[key]
        array = np.asarray(part, np.float32)
        parts.append(array.reshape(len(array), -1) if batch else array.ravel())
    return np.concatenate(parts, axis=-1)


def part_widths(space: spaces.Space[Any]) -> dict[str, int]:
    """Columns of each part of a dictionary, in its own order; empty for a Box."""
    if not isinstance(space, spaces.Dict):
        return {}
    return {name: sum(_size(part) for _, part in leaves(part)) for name, part in space.spaces.items()}


def is_image(shape: Sequence[int], dtype: Any) -> bool:
    """Whether an observation of ``shape`` is a picture, to be refused where its pixels would become a vector."""
    return len(shape) > 2 or (len(shape) == 2 and dtype == np.uint8)


def _no_vector(space: spaces.Space[Any], layout: Sequence[str]) -> str | None:
    """Why the chosen parts make no vector; None where they do."""
    for path, part in leaves(space, layout):
        what = f"its observation '{'.'.join(path)}'" if path else "its observation"
        if not isinstance(part, spaces.Box):
            return (
                f"{what} is {part}, and only a Box, or a dictionary of them, can be flattened. Wrap the environment so "
                "that it returns a vector, or name the parts to take in --data.observation_layout."
            )
        if is_image(part.shape, part.dtype):
            return (
                f"{what} is an image, {part.shape} of {part.dtype}, and the methods here take vectors. Wrap the "
                "environment so that it returns features, or name its other parts in --data.observation_layout."
            )
    return None


def _size(part: Any) -> int:
    return int(np.prod(part.shape or ()))


def _orders(widths: dict[str, int], width: int) -> Iterator[tuple[str, ...]]:
    """Every order of every selection of parts that has ``width`` columns."""
    if len(widths) <= MOST_PARTS:
        for count in range(1, len(widths)):
            for names in combinations(widths, count):
                if sum(widths[name] for name in names) == width:
                    yield from permutations(names)
