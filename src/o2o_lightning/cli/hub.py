"""``o2o hub``: a run's policy with its card to a model hub or a folder, and from there, checked by digests."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from o2o_lightning.checkpoint.handover import PHASES, read_handover
from o2o_lightning.checkpoint.io import write_atomically, write_json
from o2o_lightning.checkpoint.run import policy_to_take
from o2o_lightning.cli.arguments import Parser
from o2o_lightning.cli.show import say
from o2o_lightning.data.hdf5 import file_sha256
from o2o_lightning.errors import UserError, reason, refusing
from o2o_lightning.limits import check_text, read_json
from o2o_lightning.report.card import card
from o2o_lightning.report.runs import SUMMARY, read

POLICY, CARD, DIGESTS = "policy.ckpt", "README.md", "digests.json"
CONFIGS = tuple(f"{phase}/config.yaml" for phase in PHASES)
SCHEME = "hf:"
DESCRIPTION = f"""\
What is pushed: {POLICY} (the checkpoint that the run stands for), {CARD} (its card), {SUMMARY}, the config.yaml of each
phase, and {DIGESTS}, by which a pull checks all of them. A place is a folder, or {SCHEME}OWNER/NAME: a repository of
the Hugging Face Hub (`pip install 'o2o-lightning[hub]'`). Nothing is written over.
"""


def main(argv: list[str]) -> int:
    """Runs ``o2o hub``."""
    parser = Parser("o2o hub", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    push = commands.add_parser("push", help="a finished run's policy to a hub or a folder")
    push.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    push.add_argument("place", metavar="PLACE", help=f"a new folder, or {SCHEME}OWNER/NAME")
    push.add_argument("--public", action="store_true", help="a repository that is made is for everybody to see")
    pull = commands.add_parser("pull", help="a policy from a hub or a folder")
    pull.add_argument("place", metavar="PLACE", help=f"a folder, or {SCHEME}OWNER/NAME, with @REVISION behind it")
    pull.add_argument("--to", type=Path, metavar="DIR", help="a new folder (default: the last part of PLACE, here)")
    arguments = parser.parse_args(argv)
    if arguments.command == "push":
        _push(arguments.run_dir, arguments.place, arguments.public)
    else:
        _pull(arguments.place, arguments.to)
    return 0


def _push(run_dir: Path, place: str, public: bool) -> None:
    name = place.removeprefix(SCHEME)
    if name == place:
        with _made(Path(place)) as folder:
            pack(run_dir, folder)
    else:
        with tempfile.TemporaryDirectory() as made:
            pack(run_dir, Path(made))
            with _client(place) as hub:
                api = hub.HfApi(library_name="o2o-lightning")
                name = api.create_repo(name, private=not public, exist_ok=True).repo_id
                if held := {*api.list_repo_files(name)} - {".gitattributes"}:
                    raise UserError(
                        f"{place}: it holds {len(held)} files, and nothing is written over. Pass another name, or an "
                        "empty repository."
                    )
                api.upload_folder(repo_id=name, folder_path=made, commit_message="A policy of o2o-lightning")
    say(f"{place}: {POLICY} of {policy_to_take(run_dir / read(run_dir).phase)}, with its card; `o2o hub pull {place}`")


def pack(run_dir: Path, folder: Path) -> None:
    """Fills the empty ``folder`` with what a hub gets of a finished run.

    Raises:
        UserError: the run is not finished, or its checkpoint is damaged.
    """
    run = read(run_dir)
    taken = policy_to_take(run_dir / run.phase)
    read_handover(taken)
    copied = {POLICY: taken, SUMMARY: run_dir / SUMMARY}
    copied |= {name: run_dir / name for name in CONFIGS if (run_dir / name).is_file()}
    write_atomically(folder / CARD, card(run, POLICY).encode())
    for name, source in copied.items():
        _copy(source, folder / name)
    digests = {name: file_sha256(folder / name) for name in (CARD, *copied)}
    write_json(folder / DIGESTS, {"format": 1, "sha256": digests})


def _pull(place: str, to: Path | None) -> None:
    name, _, revision = place.removeprefix(SCHEME).partition("@")
    held, target = Path(place), to or Path(Path(name).name)
    with _made(target) as folder:
        if place.startswith(SCHEME):
            with _client(place) as hub:
                patterns = [CARD, POLICY, SUMMARY, DIGESTS, *CONFIGS]
                held = Path(hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns))
        elif not held.is_dir():
            raise UserError(f"{place}: there is no such folder. A repository of a hub is {SCHEME}OWNER/NAME.")
        unpack(held, folder, place)
        source = read_handover(folder / POLICY)
    version = f" at {held.name}" if place.startswith(SCHEME) else ""
    say(f"{target}: {source.algorithm} of {source.env_id or 'no environment'} from {place}{version}, as it was pushed")
    file = target / POLICY
    say(f"`o2o test --ckpt_path {file}` evaluates it, --model.init_from takes it; its card is {target / CARD}")


def unpack(held: Path, folder: Path, place: str) -> None:
    """Copies into ``folder`` what :func:`pack` has put into ``held``, and compares each copy's digest.

    Raises:
        UserError: something else, or a file that has changed; ``place`` is how to call it.
    """
    digests = _digests(held / DIGESTS, place)
    for name, digest in digests.items():
        if not (held / name).is_file():
            raise UserError(f"{place}: its {name} is missing. Pull it again, or have it pushed again.")
        _copy(held / name, folder / name)
        if file_sha256(folder / name) != digest:
            raise UserError(
                f"{place}: its {name} is not what was pushed (another SHA-256). Pull it again, or have it pushed again."
            )
    write_json(folder / DIGESTS, {"format": 1, "sha256": digests})


def _digests(path: Path, place: str) -> dict[str, str]:
    with refusing(f"{place}: it is no policy that `o2o hub push` has pushed", "Pass another."):
        check_text(path, f"{place}: {DIGESTS}")
        if not path.exists():
            raise ValueError(f"it has no {DIGESTS}")
        digests: dict[str, str] = read_json(path.read_text())["sha256"]
        if not {CARD, POLICY, SUMMARY} <= {*digests} <= {CARD, POLICY, SUMMARY, *CONFIGS}:
            raise ValueError(f"its {DIGESTS} names other files")
    return digests


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


@contextmanager
def _made(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that becomes it when all is well."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: it exists, and nothing is written over. Pass another folder.")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as beside:
        folder = Path(beside) / "new"
        folder.mkdir()
        yield folder
        folder.rename(target)


@contextmanager
def _client(place: str) -> Iterator[Any]:
    """The hub's own client; what it trips over is one line."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise UserError(
            f"{place}: the hub's client is not installed. Run `pip install 'o2o-lightning[hub]'`, or name a folder."
        ) from error
    try:
        yield hub
    except UserError:
        raise
    except errors.HFValidationError as error:
        raise UserError(f"{place}: that is no name of a repository. Write {SCHEME}OWNER/NAME.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{place}: the repository has no such revision. Leave @… out for the newest.") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{place}: the hub has no such repository, or shows it to nobody without a token. Check the name, or "
            "run `hf auth login`."
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"{place}: the hub refused ({reason(error)}). Log in with a token that may do it: `hf auth login`."
        ) from error
    except Exception as error:  # of its HTTP client: another in each version
        raise UserError(
            f"{place}: the hub can't be reached ({reason(error.__cause__ or error)}). Try again, or name a folder."
        ) from error
