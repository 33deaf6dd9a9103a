"""Turns pydantic's findings into one line that names the field and the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from seqgraph.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


def validate(config: type[C], values: Mapping[str, Any], *, where: str = "") -> C:
    """Check values against a config class.

    Args:
        config: the pydantic class.
        values: its fields.
        where: what to put before the names of fields, "model" say.

    Raises:
        ConfigError: naming each wrong field; its hint has the near matches of an unknown one.
    """
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        raise explain(error, where=where, known=list(config.model_fields)) from error


def explain(error: ValidationError, *, where: str = "", known: list[str] | None = None) -> ConfigError:
    """The ConfigError that says what a ValidationError found."""
    found, hints = [], []
    for item in error.errors(include_url=False):
        path = ".".join([where] * bool(where) + [str(part) for part in item["loc"]])
        if item["type"] == "extra_forbidden":
            found.append(f"{path}: unknown key")
            near = difflib.get_close_matches(str(item["loc"][-1]), known or [], n=2, cutoff=0.5)
            if near:
                hints.append(f"did you mean {' or '.join(near)}?")
            elif known and len(item["loc"]) == 1:
                hints.append(f"{where or 'it'} takes {', '.join(known)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "missing" else f" (got {item['input']!r:.60})"
            found.append(f"{path or error.title}: {message}{given}")
    return ConfigError("; ".join(found), "; ".join(dict.fromkeys(hints)) or None)
