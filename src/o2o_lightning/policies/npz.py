"""NPZ files of others: plain numbers, of no more bytes than the file holds; no pickle in them is ever read."""

import io
import math

import numpy as np
from numpy.lib import format as npy

from o2o_lightning.policies.source import Array, BadPolicy, readable, unzip


def read_npz(content: bytes) -> dict[str, Array]:
    """The arrays of an NPZ file by name, in float64.

    Raises:
        BadPolicy: unreadable, an array of anything but numbers, or one that declares another size than it has.
    """
    with readable("it is no NPZ file that can be read", "Write it with `numpy.savez`."):
        return {name.removesuffix(".npy"): _array(name, part) for name, part in unzip(content).items()}


def _array(name: str, content: bytes) -> Array:
    file = io.BytesIO(content)
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = header(file)
    held = content[file.tell() :]
    if dtype.kind not in "biuf":
        raise BadPolicy(f"'{name}' is of {dtype}, and only numbers are read. Write it as numbers.")
    if math.prod(shape) * dtype.itemsize != len(held):
        raise BadPolicy(f"'{name}' declares {shape}, and holds {len(held):,} bytes. Write it again.")
    return np.frombuffer(held, dtype).reshape(shape, order="F" if fortran else "C").astype(np.float64)
