"""What is said where a port cannot be listened on."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from dicom_node.errors import Permanent

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program uses it, end that or choose another port",
    errno.EACCES: "take a port above 1023 or grant CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "the host has to be an address of this machine",
}


def cannot_listen(keys: str, host: str, port: int, error: OSError) -> Permanent:
    """The error, with the reason and what to do about it.

    Parameters
    ----------
    keys : str
        Of the configuration, such as ``"receive.host, receive.port"``.
    """
    if isinstance(error, socket.gaierror):
        reason, remedy = "no such host", "the host has to be a name or address of this machine"
    else:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        remedy = _REMEDIES.get(error.errno or 0, f"correct {keys}")
    return Permanent(
        "cannot-listen", f"{keys}: cannot listen on {host}:{port} ({reason}); {remedy}"
    )
