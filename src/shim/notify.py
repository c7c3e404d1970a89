"""Tells systemd that a service has started (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def notify_ready() -> None:
    """Say that the service is ready, when whoever started it wants to know. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # unix(7), abstract sockets
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.connect(address)
        datagram.send(b"READY=1")
