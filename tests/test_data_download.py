from __future__ import annotations

import errno
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_files import write

from o2o_lightning.data.d4rl import D4RL_TASKS, cached_path, load_d4rl
from o2o_lightning.data.hdf5 import file_sha256
from o2o_lightning.errors import UserError

NAME = "hopper-medium-v2"


class Server:
    """One file over HTTP on the loopback; records the Range asked for, and can misbehave."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ranges, self.break_after, self.honour_range = content, [], None, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        start, total = 0, len(self.content)
        if asked and self.honour_range:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            request.send_response(206 if start < total else 416)
            content_range = f"bytes {start}-{total - 1}/{total}" if start < total else f"bytes */{total}"
            request.send_header("Content-Range", content_range)
        else:
            request.send_response(200)
        body = self.content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.break_after])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server(write(tmp_path / "published.hdf5").read_bytes())
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("O2O_D4RL_MIRROR", running.url)
    yield running
    running.close()


def test_a_dataset_is_downloaded_once(server: Server) -> None:
    raw = load_d4rl(f"d4rl:{NAME}")
    again = load_d4rl(f"d4rl:{NAME}")
    assert server.ranges == [None]
    assert raw.sha256 == again.sha256 == file_sha256(cached_path(NAME))
    assert raw.env_id == "Hopper-v4" and raw.source == f"d4rl:{NAME}"
    left = {path.name for path in cached_path(NAME).parent.iterdir()}
    assert left == {f"{NAME}.hdf5", f"{NAME}.hdf5.sha256", f"{NAME}.hdf5.lock"}


def test_a_broken_download_is_resumed_where_it_stopped(server: Server) -> None:
    server.break_after = 1000
    with pytest.raises(UserError, match=r"broke off after 1000 of .* Try again to resume"):
        load_d4rl(f"d4rl:{NAME}")
    assert not cached_path(NAME).exists()
    server.break_after = None
    load_d4rl(f"d4rl:{NAME}")
    assert server.ranges == [None, "bytes=1000-"]
    assert cached_path(NAME).read_bytes() == server.content


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    server.honour_range = False
    part = cached_path(NAME).with_name(f"{NAME}.hdf5.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 500)
    load_d4rl(f"d4rl:{NAME}")
    assert cached_path(NAME).read_bytes() == server.content


@pytest.mark.parametrize("extra", [b"", b"too long"])
def test_a_part_file_that_is_whole_is_used_and_one_too_long_is_not(server: Server, extra: bytes) -> None:
    part = cached_path(NAME).with_name(f"{NAME}.hdf5.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content + extra)
    load_d4rl(f"d4rl:{NAME}")
    assert cached_path(NAME).read_bytes() == server.content


def test_a_login_page_is_no_dataset(server: Server) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(UserError, match="did not send a dataset file"):
        load_d4rl(f"d4rl:{NAME}")
    assert not cached_path(NAME).exists()


def test_a_file_that_changed_since_its_first_download_is_refused(server: Server, tmp_path: Path) -> None:
    load_d4rl(f"d4rl:{NAME}")
    write(cached_path(NAME), rewards=None)
    with pytest.raises(UserError, match=r"its first download had .* Delete .* re-download"):
        load_d4rl(f"d4rl:{NAME}")


def test_an_expected_digest_is_checked(server: Server, tmp_path: Path) -> None:
    digest = file_sha256(tmp_path / "published.hdf5")
    assert load_d4rl(f"d4rl:{NAME}#sha256={digest.upper()}").sha256 == digest
    with pytest.raises(UserError, match="the spec asks for " + "0" * 64):
        load_d4rl(f"d4rl:{NAME}#sha256=" + "0" * 64)
    with pytest.raises(UserError, match="'#md5=1' is not understood"):
        load_d4rl(f"d4rl:{NAME}#md5=1")


def test_offline_the_error_names_the_url_and_where_to_put_the_file(server: Server) -> None:
    server.close()
    path = cached_path(NAME)
    url = f"{server.url}/gym_mujoco_v2/hopper_medium-v2.hdf5"
    with pytest.raises(UserError) as error:
        load_d4rl(f"d4rl:{NAME}")
    assert f"download of {url} failed" in str(error.value) and f"put it at {path}" in str(error.value)
    write(path)
    assert len(load_d4rl(f"d4rl:{NAME}")) == 12


def test_a_mirror_that_is_a_folder_is_told_how_to_be_an_address(server: Server, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("O2O_D4RL_MIRROR", str(tmp_path))
    with pytest.raises(UserError, match=r"is no address. Set the variable O2O_D4RL_MIRROR to .* file://"):
        load_d4rl(f"d4rl:{NAME}")
    published = tmp_path / "gym_mujoco_v2/hopper_medium-v2.hdf5"
    published.parent.mkdir()
    write(published)
    monkeypatch.setenv("O2O_D4RL_MIRROR", f"file://{tmp_path}")
    assert load_d4rl(f"d4rl:{NAME}").sha256 == file_sha256(published)


def test_an_empty_digest_file_is_written_again(server: Server) -> None:
    found = load_d4rl(f"d4rl:{NAME}").sha256
    sidecar = cached_path(NAME).with_name(f"{NAME}.hdf5.sha256")
    sidecar.write_text("")
    assert load_d4rl(f"d4rl:{NAME}").sha256 == found and sidecar.read_text().split()[0] == found


def test_a_dataset_in_a_read_only_cache_is_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    cached_path(NAME).parent.mkdir(parents=True)
    write(cached_path(NAME))
    monkeypatch.setattr(Path, "write_text", refuse)
    assert len(load_d4rl(f"d4rl:{NAME}")) == 12


def test_an_unknown_name_gets_a_suggestion(server: Server) -> None:
    with pytest.raises(UserError, match="Did you mean `d4rl:hopper-medium-v2`"):
        load_d4rl("d4rl:hoper-medium-v2")


def test_a_cache_that_cannot_be_made_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("O2O_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="O2O_CACHE"):
        load_d4rl(f"d4rl:{NAME}")


def test_a_cache_of_a_user_who_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_CACHE", "~no-such-user/x")
    with pytest.raises(UserError, match=r"~no-such-user/x: .* Let the variable O2O_CACHE name a folder"):
        load_d4rl(f"d4rl:{NAME}")


@pytest.mark.parametrize(
    ("name", "path", "env_id"),
    [
        ("walker2d-full-replay-v2", "gym_mujoco_v2/walker2d_full_replay-v2.hdf5", "Walker2d-v4"),
        (
            "antmaze-large-play-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
            "antmaze-large-play-v2",
        ),
        (
            "antmaze-umaze-v2",
            "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
            "antmaze-umaze-v2",
        ),
        (
            "antmaze-medium-diverse-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
            "antmaze-medium-diverse-v2",
        ),
        ("ant-medium-v2", "gym_mujoco_v2/ant_medium-v2.hdf5", None),
        ("maze2d-umaze-v1", "maze2d/maze2d-umaze-sparse-v1.hdf5", None),
        ("maze2d-large-dense-v1", "maze2d/maze2d-large-dense-v1.hdf5", None),
        ("door-cloned-v1", "hand_dapg_v1/door-cloned-v1.hdf5", "AdroitHandDoor-v1"),
        ("kitchen-complete-v0", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5", None),
    ],
)
def test_urls_are_d4rls(name: str, path: str, env_id: str | None) -> None:
    task = D4RL_TASKS[name]
    assert task.url == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{path}" and task.env_id == env_id
