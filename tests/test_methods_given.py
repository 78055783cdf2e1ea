"""Which online methods start from a policy that they are given: the table of docs/methods.md is what the code says.

``python tests/test_methods_given.py`` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from every_method import TASK, A, S
from torch import nn

from o2o_lightning.cli.command import split
from o2o_lightning.cli.compose import compose, groups
from o2o_lightning.cli.models import method_of
from o2o_lightning.cli.phases import FAMILIES
from o2o_lightning.errors import UserError
from o2o_lightning.nn.actors import ACTORS, fresh_actor
from o2o_lightning.nn.critics import Critics, ValueNet

DOCS = Path(__file__).parents[1] / "docs/methods.md"
HEAD = "| `online=` | a given policy | critics | phases behind it |"
STORED = ("actor", "offline_actor", "critic", "target_critic")


class Given:
    """A checkpoint with a policy of a family, and critics by re-evaluation; nothing that only one method knows."""

    phase = "reevaluate"

    def __init__(self, family: str) -> None:
        self.family, self.asked = family, False

    def has(self, name: str) -> bool:
        return name in STORED

    def build_actor(self, name: str = "actor") -> Any:
        return fresh_actor(self.family, S, A, (8, 8))

    def build_critic(self, name: str = "critic") -> Critics:
        self.asked = True
        return Critics(S, A, (8, 8), True)

    def build_value(self) -> ValueNet | None:
        return None

    def load(self, net: nn.Module, name: str) -> nn.Module:
        if name not in STORED:
            raise UserError(f"no {name}")
        return net

    def load_scalar(self, parameter: nn.Parameter, name: str) -> None:
        """None is stored."""


def row(online: str) -> str:
    """What the rule's own code does with such a checkpoint."""
    composed = compose("online", split([f"online={online}"]))
    rule, options = method_of(composed["model"]), dict(composed["model"].get("init_args") or {})
    family = rule.policy_family(options)
    phases = ", ".join(f"`{phase}`" for phase in composed["phases"] if phase != "offline")
    given = Given("gaussian" if family is None else family)
    try:
        if given.family not in ACTORS:
            raise UserError("nothing is cloned into it")
        plain = {name: value for name, value in options.items() if isinstance(value, str | int | float)}
        made: Any = rule(**plain)
        made.build(TASK, given)
    except UserError:
        return f"| `{online}` | none: it goes on from what its own offline phase alone makes | – | – |"
    policy = "of any family" if family is None else f"{FAMILIES.get(family, 'a deterministic one')}; others are cloned"
    return f"| `{online}` | {policy} | {'taken' if given.asked else 'new, or none'} | {phases} |"


def table() -> list[str]:
    return [HEAD, "|---|---|---|---|", *map(row, groups()["online"])]


@pytest.mark.parametrize("online", groups()["online"])
def test_the_documentation_says_what_each_method_takes(online: str) -> None:
    assert row(online) in DOCS.read_text().splitlines()


def test_the_table_names_every_method_and_no_other() -> None:
    lines = DOCS.read_text().splitlines()
    start = lines.index(HEAD)
    assert len(lines[start:]) > len(table()) and lines[start + len(table())] == ""


if __name__ == "__main__":
    print("\n".join(table()))
