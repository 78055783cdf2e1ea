"""docs/methods.md has of each method all that it promises, and names nothing that is not there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from every_method import METHODS

from o2o_lightning.cli.compose import groups
from o2o_lightning.cli.models import parameters
from o2o_lightning.data.episodes import EpisodeData
from o2o_lightning.data.online import OnlineData
from o2o_lightning.data.rollout import RolloutData
from o2o_lightning.phases.online import Online
from o2o_lightning.replay.balanced import Entry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/methods.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
GENERAL = ("Paper and code", "A fair comparison", "Shared pieces")
OURS = ("o2ppo", "o2sac", "o2td3", "ppo", "sac", "td3")  # the paper's own, in README
OF = {"cal_ql": "Cal-QL", "odt": "Online Decision Transformer", "uni_o4": "Uni-O4", "pa_rl": "PA-RL"}
OF |= {
    "fam_o2o": "FamO2O",
    "proto": "PROTO and PROTO+TD3",
    "proto_td3": "PROTO and PROTO+TD3",
    "off2on": "Off2On",
    "rebrac": "ReBRAC",
}
OF |= dict.fromkeys(("iql", "awac", "cql"), "IQL, AWAC and CQL fine-tuning")
RIVALS = {name: OF.get(name, name.upper()) for name in groups()["online"] if name not in OURS}
OPTIONS = {field.name for make in METHODS.values() for field in fields(make())}
OPTIONS |= {parameter.name for parameter in parameters(f"{Online.__module__}.{Online.__qualname__}")}
DATA = {field.name for kind in (OnlineData, RolloutData, EpisodeData, Entry) for field in fields(kind)}


def test_every_method_has_a_section_and_every_section_a_method() -> None:
    assert {*SECTIONS} - {*GENERAL} == {*RIVALS.values()}


@pytest.mark.parametrize("section", sorted({*RIVALS.values()}))
def test_a_section_says_where_it_is_from_what_it_takes_what_is_ours_and_what_others_report(section: str) -> None:
    text = SECTIONS[section]
    assert "https://arxiv.org/abs/" in text.split("\n\n")[0] and len(text.split("\n- ")) > 4
    for part in ("Takes:", "Options:", "Ours:", "Reported elsewhere"):
        assert f"\n- {part}" in text, part


def test_the_options_that_it_names_are_options() -> None:
    found = re.findall(r"--(?:\w+\.)?(model|data)\.([\w.]+)", TEXT)
    unknown = [
        f"--{part}.{name}"
        for part, name in found
        if not {*name.rstrip(".").split(".")} <= (OPTIONS | {"init_from"} if part == "model" else DATA)
    ]
    assert len(found) > 60 and unknown == []


def test_the_files_that_it_names_are_there() -> None:
    named = {*re.findall(r"`((?:nn|objectives|methods|replay|checkpoint|data|callbacks|phases)/[\w/]+\.py)`", TEXT)}
    assert (
        len(named) > 40 and [name for name in sorted(named) if not (ROOT / "src/o2o_lightning" / name).exists()] == []
    )
