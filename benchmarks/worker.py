"""A worker process of one system: `python -m benchmarks.worker REFERENCE --url URL --slots N`.

It says `ready` and waits at the gate for `go`, so that imports are not measured and workers begin together. Then
`marks` asks for what its jobs have noted, and `stop` ends it; so does the end of its stdin, whoever let go of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading

from benchmarks.marks import MARKS
from benchmarks.sampler import Sampler
from benchmarks.system import load_system


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("--url", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--samples", help="write a profile of the main thread to this file")
    options = parser.parse_args()
    system = load_system(options.system, options.url)
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return
    threading.Thread(target=_obey, args=[options.samples is not None], daemon=True).start()
    with Sampler(options.samples) if options.samples else contextlib.nullcontext():
        system.run_worker(options.slots)


def _obey(gently: bool) -> None:
    for line in sys.stdin:
        if line == "marks\n":
            print(json.dumps(MARKS.take()), flush=True)
        elif line == "stop\n" and gently:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            break
    if not gently:
        os._exit(0)  # how long a library takes to shut down is not measured


if __name__ == "__main__":
    main()
