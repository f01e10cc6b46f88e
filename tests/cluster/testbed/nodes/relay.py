"""Relay a loopback port of the machine to the same port in a network namespace, so that nothing else is connected.

Run as `python relay.py PORT NAMESPACE TARGET_PORT`: it listens where it is started, and then enters the namespace.
"""

import asyncio
import ctypes
import os
import socket
import sys
from contextlib import suppress

CLONE_NEWNET = 0x40000000
CHUNK = 1 << 18


def main() -> None:
    """Listen, enter the namespace, and relay for ever."""
    port, namespace, target = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    listening = socket.create_server(("127.0.0.1", port))
    # asyncio sets this option only for sockets with protocol TCP, which this socket does not report. Without it, each
    # answer would wait 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    descriptor = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    asyncio.run(_serve(listening, target))


async def _serve(listening: socket.socket, target: int) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, target_writer), _pump(target_reader, writer))

    async with await asyncio.start_server(handle, sock=listening) as server:
        await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


if __name__ == "__main__":
    main()
