"""Every command that README and docs show: `o2o` knows its words, though most files that it names are not there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run

from o2o_lightning.cli import data, sweep
from o2o_lightning.cli.command import split
from o2o_lightning.cli.main import main
from o2o_lightning.cli.plan import plan

ROOT = Path(__file__).parents[1]
UNKNOWN_WORDS = ("no such option", "unrecognized", "invalid choice", "is required", "are required", "unknown command")


def commands() -> Iterator[tuple[str, list[str]]]:
    """The commands in the code blocks of a page, as a shell would split them."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("o2o "):
                    yield page.name, [word for word in shlex.split(line, comments=True)[1:] if word != "…"]


SHOWN = [pytest.param(words, id=f"{page}: {' '.join(words)[:60]}") for page, words in commands()]


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 30


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_of_the_pages_has_words_that_are_known(
    words: list[str],
    chain: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = {f"{phase}/checkpoints/last.ckpt": str(run.checkpoint) for phase, run in chain.items()}
    sources["import/checkpoints/last.ckpt"] = sources["offline/checkpoints/last.ckpt"]
    words = [next((there for name, there in sources.items() if word.endswith(name)), word) for word in words]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # no hub is asked
    monkeypatch.setattr(sweep, "_launch", lambda *_: None)
    monkeypatch.setattr(sweep, "_report", lambda *_: 0)
    monkeypatch.setattr(sweep, "_report_search", lambda *_: 0)
    monkeypatch.setattr(sweep, "_check_plugins", lambda *_: None)
    if words[0] == "fit":
        assert plan(split(words[1:]))[0]
    elif words[:2] == ["data", "make"]:
        words = [word.strip("[]").partition("|")[0] for word in words]
        data.parser().parse_args([word if word != "N" else "1" for word in words[1:]])
    else:
        code = main([*words, "--dry_run"] if words[0] == "reproduce" and words[1:] else words)
        error = capsys.readouterr().err
        assert code in (0, 2) and not any(said in error for said in UNKNOWN_WORDS), error
