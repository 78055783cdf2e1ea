"""Standard output and error: what a file brings never steers the terminal, and a reader that has gone ends nothing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import killing
import pytest
import torch
from data_files import write

from o2o_lightning.cli.main import main
from o2o_lightning.cli.streams import Stream
from o2o_lightning.errors import UserError

TITLE = "\x1b]0;owned\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_no_other_sequence():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        Stream(stream, "x").write(f"\x1b[1m\x1b[2K{TITLE}\x1b[2J\u202e\x9b31m π\tx\r\n")
    spelled = r"\x1b]0;owned\x07\x1b[2J\u202e\x9b31m" + " π\tx\r\n"
    assert terminal.getvalue() == "\x1b[1m\x1b[2K" + spelled and file.getvalue() == spelled


def test_what_an_encoding_lacks_is_spelled_out():
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, "ascii"), "x")
    stream.write("π\n")
    stream.flush()
    assert raw.getvalue() == b"\\u03c0\n"


def test_an_error_spells_out_the_control_characters_of_what_it_names():
    assert str(UserError(f"tensor {TITLE}x:\n no weight\x00")) == r"tensor \x1b]0;owned\x07x: no weight\x00"


def test_no_control_sequence_of_a_file_reaches_the_terminal(tmp_path, capsys):
    dataset = write(tmp_path / "e.hdf5")
    with h5py.File(dataset, "a") as file:
        file["metadata/env_id"] = f"\x1b[2J{TITLE}x:Evil-v0"
    torch.save({f"{TITLE}x": torch.zeros(2)}, tmp_path / "p.pt")
    for argv in (
        ["data", "info", str(dataset)],
        ["data", "check", str(dataset)],
        ["fit", "--phase", "offline", "--data.dataset", str(dataset), "--run_dir", str(tmp_path / "r")],
        ["policy", "import", str(tmp_path / "p.pt"), "--run_dir", str(tmp_path / "r")],
    ):
        main(argv)
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err and "owned" in said.out + said.err, argv


def nobody_reads(descriptor: int) -> Callable[[], None]:
    def prepare() -> None:
        read, written = os.pipe()
        os.close(read)
        os.dup2(written, descriptor)
        stream = os.fdopen(descriptor, "w", buffering=1 + descriptor)
        setattr(sys, "stdout" if descriptor == 1 else "stderr", stream)

    return prepare


def closed() -> None:
    os.close(2)
    sys.stderr = None


@pytest.mark.parametrize("prepare", [nobody_reads(1), nobody_reads(2), closed])
@pytest.mark.parametrize("argv", [
    ["data", "list"],
    ["fit", "--phase", "offline", "--trainer.max_steps", "2", "--data.eval_episodes", "1", "--model.hidden", "[4]"],
])  # fmt: skip
def test_a_reader_that_has_gone_ends_nothing(prepare, argv, tmp_path: Path):
    killing.import_everything()
    options = ["--run_dir", str(tmp_path / "run")] if argv[0] == "fit" else []
    assert killing.run([*argv, *options], tmp_path / "log", prepare) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert argv[0] != "fit" or (tmp_path / "run/summary.json").exists()


def test_a_full_disk_under_standard_output_is_said(tmp_path: Path):
    def full() -> None:
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115

    assert killing.run(["data", "list"], tmp_path / "log", full) == 2
    assert (tmp_path / "log").read_text().startswith("o2o: standard output: No space left on device.")
