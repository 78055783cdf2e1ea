"""``torch.export`` files, looked through before PyTorch reads them.

Of the graph's JSON, PyTorch evaluates sizes as expressions, executes guards, resolves operators below ``torch``, whose
modules include ``os``, imports the modules of an input's structure, and writes names into source code that it runs.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from o2o_lightning.limits import read_json
from o2o_lightning.policies.source import CLONE, BadPolicy, packed, read_limited, readable, reading, unzip

# A program's graph, tensors and facts; no compiled code, no other objects.
_MEMBER = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|models/\w+\.json|(extra|\.data)/[\w.]+"
    r"|data/(weights|constants)/[\w.]+|data/sample_inputs/\w+\.pt|serialized_\w+\.json)"
)
_NAME = re.compile(r"[\w.]*")
_TEXT = re.compile(r"[\w., +>-]*")
_FUNCTIONS = "Add|Mul|Pow|Integer|Max|Min|FloorDiv|CleanDiv|CeilDiv|Mod|PythonMod|ModularIndexing"
_SIZE = re.compile(rf"(Symbol\('\w+'(, \w+=True)*\)|\b({_FUNCTIONS})\(|\b[su]?\d+\b|[(), +*/-])*")
# what sizes of the inputs must be, as in "L['observation'].size()[0] == L['action'].size()[0]"
_GUARD = re.compile(r"(L(\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]|\b\d+\b|\b(and|or|not)\b|[() %<>=!+*/-])*")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!__|from_file)\w+\.(?!__)\w+|torch\.ops\.higher_order\.wrap_with_set_grad_enabled"
    r"|torch\.sym_(float|int|ite|max|min|not|sum)|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_)"
)
_RULES = {
    "expr_str": _SIZE,
    "target": _OPERATOR,
    "as_operator": _OPERATOR,
    "as_string": _TEXT,
    "as_strings": _TEXT,
    "torch_version": _TEXT,
    "path_name": re.compile(r"(weight|tensor)_\w+"),  # others are pickled objects
    "guards_code": _GUARD,
}
_STRUCTURES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def load_program(spec: str) -> Any:
    """The module of a ``torch.export`` file, of plain operators and tensors.

    Raises:
        UserError: unreadable, or something in it could run code.
    """
    with reading(spec), readable("it is no torch.export file that can be read", "Export it again."):
        members = unzip(read_limited(Path(spec)))
        strange = [name for name in members if not _MEMBER.fullmatch(name)]
        for name, content in members.items():
            strange += _strange(read_json(content), "") if name.endswith(".json") else []
        if strange:
            raise BadPolicy(
                f"it holds {ascii(strange[0])[:60]}, more than a graph and tensors, so it was not loaded. {CLONE}"
            )
        # torch.export would else fall back to executing pickles
        with patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            return torch.export.load(packed(members)).module()


def _strange(value: Any, key: str) -> Iterator[str]:
    """Every text of ``value``, found under ``key``, that is not plainly a name, a size, an operator or a label."""
    if isinstance(value, dict):
        if key == "metadata" and all(isinstance(item, str) for item in value.values()):
            return  # stack traces and the like: shown, never evaluated
        for name, item in value.items():
            if not _NAME.fullmatch(name):
                yield name
            yield from _strange(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strange(item, key)
    elif isinstance(value, str):
        plain = _is_structure(value) if key in ("in_spec", "out_spec") else _RULES.get(key, _NAME).fullmatch(value)
        if not plain:
            yield value or key


def _is_structure(text: str) -> bool:
    """Whether an input's or output's structure is of tuples, lists and dictionaries; others import their modules."""

    def plain(node: Any) -> bool:
        keys = json.loads(node["context"] or "null")
        named = keys is None or (isinstance(keys, list) and all(_NAME.fullmatch(str(key)) for key in keys))
        return named and node["type"] in _STRUCTURES and all(plain(child) for child in node["children_spec"])

    try:
        return not text or plain(json.loads(text)[1])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False
