"""The edge of the worker process: whatever a stage raises becomes one of the node's errors.

One of the two places with a broad ``except``; the other is the receiver's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.service import log
from dicom_node.service.retry import OUT_OF_MEMORY

T = TypeVar("T")


def guarded(action: Callable[[], T]) -> T | NodeError:
    """Run an action; return what it returns, or the error that it ended with.

    An exception that is not one of the node's errors is a fault of this program. It is named
    by its class and place; its text could quote a data set.
    """
    try:
        return action()
    except NodeError as error:
        return error
    except MemoryError:
        return Transient(OUT_OF_MEMORY, "the process ran out of memory; give it more")
    except Exception as error:  # noqa: BLE001 - the process edge: one object, not the service
        return Permanent(
            "unexpected",
            f"{type(error).__name__} at {log.place(error)}: a fault of this program; "
            "report it with the UIDs",
        )
