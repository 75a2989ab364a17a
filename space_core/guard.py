"""What stands before the page's server: only its own paths, sizes it can bear, clear refusals.

gradio serves more than a page uses: uploads, a proxy, files, recordings, a dashboard. This ASGI
middleware lets through what this page and its API need, bounds each request's body, lets requests
for runs in one after the other (so that a full queue is full for all who come at once) and adds
headers. It knows the protocol and paths; not gradio, not what is asked.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from space_core.errors import SpaceError
from space_core.hosting import report, sorry

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

READ: Final = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte|pwa_icon)(/.*)?"
    r"|/gradio_api/((info|openapi\.json|app_id|startup-events|theme\.css|queue/(data|status))/?"
    r"|(heartbeat|call|mcp)/.*)"
)
"""Paths that may be read."""
JOIN: Final = re.compile(r"/gradio_api/(queue/join|call/.+)/?")
"""Paths that ask for a run."""
POST: Final = re.compile(rf"{JOIN.pattern}|/gradio_api/((run|api)/.+|cancel|reset|mcp/.*)/?")
NAMED: Final = re.compile(r"/gradio_api/(run|api|call(/v2)?)/(?P<name>[^/]+)/?")
FILE_BYTES: Final = 4_000_000
"""Of any request: a trace of a million bytes, as text in JSON."""
MOST_DRAINED: Final = 64_000_000
"""Bytes of a request that are read to answer it politely."""
PATIENCE: Final = 20.0
"""Seconds in which a request's body must have come."""
AT_ONCE: Final = 64
"""Requests with a body that are worked on at one time."""
MAX_SESSION: Final = 64
MAX_FIELDS: Final = 64

HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "strict-origin-when-cross-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
POLICY: Final = (
    # gradio's page runs inline scripts and builds functions from text; nothing comes from or goes to
    # another host, but for what Spaces frames the page with.
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
AT_HOME: Final = "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
"""A local page can train and load: no foreign site may lay it under a visitor's click. A hosted page is
embedded by huggingface.co and by anybody's course, and has nothing that a click could lose."""


class Guard:
    """The middleware.

    Args:
        app: the server behind it.
        hosted: whether strangers open the page.
        body: bytes that a request for a run may have.
        events: the page's, by their numbers; each has an `api_name`.
    """

    def __init__(self, app: App, hosted: bool, body: int, events: Mapping[int, Any]) -> None:
        self.app, self.hosted, self.body, self.events = app, hosted, body, events
        self._joining = asyncio.Lock()
        self._busy = 0
        policy = POLICY if hosted else f"{POLICY}; {AT_HOME}"
        headers = {**HEADERS, "content-security-policy": policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name for name, _ in self._headers}
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in names]
                message["headers"] = [*kept, *self._headers]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        except Refused as refused:
            await _say(answer, refused.status, refused.sentence)
        except Exception as error:
            if started:
                raise
            await _say(answer, 500, sorry(report(error, self.hosted)))

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope["method"]
        path = scope["path"].removeprefix(scope.get("root_path") or "") or "/"
        if method in ("GET", "HEAD", "OPTIONS"):
            if not READ.fullmatch(path):
                raise Refused(404, "There is nothing here: the page is at /, its API at /gradio_api/info.")
            await self.app(scope, receive, send)
            return
        if method == "DELETE" and path.startswith("/gradio_api/mcp/"):  # the end of an MCP session
            await self.app(scope, receive, send)
            return
        if method != "POST" or not POST.fullmatch(path):
            raise Refused(404, "There is nothing here to write to: the API is told at /gradio_api/info.")
        if self._busy >= AT_ONCE:
            raise Refused(503, "The page is busy: try again in a few seconds.")
        self._busy += 1
        try:
            join = JOIN.fullmatch(path) is not None
            body = await _read(scope, receive, self.body if join else FILE_BYTES)
            if not path.startswith("/gradio_api/mcp/"):
                self._find(path, _judge(body))
            again = _replay(body, receive)
            if not join:
                await self.app(scope, again, send)
                return
            # gradio looks whether the queue is full, then validates, then joins it: 40 requests that
            # come together would all find it empty.
            async with self._joining:
                await self.app(scope, again, send)
        finally:
            self._busy -= 1

    def _find(self, path: str, index: int | None) -> None:
        """Raises Refused for an event that there is not."""
        if index is not None:
            if index not in self.events:
                raise Refused(422, f"fn_index {index} is no event of this page: /config lists them.")
        elif (named := NAMED.fullmatch(path)) is not None:
            if named["name"] not in {event.api_name for event in self.events.values()}:
                raise Refused(404, "There is no event of this name: /gradio_api/info lists them.")
        elif path.startswith("/gradio_api/queue/join"):
            raise Refused(422, "fn_index must be a whole number, as /config tells it.")


class Refused(SpaceError):
    """A request that goes no further."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


async def _read(scope: Message, receive: Receive, most: int) -> bytes:
    """A request's body, at most so many bytes, in time.

    A longer one is read on without being kept: a client that is still sending hears no answer.
    """
    told = dict(scope["headers"]).get(b"content-length", b"")
    drained = int(told) if told.isdigit() else 0
    too_long = Refused(413, f"The request has more than the {most:,} bytes that are taken: shorten it.")
    if drained > MOST_DRAINED:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "The request was broken off: send it again.")
                part = message.get("body", b"")
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > MOST_DRAINED:
                    raise too_long
                if message.get("more_body"):
                    continue
                if size > most:
                    raise too_long
                return b"".join(parts)
    except TimeoutError:
        raise Refused(408, f"The request took more than {PATIENCE:.0f} seconds: send it again.") from None


def _judge(body: bytes) -> int | None:
    """What every event's body is, so that nothing behind has to fail over it; returns its fn_index."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The request is no JSON: send an object with its data as a list.") from None
    if not isinstance(told, dict):
        raise Refused(400, "The request must be a JSON object with its data as a list.")
    session, data, event = told.get("session_hash"), told.get("data"), told.get("event_id")
    for name, value in (("session_hash", session), ("event_id", event)):
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_SESSION):
            raise Refused(422, f"{name} must be text of at most {MAX_SESSION} characters.")
    if data is not None and not (isinstance(data, list) and len(data) <= MAX_FIELDS):
        raise Refused(422, f"data must be a list of at most {MAX_FIELDS} values.")
    index = told.get("fn_index")
    if index is not None and type(index) is not int:
        raise Refused(422, "fn_index must be a whole number, as /config tells it.")
    return index


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever else comes."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _say(send: Send, status: int, sentence: str) -> None:
    """gradio's own clients read `detail` and `error`."""
    text = json.dumps({"error": sentence, "detail": sentence}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
