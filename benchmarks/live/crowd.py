"""Clients of event streams, as cheap as they can be: raw sockets and epoll; orders on stdin, answers on stdout.

`python -m benchmarks.live.crowd PORT CLIENTS JOB…` connects, each client to the next job, and prints `connected` when
all have their response's head. `start` forgets what came before; `stop` prints how many events came, and how late.
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import sys
import time

SENT = re.compile(rb'"t":(\d+)')
PATIENCE = 90.0


def main() -> None:
    """Until `stop`, or the end of stdin."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, number, jobs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    poll, clients = select.epoll(), {}
    headless = 0
    deadline = time.monotonic() + PATIENCE
    for client in range(number):
        opened = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        opened.sendall(f"GET /jobs/{jobs[client % len(jobs)]}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        opened.settimeout(0)
        clients[opened.fileno()] = opened
        poll.register(opened.fileno(), select.EPOLLIN)
        headless += 1
        if client % 50 == 49:
            headless -= _heads(poll, clients, 0)
    while headless > 0 and time.monotonic() < deadline:
        headless -= _heads(poll, clients, 1)
    print("connected" if headless <= 0 else f"{headless} clients got no answer", flush=True)
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    late: list[int] = []
    while True:
        for fd, _ in poll.poll(1, 4096):
            if fd == sys.stdin.fileno():
                order = sys.stdin.readline().strip()
                if order == "start":
                    late = []
                    continue
                late.sort()
                print(
                    json.dumps(
                        {
                            "deliveries": len(late),
                            "late": [late[len(late) * p // 1000] / 1e6 for p in (500, 990)] if late else [],
                        }
                    ),
                    flush=True,
                )
                return
            try:
                data = clients[fd].recv(262144)
            except BlockingIOError:
                continue
            if not data:
                poll.unregister(fd)
                continue
            now = time.monotonic_ns()
            for sent in SENT.findall(data):
                late.append(now - int(sent))


def _heads(poll: select.epoll, clients: dict[int, socket.socket], wait: float) -> int:
    seen = 0
    for fd, _ in poll.poll(wait, 4096):
        data = clients[fd].recv(262144)
        seen += data.count(b"HTTP/1.1 200")
    return seen


if __name__ == "__main__":
    main()
