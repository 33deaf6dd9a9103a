"""Errors that a user can cure. The command line prints them as one red line and a hint, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input, the configuration or the installation.

    Args:
        message: what is wrong, naming the file and the record.
        hint: what to do about it, as one sentence or a command.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class DataError(UserError):
    """A file or a record that cannot be used."""


class ConfigError(UserError):
    """A configuration that does not validate, or contradicts itself."""


class PluginError(UserError):
    """A plugin, or something that a plugin should provide, cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""
