"""Sockets and netlink: thin asyncio adapters around the sans-IO protocol code."""
