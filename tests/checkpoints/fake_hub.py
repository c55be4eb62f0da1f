"""A model hub on this machine: serves one repository the way huggingface_hub asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blob(data: bytes) -> str:
    """The name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def fake_hub(name: str, folder: Path) -> Iterator[str]:
    """Serve the files of `folder` as the repository `name`; yields the address for HF_ENDPOINT."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def answer(self, send_body: bool) -> None:
            path = self.path.partition("?")[0]
            status, headers, body = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": len(files[file]), "oid": blob(files[file])} for file in files
                ]
                body, status, headers = json.dumps(tree).encode(), 200, {"Content-Type": "application/json"}
            elif path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
                status, headers = 200, {"Content-Type": "application/json"}
            elif path.startswith(f"/{name}/resolve/"):
                body = files[path.split("/", 5)[5]]
                status, headers = 200, {"ETag": f'"{blob(body)}"', "X-Repo-Commit": COMMIT}
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
