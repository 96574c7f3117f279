"""What `make lab` adds to JupyterLab: its server sends every message at once.

A server of Jupyter's leaves Nagle's algorithm on: it holds a small message back until
the browser has acknowledged the one before, which may take 40 ms. A kernel says "busy"
before it answers, so a picture that follows the pointer lags by two or three frames.
"""

import os

from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection,
)


class AtOnce(ZMQChannelsWebsocketConnection):
    """The usual line between a kernel and the browser, without Nagle's algorithm.

    For the server's setting `ServerApp.kernel_websocket_connection_class`.
    """

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return super().connect()


os.environ["GENLIB_AT_ONCE"] = "1"  # kernels inherit it; their widgets then rely on it
