"""The ports that a server listens on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from typing import Literal

from contracts.config import ServerConfig

Setting = Literal["grpc_port", "rest_port"]
_SETTINGS: tuple[Setting, Setting] = ("grpc_port", "rest_port")
_OTHER_FILES = 1000
"""File descriptors for all but connections, such as the files of a version that is being read."""


def address(config: ServerConfig, port: int) -> str:
    """host:port, with an IPv6 host in brackets."""
    return f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"


def allow_connections(config: ServerConfig) -> None:
    """Lets the process have a file descriptor for each connection, as far as the system allows."""
    wanted = len(_SETTINGS) * config.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def require_free(config: ServerConfig) -> None:
    """Raises ValueError if a port is taken, or if both are the same.

    Checked before versions are loaded, which takes long, and memory that the process on the port may need.
    """
    with contextlib.ExitStack() as held:
        for setting in _SETTINGS:
            held.enter_context(bound_socket(config, setting))


def bound_socket(config: ServerConfig, setting: Setting) -> socket.socket:
    """A socket bound to the host and to that setting's port; on `::` it answers IPv4, too, as gRPC does.

    Raises:
        ValueError: the port cannot be bound.
    """
    at = config.host, getattr(config, setting)
    try:
        socket.getaddrinfo(*at)  # says why a name is none; `create_server` turns that into an unknown error
        if ":" in config.host:
            return socket.create_server(at, family=socket.AF_INET6, dualstack_ipv6=socket.has_dualstack_ipv6())
        return socket.create_server(at)
    except socket.gaierror as error:
        raise cannot_listen(config, setting, error.strerror) from None
    except OSError as error:  # whose own text repeats the address, as a tuple
        raise cannot_listen(config, setting, os.strerror(error.errno or 0)) from None


def cannot_listen(config: ServerConfig, setting: Setting, why: str | None) -> ValueError:
    """The error to raise if that setting's port cannot be bound."""
    return ValueError(
        f"cannot listen on {address(config, getattr(config, setting))} ({why}); set server.{setting} to a free port or "
        "server.host to an address of this machine"
    )
