"""Sockets that notice when the other side is gone without a word: a host that lost power, a line that drops everything.

Without this, a connection that waits for an answer waits for the system's limits: two hours until the first probe of an
idle connection, a quarter of an hour for data that nobody acknowledges (tcp(7)). A *program* that hangs while its
host's network answers is not noticed here: requests need limits of their own.
"""

from __future__ import annotations

import socket

IDLE_SECONDS = 5
PROBE_SECONDS = 5
PROBES = 2
UNACKNOWLEDGED_SECONDS = 15
"""For how long the other side may acknowledge nothing; the idle time and its probes take as long."""


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel break a TCP connection whose other side has been silent for about fifteen seconds."""
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return  # a socket of this machine breaks with the process behind it
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
