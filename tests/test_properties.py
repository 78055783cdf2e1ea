"""PROPERTIES.md names the tests that there are, each by the numbers in its name, and leaves none out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"\| T(\d+) \| (.+) \| (.+) \|")


def numbers(name: str) -> list[int]:
    """``test_t55_and_t56_…``: 55 and 56."""
    leading = re.match(r"test_((?:t\d+_(?:and_)?)*)", name)
    return [int(number) for number in re.findall(r"t(\d+)_", leading[1])] if leading else []


def numbered() -> dict[str, list[int]]:
    """The numbers of every test that has any, by ``file::name``."""
    found = {}
    for file in sorted(TESTS.glob("test_*.py")):
        names = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        found |= {f"{file.name}::{name}": numbers(name) for name in names if numbers(name)}
    return found


def rows() -> dict[int, str]:
    lines = (TESTS / "PROPERTIES.md").read_text().splitlines()
    matches = [match for line in lines if (match := ROW.fullmatch(line))]
    assert len(matches) == sum(line.startswith("| T") for line in lines)
    return {int(number): held for number, _, held in (match.groups() for match in matches)}


def test_every_property_from_36_to_150_has_a_row() -> None:
    assert [*rows()] == [*range(36, 151)]


def test_a_row_names_the_tests_that_have_its_number_or_a_reason() -> None:
    known = numbered()
    for number, held in rows().items():
        named = re.findall(r"`(test_\w+\.py::\w+)`", held)
        assert named == [test for test, own in known.items() if number in own], f"T{number}"
        assert named or (held.startswith("– ") and len(held) > 20), f"T{number}"
