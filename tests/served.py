"""A server in a thread, for the length of a `with` block."""

import threading
from contextlib import contextmanager


@contextmanager
def in_thread(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
        assert not thread.is_alive()
