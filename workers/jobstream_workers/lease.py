"""The lease keeper: a thread that renews the leases of all running jobs, whatever the event loop is doing.

From a thread, because a job that blocks the event loop would lose its lease to a worker that renews from there; with a
connection of its own, because redis-py's asyncio clients belong to the loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self, cast

from jobstream import keys
from jobstream.redis import RedisSource, is_unavailable
from jobstream.scripts import Script
from jobstream_workers.claim import ClaimedJob

logger = logging.getLogger("jobstream.lease")

Verdict = Literal["lost", "cancel"]

_renew = Script("renew")


class LeaseKeeper:
    """Renews what it holds every third of the lease, and tells of jobs that were lost or are to be cancelled.

    `on_verdict(job id, token, verdict)` is called in the keeper's thread.
    """

    def __init__(self, source: RedisSource, *, lease: float, on_verdict: Callable[[str, str, Verdict], None]) -> None:
        self._source = source
        self._lease = lease
        self._on_verdict = on_verdict
        self._held: dict[str, ClaimedJob] = {}  # changed by the event loop's thread alone, copied at once by ours
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="jobstream-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def hold(self, job: ClaimedJob) -> None:
        """Renew this job's lease from now on."""
        self._held[job.id] = job

    def drop(self, job: ClaimedJob) -> None:
        """Renew it no longer."""
        if self._held.get(job.id) is job:
            del self._held[job.id]

    def _keep(self) -> None:
        client = self._source.sync_client()
        try:
            while not self._stop.wait(self._lease / 3):
                held = list(self._held.copy().values())
                if not held:
                    continue
                arguments = [part for job in held for part in (job.id, job.token, keys.queue(job.queue))]
                try:
                    answer: list[bytes] = _renew.call_sync(client, args=[round(self._lease * 1000), *arguments])
                except Exception as error:
                    # Whatever it was: a thread that ends here would lose every lease of this worker.
                    client.close()  # a primary that has become a replica keeps its connections: the next one is new
                    if is_unavailable(error):
                        logger.warning("leases not renewed: %s", type(error).__name__)
                    else:
                        logger.exception("leases not renewed")
                    continue
                tokens = {job.id: job.token for job in held}
                for job_id, verdict in zip(answer[::2], answer[1::2], strict=True):
                    name = job_id.decode()
                    self._on_verdict(name, tokens[name], cast("Verdict", verdict.decode()))
        finally:
            client.close()
