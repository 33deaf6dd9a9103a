"""What every request must pass before anything reads it: host, token, size of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from seqgraph_mamba4rec.serve.schema import ServiceError

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# What may be read without the token: the page itself, whether the service lives, and what it takes.
_OPEN = {"/", "/health", "/openapi.json"}
_SECONDS = 10.0


class Guard:
    """An ASGI application around another one.

    Args:
        app: what is guarded.
        hosts: names that the Host header may have, in lower case, without a port; None for any. Without this a web
            page elsewhere could have its own name point at this machine, and read from the service.
        token: what ``Authorization: Bearer`` must hold; None for no such thing.
        max_body: bytes of a request's body.
    """

    def __init__(self, app: Any, *, hosts: Collection[str] | None, token: str | None, max_body: int) -> None:
        self.app, self.hosts, self.max_body = app, hosts, max_body
        self.token = None if token is None else b"Bearer " + token.encode()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Hand a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
            body = await asyncio.wait_for(self._body(headers, receive), _SECONDS)
        except ServiceError as error:
            await _refuse(error, send)
            return
        except TimeoutError:
            await _refuse(ServiceError("body_too_slow", f"the body did not come within {_SECONDS:g} seconds"), send)
            return
        if body is None:
            return
        given = False

        async def again() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.hosts is not None and name not in self.hosts:
            raise ServiceError("wrong_host", f"this service is not called {host!r}", "start it with --allow-host NAME")
        given = headers.get(b"authorization", b"")
        if self.token is not None and path not in _OPEN and not hmac.compare_digest(given, self.token):
            raise ServiceError("wrong_token", "the token is missing or wrong", "send Authorization: Bearer TOKEN")

    async def _body(self, headers: dict[bytes, bytes], receive: _Receive) -> bytes | None:
        """The whole body; None when the client went away."""
        too_large = ServiceError("body_too_large", f"the body is larger than {self.max_body:,} bytes")
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.max_body:
            raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)


async def _refuse(error: ServiceError, send: _Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):  # what is left of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
