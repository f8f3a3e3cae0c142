"""Clients of event streams, as cheap as they can be: raw sockets and epoll; orders on stdin, answers on stdout.

`python -m benchmarks.live.crowd PORT CLIENTS JOB…` connects, each client to the next job, and prints `connected` when
all have their response's head. `start` forgets what came before; `stop` prints how many events came, how late, and how
many streams the server has ended since the first connect. A client whose stream was ended comes back a second later.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import sys
import time
from collections import deque

SENT = re.compile(rb'"t":(\d+)')
PATIENCE = 90.0
BACK_SECONDS = 1.0


class Crowd:
    """The clients."""

    def __init__(self, port: int, jobs: list[str]) -> None:
        self._port = port
        self._jobs = jobs
        self._poll = select.epoll()
        self._clients: dict[int, tuple[socket.socket, str]] = {}
        self._gone: deque[tuple[float, str]] = deque()
        self.headless = 0
        self.ended = 0
        self.late: list[int] = []

    def connect_all(self, number: int) -> None:
        """Connect, and read some of the heads in between."""
        for client in range(number):
            self._connect(self._jobs[client % len(self._jobs)])
            if client % 50 == 49:
                self.read(0)

    def listen(self, fd: int) -> None:
        """`read` returns True when there is something to read there, too."""
        self._poll.register(fd, select.EPOLLIN)

    def read(self, wait: float) -> bool:
        """Take what has come within some seconds."""
        other = False
        while self._gone and self._gone[0][0] <= time.monotonic():
            self._connect(self._gone.popleft()[1])
        for fd, _ in self._poll.poll(wait, 4096):
            if fd not in self._clients:
                other = True
                continue
            client, job = self._clients[fd]
            try:
                data = client.recv(262144)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                self._poll.unregister(fd)
                client.close()
                del self._clients[fd]
                self.ended += 1
                self._gone.append((time.monotonic() + BACK_SECONDS, job))
                continue
            if data.startswith(b"HTTP/1.1 200"):
                self.headless -= 1
            now = time.monotonic_ns()
            self.late += [now - int(sent) for sent in SENT.findall(data)]
        return other

    def _connect(self, job: str) -> None:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        client.sendall(f"GET /jobs/{job}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.settimeout(0)
        self._clients[client.fileno()] = client, job
        self._poll.register(client.fileno(), select.EPOLLIN)
        self.headless += 1


def main() -> None:
    """Until `stop`, or the end of stdin."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(int(sys.argv[1]), sys.argv[3:])
    deadline = time.monotonic() + PATIENCE
    crowd.connect_all(int(sys.argv[2]))
    while crowd.headless > 0 and time.monotonic() < deadline:
        crowd.read(0.1)
    print("connected" if crowd.headless <= 0 else f"{crowd.headless} clients got no answer", flush=True)
    crowd.listen(sys.stdin.fileno())
    while True:
        if not crowd.read(1):
            continue
        if sys.stdin.readline().strip() == "start":
            crowd.late.clear()
            continue
        late = sorted(crowd.late)
        answer = {
            "deliveries": len(late),
            "late": [late[len(late) * p // 1000] / 1e6 for p in (500, 990)] if late else [],
            "ended": crowd.ended,
        }
        print(json.dumps(answer), flush=True)
        return


if __name__ == "__main__":
    main()
