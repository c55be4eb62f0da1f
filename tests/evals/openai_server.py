"""A real HTTP server on loopback that speaks OpenAI's chat completions, from a model of ours or from a script.

Its log-probabilities come from one plain forward over the prompt, not from the engine, so that an endpoint's letters
are compared with something else than themselves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from chatwright.conversations.converters import convert
from chatwright.inference.engine import Engine
from chatwright.inference.responder import Responder
from chatwright.inference.sampling import SamplingSettings
from chatwright.layouts import SegmentLayout
from chatwright.templates.base import Template

Json = dict[str, Any]


@dataclass
class Script:
    """What a server says: status, headers and body, whatever it is asked; `chat` sees the request's body."""

    chat: Callable[[Json], tuple[int, Json | str | bytes]]
    models: tuple[int, Json | str] = (200, {"object": "list", "data": [{"id": "tiny"}]})
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    seen: list[Json] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The server's address while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.paths.append(self.path)
            self._answer(*script.models)

        def do_POST(self) -> None:
            script.paths.append(self.path)
            script.keys.append(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.seen.append(body)
            self._answer(*script.chat(body))

        def _answer(self, status: int, said: Json | str | bytes) -> None:
            kind = "application/json" if isinstance(said, dict) else "text/html"
            raw = (
                json.dumps(said).encode()
                if isinstance(said, dict)
                else said
                if isinstance(said, bytes)
                else said.encode()
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            for name, value in script.headers.items():
                self.send_header(name, value)
            if script.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for start in range(0, len(raw), 7):
                    piece = raw[start : start + 7]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
                return
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Nothing: tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ModelServer:
    """A model of ours behind OpenAI's words; one request at a time."""

    def __init__(self, engine: Engine, template: Template) -> None:
        self.engine, self.template = engine, template
        self.responder = Responder(engine, template)  # no toolbox: calls are the client's to run
        self.lock = threading.Lock()

    def chat(self, body: Json) -> tuple[int, Json]:
        """The answer to a request."""
        row = {"messages": body["messages"], "tools": body.get("tools")}
        conversation = convert(row, "messages", "request", 0)
        settings = SamplingSettings(
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            seed=body.get("seed", 0),
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        with self.lock:
            (reply,) = self.responder.replies([conversation], settings)
            logprobs = self._logprobs(conversation, body["top_logprobs"]) if body.get("logprobs") else None
        said: Json = {"role": "assistant", "content": reply.message.text or None}
        thinking = [part.text for part in reply.message.parts if part.kind == "thinking"]
        if thinking:
            said["reasoning_content"] = "".join(thinking)
        calls = [part for part in reply.message.parts if part.kind == "tool_call"]
        if calls:
            said["tool_calls"] = [
                {"id": f"c{n}", "type": "function", "function": {"name": part.tool, "arguments": part.text}}
                for n, part in enumerate(calls)
            ]
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.reply_tokens}
        choice = {"index": 0, "message": said, "finish_reason": reply.finish_reason, "logprobs": logprobs}
        return 200, {"object": "chat.completion", "choices": [choice], "usage": usage}

    def _logprobs(self, conversation: Any, count: int) -> Json:
        prompt = self.template.render_prompt(conversation)
        log_probs = next_log_probs(self.engine.model, prompt)
        top = log_probs.topk(count)
        listed = [
            {"token": self.template.tokenizer.decode([index]), "logprob": value}
            for index, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        return {"content": [{**listed[0], "top_logprobs": listed}]}


@torch.inference_mode()
def next_log_probs(model: Any, prompt: list[int]) -> torch.Tensor:
    """float32 `[V]`: the log-probabilities of the token after a prompt, from one plain forward."""
    ids = torch.tensor(prompt)
    layout = SegmentLayout.from_lengths([len(prompt)])
    hidden, _ = model(ids, torch.arange(len(prompt)), layout)
    return torch.log_softmax(model.output_head().logits(hidden[-1:]).float(), dim=-1)[0]
