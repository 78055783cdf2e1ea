"""A film of an episode, as mp4 or gif."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_lightning.errors import UserError

Frame = NDArray[np.uint8]
MOST = 30  # frames a second


def stride(rate: float) -> int:
    """Every how many frames of an environment are kept, so that no more than 30 are a second."""
    return max(math.ceil(rate / MOST), 1)


@contextmanager
def film(path: Path, rate: float) -> Iterator[Callable[[Frame], None]]:
    """Takes frames ``[H, W, 3]``, ``rate`` a second; the file is there when all have come.

    Raises:
        UserError: neither mp4 nor gif, or what writes mp4 is not installed.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"--record {path}: a film is an .mp4 or a .gif. Pass such a name.")
    writer: Any = _mp4(path, rate) if path.suffix == ".mp4" else _gif(path, rate)
    next(writer)
    try:
        yield writer.send
    except BaseException:
        writer.close()
        path.unlink(missing_ok=True)
        raise
    writer.close()


def _gif(path: Path, rate: float) -> Iterator[None]:
    from PIL import Image

    images: list[Any] = []
    try:
        while True:
            images.append(Image.fromarray((yield)).quantize(128))  # type: ignore[arg-type]
    except GeneratorExit:
        if images:
            images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)


def _mp4(path: Path, rate: float) -> Iterator[None]:
    try:
        from imageio_ffmpeg import write_frames
    except ModuleNotFoundError as error:
        raise UserError(
            f"--record {path}: mp4 needs imageio-ffmpeg. Run `pip install 'o2o-lightning[video]'`, or record a .gif."
        ) from error
    first: Any = yield
    writer = write_frames(str(path), (first.shape[1], first.shape[0]), fps=rate, macro_block_size=2)
    writer.send(None)
    try:
        frame = first
        while True:
            writer.send(np.ascontiguousarray(frame))
            frame = yield
    finally:
        writer.close()
