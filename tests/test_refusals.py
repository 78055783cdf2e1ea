"""``docs/refusals.md``: each kind of mistake that it lists is held by tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [row for row in (TESTS.parent / "docs/refusals.md").read_text().splitlines() if row.startswith("| ")][1:]


def functions(name: str) -> set[str]:
    return {node.name for node in ast.parse((TESTS / name).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_kind_of_mistake_is_held_by_a_test_that_exists() -> None:
    kinds = [row for row in ROWS if not row.startswith("| **")]
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in kinds]
    assert len(kinds) > 40 and all(named)
    missing = [f"{file}::{test}" for tests in named for file, test in tests if test not in functions(file)]
    assert not missing, missing
