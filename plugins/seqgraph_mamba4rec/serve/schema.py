"""What the service takes and gives, and how it says no."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Code = Literal[
    "malformed_json",
    "invalid_request",
    "unknown_item",
    "ambiguous_item",
    "unknown_user",
    "empty_history",
    "history_too_long",
    "k_too_large",
    "body_too_large",
    "body_too_slow",
    "wrong_token",
    "wrong_host",
    "not_found",
    "method_not_allowed",
    "overloaded",
    "users_full",
    "log_failed",
    "internal",
]

_STATUS: dict[str, int] = {
    "malformed_json": 400,
    "wrong_host": 400,
    "wrong_token": 401,
    "unknown_user": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "body_too_large": 413,
    "internal": 500,
    "overloaded": 503,
    "log_failed": 503,
    "users_full": 507,
}

User = Annotated[str, StringConstraints(min_length=1, max_length=128), Field(description="any name of yours")]
# A number is taken for its digits; true is no number.
Item = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=512)] | Annotated[int, Field(strict=True)],
    Field(description="an item's id in the training data, or its name"),
]


class ServiceError(Exception):
    """An answer that is not the one that was wanted; any code without a status of its own is a 422."""

    def __init__(self, code: Code, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint
        self.status = _STATUS.get(code, 422)

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewEvent(_Strict):
    """A user met an item."""

    user: User
    item: Item


class Taken(BaseModel):
    """The event is on the disk, and every later list knows of it."""

    user: str
    item: str = Field(description="the item's id")
    events: int = Field(description="how many events the user has now")


class Ask(_Strict):
    """Whose list, and how long; either a user or a history."""

    user: User | None = Field(None, description="someone whose events were sent here")
    history: list[Item] | None = Field(None, description="items in time order, oldest first; nothing is kept of it")
    k: int = Field(10, ge=1, strict=True, description="length of the list; it is shorter where fewer items are left")
    filter_seen: bool = Field(True, description="leave out the items of the user's history")


class Listed(BaseModel):
    """One line of a list."""

    rank: int
    item: str
    score: float
    title: str | None


class Lists(BaseModel):
    """The best items, best first."""

    items: list[Listed]
    events: int = Field(description="how many events the list rests on")


class Known(BaseModel):
    """An item."""

    item: str
    title: str | None


class Found(BaseModel):
    """Items whose name or id holds a text."""

    items: list[Known]


class History(BaseModel):
    """A user's events."""

    user: str
    events: int
    last: list[Known] = Field(description="the last items, newest first, 100 at most")


class Health(BaseModel):
    """Whether the service works. "degraded": lists are given, but events or snapshots cannot be written."""

    status: Literal["ok", "degraded"]
    problems: list[Literal["log_failed", "snapshot_failed"]]
    model: str
    weights: str = Field(description="the first digits of the fingerprint of the model")
    items: int
    users: int
    events: int


class ErrorDetail(BaseModel):
    """What is wrong and, where there is one, the cure."""

    code: Code
    message: str
    hint: str | None


class ErrorBody(BaseModel):
    """Every answer that is not a 200."""

    error: ErrorDetail
