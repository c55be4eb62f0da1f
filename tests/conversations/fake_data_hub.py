"""A data-set hub on this machine: serves one data set the way `datasets` and huggingface_hub ask for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _tree(files: Mapping[str, bytes], folder: str) -> list[dict[str, object]]:
    """What stands in a folder, one level deep."""
    inside = {path: path.removeprefix(f"{folder}/" if folder else "") for path in files if path.startswith(folder)}
    folders = {rest.partition("/")[0] for rest in inside.values() if "/" in rest}
    prefix = f"{folder}/" if folder else ""
    return [
        *(_entry(path, files[path]) for path, rest in inside.items() if "/" not in rest),
        *({"type": "directory", "path": prefix + name, "oid": "0" * 40} for name in sorted(folders)),
    ]


@contextmanager
def fake_data_hub(name: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve `files` as the data set `name`; yields the address for HF_ENDPOINT and the list of requests so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def answer(self, send_body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            path = unquote(self.path.partition("?")[0])
            status, headers, body = 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            if path.startswith(f"/api/datasets/{name}/tree/"):
                folder = path.removeprefix(f"/api/datasets/{name}/tree/").partition("/")[2]
                body, status, headers = json.dumps(_tree(files, folder)).encode(), 200, {}
            elif path.startswith(f"/api/datasets/{name}"):
                facts = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                body, status, headers = json.dumps(facts).encode(), 200, {}
            elif path.startswith("/api/datasets/"):
                headers = {"X-Error-Code": "RepoNotFound"}
            elif path.startswith(f"/datasets/{name}/resolve/") and path.split("/", 6)[6] in files:
                body = files[path.split("/", 6)[6]]
                status, headers = 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
                wanted = self.headers.get("Range", "").removeprefix("bytes=")
                if wanted:
                    first, last = int(wanted.split("-")[0]), int(wanted.split("-")[1] or len(body) - 1)
                    headers["Content-Range"] = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}"
                    body, status = body[first : last + 1], 206
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
