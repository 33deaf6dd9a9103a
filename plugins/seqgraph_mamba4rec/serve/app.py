"""The HTTP service around an :class:`Engine`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from seqgraph.errors import DataError
from seqgraph_mamba4rec.serve.engine import Engine
from seqgraph_mamba4rec.serve.guard import Guard
from seqgraph_mamba4rec.serve.schema import (
    Ask,
    ErrorBody,
    Found,
    Health,
    History,
    Known,
    Listed,
    Lists,
    NewEvent,
    ServiceError,
    Taken,
    User,
)

_SHOWN = 100


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body: bytes of a body.
        history: items of a history that is sent.
        k: length of a list.
    """

    body: int = 1 << 18
    history: int = 2000
    k: int = 1000


def make_app(engine: Engine, *, limits: Limits, hosts: Collection[str] | None = None, token: str | None = None) -> Any:
    """The service as an ASGI application.

    Args:
        engine: started and stopped with the application.
        limits: of requests.
        hosts: see :class:`Guard`.
        token: see :class:`Guard`.
    """
    store = engine.store
    catalogue = store.catalogue
    names = [(row, f"{raw}\n{catalogue.titles.get(raw, '')}".casefold()) for row, raw in enumerate(catalogue.ids)]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.stop()

    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ErrorBody, "description": "The request is at fault"},
        "5XX": {"model": ErrorBody, "description": "The service is at fault, or full"},
    }
    # Pages of documentation load their scripts from elsewhere: /openapi.json is what there is.
    app = FastAPI(
        title="seqgraph serve",
        summary="Lists of items that change with each event",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=errors,
    )
    _add_errors(app)
    page, policy = _page()
    # For the schema alone: the guard has looked at the token before.
    secured = [] if token is None else [Depends(HTTPBearer(auto_error=False))]

    def row_of(item: str | int) -> int:
        try:
            row = catalogue.find(item)
        except DataError as error:
            raise ServiceError("ambiguous_item", error.message, error.hint) from None
        if row is None:
            raise ServiceError("unknown_item", f"item {str(item)!r} was not in the training data", "see /items")
        return row

    def known(row: int) -> Known:
        raw = catalogue.ids[row]
        return Known(item=raw, title=catalogue.titles.get(raw))

    @app.post("/event", dependencies=secured)
    async def event(new: NewEvent) -> Taken:
        """Tell of an event. The answer comes when the event is on the disk: it will not be lost.

        An event without an answer may have been taken or not.
        """
        row = row_of(new.item)
        return Taken(user=new.user, item=catalogue.ids[row], events=await engine.add(new.user, row))

    @app.post("/recommend", dependencies=secured)
    async def recommend(ask: Ask) -> Lists:
        """The best items for a user whose events were sent, or for a history.

        A user's list rests on all of the user's events; a history is read as in training, from its last so many items.
        """
        if (ask.user is None) == (ask.history is None):
            raise ServiceError("invalid_request", "give either a user or a history")
        if ask.k > limits.k:
            raise ServiceError("k_too_large", f"k is {ask.k}; this service gives {limits.k} at most")
        if ask.history is not None and len(ask.history) > limits.history:
            message = f"{len(ask.history)} items; this service reads {limits.history} at most"
            raise ServiceError("history_too_long", message, "send the last ones")
        if ask.history == []:
            raise ServiceError("empty_history", "the history is empty", "give one item at least")
        history = [row_of(item) for item in ask.history or ()]
        found, events = await engine.ask(ask.user, history, ask.k, ask.filter_seen)
        return Lists(items=[Listed(rank=n, **r._asdict()) for n, r in enumerate(found, start=1)], events=events)

    @app.get("/items", dependencies=secured)
    def items(
        search: Annotated[str, Query(max_length=200)] = "", limit: Annotated[int, Query(ge=1, le=200)] = 20
    ) -> Found:
        """Items whose name or id holds a text, in the order of the training data."""
        wanted, found = search.casefold(), []
        for row, text in names:
            if wanted in text:
                found.append(known(row))
                if len(found) == limit:
                    break
        return Found(items=found)

    @app.get("/history", dependencies=secured)
    def history(user: Annotated[User, Query()]) -> History:
        """A user's last events."""
        try:
            (events,) = store.users([user])[1]
        except KeyError:
            raise ServiceError("unknown_user", f"nothing is known of the user {user!r}") from None
        return History(user=user, events=len(events), last=[known(row) for row in reversed(events[-_SHOWN:])])

    @app.get("/health")
    async def health() -> Health:
        """Whether the service works; needs no token."""
        problems: Any = sorted(engine.problems)
        return Health(
            status="degraded" if problems else "ok",
            problems=problems,
            model=type(store.model).__name__,
            weights=store.weights[:12],
            items=len(catalogue.ids),
            users=len(store.rows),
            events=store.events,
        )

    @app.get("/", include_in_schema=False)
    async def demo() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})

    return Guard(app, hosts=hosts, token=token, max_body=limits.body)


def _page() -> tuple[str, str]:
    """The demo and the policy that lets its own script run, and no other."""
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; script-src 'sha256-{digest}'"
    return page, f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _add_errors(app: FastAPI) -> None:
    """Every error has the same shape."""

    def answer(error: ServiceError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(ServiceError)
    async def own(_: Request, error: ServiceError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if any(e["type"] == "json_invalid" for e in found):
            return answer(ServiceError("malformed_json", f"the body is no JSON: {found[0]['ctx']['error']}"))
        said = "; ".join(f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in found[:5])
        return answer(ServiceError("invalid_request", said, "see /openapi.json"))

    @app.exception_handler(HTTPException)
    async def routed(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return answer(ServiceError("not_found", "there is nothing here", "see /openapi.json"))
        if error.status_code == 405:
            return answer(ServiceError("method_not_allowed", "not with this method", "see /openapi.json"))
        return answer(ServiceError("malformed_json", str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(ServiceError("internal", f"{type(error).__name__}; the service's own output says more"))
