"""Resumable downloads into a cache, written so that a half file is never mistaken for a whole one."""

import errno
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from o2o_lightning.errors import UserError

_CHUNK = 2**20
_TIMEOUT_SECONDS = 30.0


def cache_dir() -> Path:
    """Folder of downloaded datasets: ``$O2O_CACHE``, else ``~/.cache/o2o-lightning/datasets``.

    Raises:
        UserError: there is no such user, or no home.
    """
    configured = os.environ.get("O2O_CACHE") or "~/.cache/o2o-lightning/datasets"
    try:
        return Path(configured).expanduser()
    except RuntimeError as error:
        raise UserError(f"{configured}: {error} Let the variable O2O_CACHE name a folder.") from None


def download(url: str, target: Path, source: str, accept: Callable[[Path], bool]) -> None:
    """Fetches ``url`` to ``target``, continuing an earlier ``target.part``; nothing to do where ``target`` exists.

    ``accept`` looks at the finished file; a refused one (a login page, say) is thrown away.

    Raises:
        UserError: the server cannot be reached, refuses, or breaks off (what was received is kept for the next try),
            or the file is not accepted.
    """
    if target.exists():
        return
    if "://" not in url:
        raise UserError(
            f"dataset {source}: {url} is no address. Set the variable O2O_D4RL_MIRROR to http://HOST/FOLDER, or to "
            "file:// and the absolute path of a folder."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"dataset {source}: the cache folder {target.parent} cannot be written ({error.strerror}). "
            "Point the variable O2O_CACHE to a writable folder."
        ) from error
    part = target.with_name(target.name + ".part")
    # each rank of a multi-process run loads the dataset; two writers would interleave in one .part file
    with FileLock(target.with_name(target.name + ".lock")):
        if target.exists():
            return
        try:
            _fetch(url, part)
        except (OSError, ValueError, http.client.HTTPException) as error:  # a full disk is an OSError, as URLError is
            raise UserError(
                f"dataset {source}: download of {url} failed ({getattr(error, 'reason', None) or error}). "
                f"Try again to resume, or fetch it elsewhere and put it at {target}."
            ) from error
        if not accept(part):
            part.unlink()
            raise UserError(
                f"dataset {source}: {url} did not send a dataset file (a proxy's or login page?). "
                f"Fetch it elsewhere and put it at {target}."
            )
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):
            return
        part.unlink()
        _fetch(url, part)
        return
    with response:
        # a server that ignores Range answers 200 and sends the whole file
        resumed = response.status == 206 and _range_start(response.headers.get("Content-Range")) == have
        if have and not resumed and response.status == 206:
            raise http.client.HTTPException("the server sent another part of the file than was asked for")
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length) + (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
            file.flush()
            received = file.tell()
    if expected is not None and received != expected:
        raise http.client.HTTPException(f"broke off after {received} of {expected} bytes")


def _range_start(content_range: str | None) -> int | None:
    start = (content_range or "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None
