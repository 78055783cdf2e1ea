"""A model hub on this machine, as far as `o2o hub` asks one: huggingface_hub's own client speaks to it over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


@contextmanager
def hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """The address of a hub that holds these repositories, by name and file, and changes them by what is pushed.

    It has no room for repositories of ``full``, and hangs up on who asks for one of ``gone``.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, *rest = self.path.partition("?")[0].strip("/").split("/")
            if kind == "api" and rest[0] == "models":
                name = "/".join(rest[1:3])
                if name.startswith("gone/"):
                    return None
                if name not in repositories:
                    return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
                if rest[3:] and rest[4] not in ("main", COMMIT):
                    return self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
                found = repositories[name].items()
                if rest[3:4] == ["tree"]:
                    tree = [{"type": "file", "path": path, "size": len(held), "oid": oid(held)} for path, held in found]
                    return self.answer(tree)
                siblings = [{"rfilename": path, "size": len(held)} for path, held in found]
                return self.answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            if rest[1:2] == ["resolve"]:
                held = repositories[f"{kind}/{rest[0]}"]["/".join(rest[3:])]
                return self.answer(held, headers={"ETag": f'"{oid(held)}"', "X-Repo-Commit": COMMIT})
            self.answer({}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                name = "{organization}/{name}".format(**json.loads(content))
                if name.startswith("full/"):
                    return self.answer({}, 403, {"X-Error-Message": "Storage quota exceeded"})
                new = name not in repositories
                held = repositories.setdefault(name, {".gitattributes": b""})
                assert json.loads(content)["visibility"] == "private" or not new
                return self.answer({"url": f"{address}/{name}", "id": name}, 200 if held and new else 409)
            name = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                         for file in json.loads(content)["files"]]  # fmt: skip
                return self.answer({"files": files})
            if self.path == "/api/validate-yaml":  # of the card
                return self.answer({"errors": [], "warnings": []})
            assert "/commit/" in self.path, self.path
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/{name}/commit/{COMMIT}"})

        def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def oid(content: bytes) -> str:
    """A file's name in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
