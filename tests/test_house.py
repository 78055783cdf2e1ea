"""The rooms of the package: who may know whom, what the pure ones know nothing of, how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src/o2o_lightning"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

# From the outermost room to the innermost: a room imports only from those that come after it.
# On one level, with an arrow that goes one way, are phases and callbacks, recording and policies, replay and envs.
ORDER = (
    "cli", "report", "phases", "callbacks", "recording", "policies", "data", "replay", "envs", "checkpoint", "engine",
    "methods", "objectives", "nn", "ground",
)  # fmt: skip
PURE = ("methods", "objectives", "nn")
IMPURE = {"lightning", "hydra", "gymnasium", "h5py", "os", "pathlib", "rich", "minari"}


def room(name: str) -> str:
    """The folder of a file; ``ground`` for the single files."""
    return name.split("/")[0] if "/" in name else "ground"


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that a piece of a program imports, inside functions too, but not for the type checker alone."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: a relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in node.orelse if types_only else ast.iter_child_nodes(node):
        yield from imported(child)


def modules(name: str) -> list[str]:
    return [*imported(ast.parse(FILES[name].read_text(), name))]


def rooms(name: str) -> set[str]:
    """Other rooms that a file imports from."""
    own = [module.split(".")[1] for module in modules(name) if module.startswith("o2o_lightning.")]
    return {module if (PACKAGE / module).is_dir() else "ground" for module in own} - {room(name)}


def test_a_pure_room_knows_nothing_of_the_world():
    pure = [name for name in FILES if room(name) in PURE]
    assert {room(name) for name in pure} == set(PURE)
    impure = [f"{name} imports {module}" for name in pure for module in modules(name) if module.split(".")[0] in IMPURE]
    assert not impure, "\n".join(impure)


def test_imports_go_one_way_through_the_rooms():
    homeless = [name for name in FILES if room(name) not in ORDER]
    assert not homeless, f"in no room of ORDER: {', '.join(homeless)}"
    back = [
        f"{name} imports {other}"
        for name in FILES
        for other in sorted(rooms(name))
        if ORDER.index(other) < ORDER.index(room(name))
    ]
    assert not back, "\n".join(back)


def test_a_method_fits_on_two_screens():
    """But for what all of them are, the paper's own, in o2/, and two that bring a phase of their own kind."""
    longer = {"methods/method.py", "methods/ppo.py", "methods/uni_o4.py", "methods/odt.py"}
    files = [name for name in FILES if name.startswith("methods/") and name.count("/") == 1 and name not in longer]
    sizes = {name: len(FILES[name].read_text().splitlines()) for name in files}
    assert len(files) > 20 and [f"{name}: {n} lines" for name, n in sizes.items() if n > 150] == []


def test_a_file_fits_in_one_head():
    sizes = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    long = [f"{name}: {n} lines" for name, n in sizes.items() if n > (250 if room(name) == "methods" else 350)]
    assert not long, "\n".join(long)
