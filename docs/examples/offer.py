"""Serve a disk to a client that may write, and keep it as it is: offer.py IMAGE SOCKET.

The client gets a view of its own, which is gone when it goes.
"""

import sys

import tapcore

image, path = sys.argv[1:]
server = tapcore.nbd_server(
    [image], tapcore.UnixAddress(path), parents="any", overlay=tapcore.Overlay()
)
server.stop_on_signals()
for uri in server.uris():
    print(uri, flush=True)
server.run()  # until SIGTERM, SIGINT or SIGHUP
