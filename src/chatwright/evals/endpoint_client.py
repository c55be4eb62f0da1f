"""One OpenAI-compatible server: where it is, how it is asked, and what its refusals mean in words.

Knows JSON over HTTP; knows nothing of conversations. The key travels in one header and nowhere else: it is not in the
identity, not in an error, not in a `repr`, and it never follows a redirect.
"""

from __future__ import annotations

import difflib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from chatwright.console import duration, note
from chatwright.errors import UserError

Json = dict[str, Any]

LONGEST_WAIT = 60.0
"""Seconds that a failed request waits at most before it is sent again, unless the server asks for more."""
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses that may be gone in a moment: overload, rate limits, a server that starts."""
_SHOWN = 300


class Refused(Exception):
    """The server understood a request and won't do it (400, 413, 422): the caller may know another way.

    Args:
        status: HTTP's. text: the server's own words.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is reported instead."""

    def redirect_request(self, *_: Any) -> None:
        return None


def base_url(url: str) -> str:
    """The address below which `/chat/completions` lies: `http://host:8000/` → `http://host:8000/v1`.

    A URL with a path keeps it (`https://host/api/v1`), but for the name of a route at its end.

    Raises:
        UserError: it is no http(s) URL, or holds a password or a query.
    """
    parts = urlsplit(url.strip())
    place = "--endpoint"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} is no web address", place=place, hint="give one such as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        hint = "leave it out, and name an environment variable that holds the key: --endpoint-key NAME"
        raise UserError("the address holds a user name or password", place=place, hint=hint)
    if parts.query or parts.fragment:
        raise UserError(f"{url!r} has a query or fragment", place=place, hint="give the address up to /v1 only")
    path = re.sub(r"/(chat/completions|completions|models)$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def checked_key(key: str | None, name: str) -> str | None:
    """The key without blanks around it, or None where there is none.

    Raises:
        UserError: it holds what no HTTP header can; the key itself isn't shown.
    """
    key = (key or "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("holds characters that no key has", place=f"${name}", hint="copy the key again")
    return key


@dataclass
class EndpointClient:
    """Asks one server, again where that helps.

    Args:
        url: as the user typed it.
        key: for `Authorization: Bearer`, or None.
        timeout: seconds that one answer may take.
        retries: how often a request is sent again after an overload, a rate limit or a broken connection.
        first_wait: seconds before the first of them; each further wait is twice as long, up to `LONGEST_WAIT`.
        sleep: waits so many seconds; tests give their own.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    retries: int = 6
    first_wait: float = 0.5
    sleep: Callable[[float], None] = time.sleep
    key_name: str = "OPENAI_API_KEY"
    _resume_at: float = field(default=0.0, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.base = base_url(self.url)
        self._opener = build_opener(_NoRedirect)

    def chat(self, body: Mapping[str, Any]) -> Json:
        """The answer to one `/chat/completions` request.

        Raises:
            Refused: the server won't do this request.
            UserError: it can't be reached, doesn't know the model or the key, keeps failing, or speaks no JSON.
        """
        return self._ask("/chat/completions", body, self.retries)

    def models(self, retries: int | None = None) -> list[str] | None:
        """The names of the models that the server has; None where it doesn't tell.

        Raises:
            UserError: as `chat`.
        """
        try:
            answer = self._ask("/models", None, self.retries if retries is None else retries)
        except Refused:
            return None
        listed = answer.get("data")
        if not isinstance(listed, list):
            return None
        return [str(item["id"]) for item in listed if isinstance(item, Mapping) and "id" in item]

    def _ask(self, route: str, body: Mapping[str, Any] | None, retries: int) -> Json:
        for attempt in range(retries + 1):
            self._wait_for_all()
            try:
                return self._once(route, body)
            except HTTPError as error:
                reason, asked = self._failed(error, route, body), _asked_wait(error.headers.get("Retry-After"))
            except (URLError, HTTPException, OSError) as error:
                reason, asked = str(getattr(error, "reason", error)) or type(error).__name__, None
            if attempt == retries:
                self._give_up(reason, retries)
            wait = min(LONGEST_WAIT, self.first_wait * 2**attempt) * random.uniform(0.5, 1.0)
            self._hold(asked)
            self.sleep(max(wait, asked or 0.0))
        raise AssertionError("the last attempt returns or raises")

    def _hold(self, asked: float | None) -> None:
        """Keep every request back for as long as the server has asked for quiet: a rate limit holds for all."""
        if asked is None:
            return
        until = time.monotonic() + asked
        with self._lock:
            news = until > self._resume_at + LONGEST_WAIT
            self._resume_at = max(self._resume_at, until)
        if news:
            note(f"{self.base} asks for a pause of {duration(asked)}")

    def _wait_for_all(self) -> None:
        """Hold a request back while the server has asked for quiet."""
        with self._lock:
            rest = self._resume_at - time.monotonic()
        if rest > 0:
            self.sleep(rest)

    def _once(self, route: str, body: Mapping[str, Any] | None) -> Json:
        headers = {"Accept": "application/json", "User-Agent": "chatwright"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, ensure_ascii=True).encode()
        request = Request(self.base + route, data=data, headers=headers)
        with self._opener.open(request, timeout=self.timeout) as answer:
            kind = answer.headers.get("Content-Type", "nothing named")
            raw = answer.read()
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            self._not_the_api(f"answered {kind}, not JSON: {self._shown(raw)!r}", route)
        if not isinstance(found, dict):
            self._not_the_api(f"answered JSON that is no object: {self._shown(raw)!r}", route)
        if found.get("error") and "choices" not in found:  # a gateway that hides its upstream's failure in a 200
            raise HTTPException(self._shown(_message(raw)))
        return found

    def _not_the_api(self, message: str, route: str) -> NoReturn:
        hint = "check the address: it usually ends in /v1"
        raise UserError(message, place=self.base + route, hint=hint)

    def _failed(self, error: HTTPError, route: str, body: Mapping[str, Any] | None) -> str:
        """What went wrong, in words, where the request may be sent again.

        Raises:
            Refused, UserError: where it may not.
        """
        text = self._shown(_message(error.read()))
        place = self.base + route
        if error.code in (401, 403):
            said = "sent no key" if self.key is None else f"the key in ${self.key_name} was not accepted"
            hint = f"put the server's key into ${self.key_name}, or name another variable: --endpoint-key NAME"
            raise UserError(f"{said} (HTTP {error.code}: {text})", place=place, hint=hint)
        if error.code in (404, 405) and body is not None:
            self._not_found(str(body.get("model")), text, place)
        if 300 <= error.code < 400:
            hint = f"give the address that it names: {error.headers.get('Location', 'none named')}"
            raise UserError(f"has moved (HTTP {error.code})", place=place, hint=hint)
        if error.code not in _AGAIN:
            raise Refused(error.code, text)
        return f"HTTP {error.code}: {text}"

    def _not_found(self, model: str, text: str, place: str) -> NoReturn:
        """Whether the model or the whole API isn't there."""
        known = self.models(retries=0)
        if known is None:
            self._not_the_api(f"isn't there (HTTP 404: {text})", place.removeprefix(self.base))
        if model in known:
            raise UserError(f"the server has {model!r}, but not for chat: {text}", place=place)
        raise self.unknown_model(model, known)

    def unknown_model(self, model: str, known: list[str]) -> UserError:
        """The error for a model that isn't among those the server names."""
        near = difflib.get_close_matches(model, known, n=1)
        listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        hint = f"did you mean {near[0]}? It has: {listed}" if near else f"it has: {listed or 'none'}"
        return UserError(f"has no model {model!r}", place=self.base, hint=f"--endpoint-model: {hint}")

    def _give_up(self, reason: str, retries: int) -> NoReturn:
        tries = "" if retries == 0 else f" (tried {retries + 1} times)"
        if reason.startswith("HTTP"):
            hint = "lower --concurrency, or go on later: finished examples are kept"
        else:
            hint = "is the server running, and is this its address? Finished examples are kept"
        raise UserError(f"no answer: {reason}{tries}", place=self.base, hint=hint)

    def _shown(self, raw: bytes | str) -> str:
        """The beginning of what a server said, on one line, without the key."""
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _message(raw: bytes) -> str:
    """The server's words: OpenAI's `{"error": {"message": …}}`, vLLM's `{"message": …}`, FastAPI's `{"detail": …}`."""
    text = raw.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def _asked_wait(header: str | None) -> float | None:
    """The seconds of a `Retry-After` header: a number, or a date (RFC 9110, section 10.2.3)."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
