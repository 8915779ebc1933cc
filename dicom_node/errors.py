"""Errors that drive what the node does next; nothing else does.

    NodeError
    |- Refused      not an object the node processes: answer or skip, no retry
    |- Transient    may succeed later: retry with backoff
    |- Permanent    will not succeed by itself: park for the operator
    `- ConfigError  the configuration is wrong: say which key and stop

Every message names the thing and the remedy and holds no patient data: UIDs, tags, AE titles
and sizes only, never a value of a patient module attribute.
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of the node's errors.

    Parameters
    ----------
    code : str
        A short, stable, lower-case name for the cause, such as ``"pixel-data-truncated"``.
    message : str
        One sentence: what is wrong and what to do. No patient data.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Refused(NodeError):
    """The object is not one that the node processes."""


class Transient(NodeError):
    """The cause lies outside the object and may pass."""


class Permanent(NodeError):
    """The object or the set-up has to change before this can succeed."""


class ConfigError(NodeError):
    """The configuration is unusable; the message names the key, its value and the remedy."""
