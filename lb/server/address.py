"""Addresses of servers: taken apart and put together."""

from __future__ import annotations

from lb.core.target import join_host_port, split_host_port

__all__ = ["join_host_port", "split_host_port"]
