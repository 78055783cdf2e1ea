"""TorchScript files, looked through before PyTorch reads them: tensors, and code of plain operators without loops.

Operators of TorchScript read and write files (``aten::from_file``, ``aten::save``), and methods run while it is loaded.
"""

import ast
import re
from pathlib import Path
from typing import Any

import torch

from o2o_lightning.policies.source import CLONE, BadPolicy, packed, read_limited, readable, unzip

_MEMBER = re.compile(
    r"[^/]+/(code/[\w./]+\.py|data\.pkl|constants\.pkl|(data|constants)/\d+|version|byteorder|\.data/\w+)"
)
_LEFT_OUT = re.compile(r"[^/]+/(code/[\w./]+\.debug_pkl|traced_inputs.*|extra/.*)")  # of no use for running
_SYNTAX = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign, ast.Return, ast.Name,
    ast.Attribute, ast.Call, ast.Constant, ast.List, ast.Tuple, ast.Subscript, ast.UnaryOp, ast.USub, ast.Not, ast.If,
    ast.IfExp, ast.Pass, ast.Load, ast.Store, ast.keyword,
)  # fmt: skip
_OPERATORS = re.compile(
    r"linear|addmm|matmul|b?mm|add|r?sub|mul|div|neg|pow|r?sqrt|square|exp|log|log1p|abs|sign|erf|sin|cos|sigmoid|tanh"
    r"|atanh|relu_?|relu6|[cs]?elu|gelu|silu_?|mish|leaky_relu|softplus|softsign|hardtanh_?|hardsigmoid|hardswish"
    r"|clamp(_min|_max)?|min|max|minimum|maximum|(layer|batch)_norm|dropout|chunk|split(_with_sizes)?|cat|stack|slice"
    r"|select|narrow|unbind|index_select|gather|(un)?squeeze|reshape|view|flatten|t|transpose|permute|contiguous|to"
    r"|type_as|size|dim|numel|detach|clone|expand(_as)?|where|sum|mean|std|var|(log_)?softmax|(zeros|ones|full)_like"
    r"|addcmul|lerp|eq|ne|lt|gt|le|ge|len|alias|__(isnot|is|not|getitem)__"
)
_FUNCTIONS = {"getattr", "annotate", "unchecked_cast", "uninitialized", "int", "float", "bool", "len"}
MOST_CALLS = 100_000  # when every call is followed


def load_torchscript(spec: str) -> Any:
    """The module of a TorchScript file.

    Raises:
        BadPolicy: unreadable, or more than tensors and plain operators.
    """
    with readable("it is no TorchScript file that can be read", "Save it again."):
        members = unzip(read_limited(Path(spec)))
        members = {name: part for name, part in members.items() if not _LEFT_OUT.fullmatch(name)}
        strange = [name for name in members if not _MEMBER.fullmatch(name)]
        strange += [name for name, part in members.items() if name.endswith(".pkl") and b"torch.classes" in part]
        units: dict[str, ast.AST] = {}
        for name, part in members.items():
            if name.endswith(".py"):
                strange += _strange(part)
                place = name.partition("/code/")[2].removesuffix(".py").replace("/", ".")
                units |= {f"{place}.{unit.name}": unit for unit in ast.parse(part).body if hasattr(unit, "name")}
        if strange:
            raise BadPolicy(
                f"it holds {ascii(strange[0])[:60]}, more than tensors and plain operators: it was not loaded. {CLONE}"
            )
        _count(units)
        return torch.jit.load(packed(members), map_location="cpu").eval()  # type: ignore[no-untyped-call]


def _strange(code: bytes) -> list[str]:
    """What of a file's code is no assignment of known operators' results."""
    text = code.decode("ascii")
    found = [mark for mark in "#\\;" if mark in text]  # that its own parser may read otherwise
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, _SYNTAX):
            found.append(type(node).__name__)
        elif (isinstance(node, ast.FunctionDef) and node.name.startswith("__") and node.name != "__len__") or (
            isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] != ["Module"]
        ):
            found.append(node.name)
        elif isinstance(node, ast.Call) and not _is_known(name := ast.unparse(node.func)):
            found.append(name)
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith(("torch.", "ops.")):
            found += [] if name == "ops.prim" or _is_known(name) else [name]  # a variable may hold an operator
    return found


def _is_known(name: str) -> bool:
    """Whether ``name`` is an operator, a submodule, or a variable, which can hold the code's own functions only."""
    operator = name.removeprefix("torch.").removeprefix("ops.prim.")
    if name.startswith("torch."):
        return bool(_OPERATORS.fullmatch(operator))
    if name.startswith("ops.prim."):
        return operator in ("NumToTensor", "unchecked_cast")
    own = name.startswith("__torch__.") or name.rpartition(".")[2] == "forward" or re.fullmatch(r"_\d+", name)
    return name in _FUNCTIONS or bool(own)


def _count(units: dict[str, ast.AST]) -> None:
    """Refuses code whose calls, followed into the classes and functions that it names, are too many."""
    known: dict[str, int] = {}

    def calls(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise BadPolicy(f"its '{name}' calls itself. {CLONE}")
        if name not in known:
            nodes = [*ast.walk(units[name])]
            named = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)} & units.keys() - {name}
            own = sum(isinstance(node, ast.Call) for node in nodes)
            known[name] = 1 + own * max((calls(other, (*above, name)) for other in named), default=1)
        return known[name]

    if len(units) > 500 or max((calls(name, ()) for name in units), default=0) > MOST_CALLS:
        raise BadPolicy(f"its code calls too much for a policy. {CLONE}")
