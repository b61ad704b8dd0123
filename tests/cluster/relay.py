# SPDX-License-Identifier: Apache-2.0
"""A TCP relay from this machine's loopback into a host of the cluster: NETNS ADDRESS PORT.

Prints the port that it listens on. Listens on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from dataplane.kernel import netns


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _serve(where: Path, address: str, port: int) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A socket belongs to the namespace that it was made in.
        inside = netns.run_in(where, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        inside.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(inside, (address, port))
        except OSError:
            inside.close()
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=inside)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path("/run/netns") / sys.argv[1], sys.argv[2], int(sys.argv[3])))
