"""Queue, the client side: submit, get, list, cancel, retry, purge. Every change is one script, stored when answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any, NamedTuple, Self, cast

import msgspec
from redis.asyncio import Redis

from jobstream import keys, store
from jobstream.caller import TENANT
from jobstream.errors import (
    CancelledByClient,
    FieldError,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidParameter,
    JobConflict,
    JobGone,
    JobNotFound,
    OverQuota,
    PayloadTooLarge,
    QueueFull,
    RedisUnavailable,
)
from jobstream.idempotency import scoped
from jobstream.job import (
    DEFAULT_QUEUE,
    DEFAULT_TTL,
    QUEUE_NAME,
    RESERVED_QUEUES,
    Job,
    JobStatus,
    Record,
    child_id,
    job_from_record,
    job_ids,
    new_job_id,
    pairs,
)
from jobstream.limits import NO_SUBMIT_LIMITS, SubmitLimits
from jobstream.problem import job_problem
from jobstream.quota import Quota
from jobstream.scripts import Argument, Script
from jobstream.search import WORDS_MAX, words_of
from jobstream.serialize import serialize
from jobstream.spill import Spill
from jobstream.store import JobFilter
from jobstream.traces import Carrier, current
from jobstream.webhooks.target import wrong_target

LIVE_SECONDS = 7 * 86_400.0
"""How long a job may wait for a worker, from the time when it is due, before its record expires."""

PATIENCE_SECONDS = 2.0
"""A submit that Redis executes later than this after it was sent is refused: its caller was told that it failed."""

_TTL_MIN_MS = 100
"""A record outlives the script that ends its job, and so the answer that is made from it."""

MAX_SECONDS = 366 * 86_400.0
TAG = re.compile(r"[\w.:/@+-]{1,64}\Z", re.ASCII)
TAGS_MAX = 20
PRIORITY_MAX = 100
CHILDREN_MAX = 10_000
"""Jobs that may descend from one."""
LEVELS_MAX = 5
"""Jobs that may be above one another."""
AFTER_MAX = 1_000
"""Jobs that one job may run after; all jobs of a batch together name `BATCH_JOBS` at most."""
_NO_TIME_MS = round(MAX_SECONDS * 1000)
"""The delay under which a job that waits for others is stored; see after.lua."""
_JOB_ID = re.compile(r"[!-~]{1,128}\Z")

QUEUE_FULL_SECONDS = 5
"""When a full queue is worth another try, as long as nobody knows how fast it is cleared."""
QUEUE_FULL_MAX_SECONDS = 60

BATCH_JOBS = 10_000
"""Jobs that one batch may have: one script stores them, and Redis serves nobody else meanwhile."""
BATCH_BYTES = 32 << 20
"""What their inputs may have together."""
BATCH_SECONDS = 10.0
"""What a batch is given: on a quiet machine the largest one takes Redis half a second."""
_SLICE = 250
"""Jobs after which others get a turn of the event loop."""

ALL_JOBS = JobFilter()

_submit = Script("submit", uses=["turns", "admit", "store"])
_look = Script("look", uses=["turns", "admit"])
_submit_many = Script("submit_many", uses=["turns", "admit", "store"])
_submit_after = Script("submit_after", uses=["turns", "admit", "store", "submit", "after"])
_submit_child = Script("submit_child", uses=["turns", "admit", "store", "submit"])
_submit_batch = Script("submit_batch", uses=["turns", "admit", "store", "submit_many", "after"])
_cancel = Script("cancel", uses=["turns", "after", "stop"])
_rerun = Script("rerun", uses=["turns", "after"])

CANCELLED = msgspec.json.encode(job_problem(CancelledByClient("cancelled by client"), attempt=0))


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """How a job is to be run. None leaves the choice to the task. Times are in seconds."""

    queue: str | None = None
    delay: float = 0.0
    run_at: datetime | None = None
    timeout: float | None = None
    ttl: float | None = None
    priority: int = 0
    """0 to 100: a higher one runs first, whenever it was submitted. None is below 0, where arq's scores are not due."""
    tags: Sequence[str] = ()
    after: Sequence[str | int] = ()
    """Ids of jobs, or batches, of the same owner: the job runs when these have succeeded, and ends without having run
    as soon as one has not. In a batch also numbers: of its jobs that come before this one, the first is 0."""
    callback_url: str | None = None
    """Told of the job's end; whether it leads where webhooks may go is for who takes it from a client to find out."""
    internal: bool = False
    """It is the service's own job, which may wait in a queue that others cannot name."""

    def check(self) -> None:
        """Raises InvalidParameter for a value that makes no sense; its one error names the option."""
        reserved = () if self.internal else RESERVED_QUEUES
        if self.queue is not None and (not QUEUE_NAME.match(self.queue) or self.queue in reserved):
            raise _wrong("queue", f"{self.queue!r} cannot be a queue's name")
        if not 0 <= self.delay <= MAX_SECONDS:
            raise _wrong("delay", "delay is a number of seconds from 0 to a year")
        if self.delay and self.run_at is not None:
            raise _wrong("run_at", "give delay or run_at, not both")
        if self.run_at is not None:
            if self.run_at.tzinfo is None:
                raise _wrong("run_at", "run_at needs a UTC offset, as RFC 3339 has it: 2026-11-21T06:40:00Z")
            if self.run_at.timestamp() > datetime.now(self.run_at.tzinfo).timestamp() + MAX_SECONDS:
                raise _wrong("run_at", "run_at may be at most a year away")
        for name, value in (("timeout", self.timeout), ("ttl", self.ttl)):
            if value is not None and not 0 < value <= MAX_SECONDS:
                raise _wrong(name, f"{name} is a number of seconds above 0 and up to a year")
        if not 0 <= self.priority <= PRIORITY_MAX:
            raise _wrong("priority", f"priority is a whole number from 0 to {PRIORITY_MAX}")
        if len(self.tags) > TAGS_MAX or not all(TAG.match(tag) for tag in self.tags):
            raise _wrong(
                "tags", f"tags are up to {TAGS_MAX} words of 1 to 64 letters, digits and the signs _ . : / @ + -"
            )
        if len(self.after) > AFTER_MAX or not all(isinstance(one, int) or _JOB_ID.match(one) for one in self.after):
            raise _wrong("after", f"after names up to {AFTER_MAX:,} jobs by their ids")
        if self.callback_url is not None and (why := wrong_target(self.callback_url)) is not None:
            raise _wrong("callback_url", why)


def _wrong(option: str, why: str) -> InvalidParameter:
    return InvalidParameter(why, errors=[FieldError(pointer=f"/{option}", detail=why)])


_DEFAULTS = SubmitOptions()


@dataclass(frozen=True)
class Submission:
    """One job to be: what `Queue.submit` takes."""

    task: str
    data: dict[str, Any]
    options: SubmitOptions = _DEFAULTS
    default_queue: str = DEFAULT_QUEUE
    default_ttl: float = DEFAULT_TTL
    max_attempts: int = 1
    job_id: str | None = None
    owner: str | None = None
    files: Sequence[Mapping[str, Any]] = ()
    """The uploads that the input names: they can be downloaded while the record lives."""
    trace: Carrier | None = None
    """To which trace it belongs; without it, that which is current where it is submitted."""


@dataclass(frozen=True)
class Outcome:
    """What a cancel or purge found: the job as it was left, and whether it goes on to its end (`stopping`)."""

    job: Job
    stopping: bool
    was_done: bool


class Parent(NamedTuple):
    """A running job that submits others."""

    job_id: str
    root: str
    """The job from which it descends itself, or its own id."""
    depth: int
    """How many are above it."""
    ttl_ms: int

    @property
    def batch_id(self) -> str:
        """The batch that its children are."""
        return child_id(self.job_id, "children")

    def fields(self) -> list[tuple[str, str | int]]:
        """What a child's record says of it."""
        return [("parent", self.job_id), ("batch", self.batch_id), ("root", self.root), ("depth", self.depth + 1)]


class StoredBatch(NamedTuple):
    """The id of a batch, and those of its jobs, in order."""

    batch_id: str
    job_ids: Sequence[str]


class Queue:
    """Jobs in Redis, seen from whoever wants work done. Holds a client; owns nothing else.

    `owner`: the tenant that a job belongs to. Who gives one sees and touches the jobs of that owner only; those of
    others are answered for as if there were none. None sees all.
    Submits are held to `limits`, and to what was set for single owners (jobstream.limits): they raise QueueFull, and
    OverQuota, or PayloadTooLarge for a batch that no waiting would help.
    Errors of Redis pass through: `jobstream.redis.is_unavailable` tells which of them will pass.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "",
        words: int = WORDS_MAX,
        limits: SubmitLimits = NO_SUBMIT_LIMITS,
        on_stored: Callable[[str], None] = lambda task: None,
        spill: Spill | None = None,
    ) -> None:
        """`prefix` goes before the links of jobs; `words`: how many of its input a job is found by.

        `spill`: where inputs go that are too large for Redis.

        `on_stored` is told the task of each job that a submit has stored.
        """
        self.client = client
        self._on_stored = on_stored
        self._limits = limits
        self._limits_word = limits.encode()
        self._words = words
        self._prefix = prefix
        self._clock = _RedisClock()
        self._spill = spill

    async def submit(
        self,
        task: str,
        data: dict[str, Any],
        *,
        options: SubmitOptions | None = None,
        default_queue: str = DEFAULT_QUEUE,
        default_ttl: float = DEFAULT_TTL,
        max_attempts: int = 1,
        job_id: str | None = None,
        owner: str | None = None,
    ) -> Job:
        """Store a job and put it on its queue, in one round trip, all or nothing.

        `data`: the input as JSON would decode it. `job_id`: for calls that are repeated after an unclear answer; the
        same id gives the same job. Raises InvalidParameter for options that make no sense, RedisUnavailable when Redis
        was frozen for longer than the caller waits: then the job is not stored, and never will be.
        """
        job, _ = await self.submit_once(
            task,
            data,
            options=options,
            default_queue=default_queue,
            default_ttl=default_ttl,
            max_attempts=max_attempts,
            job_id=job_id,
            owner=owner,
        )
        return job

    async def submit_once(
        self,
        task: str,
        data: dict[str, Any],
        *,
        options: SubmitOptions | None = None,
        default_queue: str = DEFAULT_QUEUE,
        default_ttl: float = DEFAULT_TTL,
        max_attempts: int = 1,
        job_id: str | None = None,
        owner: str | None = None,
        key: str = "",
        fingerprint: str = "",
        on_quota: Callable[[Quota], None] = lambda quota: None,
        files: Sequence[Mapping[str, Any]] = (),
        parent: Parent | None = None,
    ) -> tuple[Job, bool]:
        """`submit` under an idempotency key: the job, and whether it is that of an earlier request.

        Of an earlier request it is the job as that was answered, whatever has become of it. `key`: unique per owner and
        task; `fingerprint`: of all that the request asks for. Both are kept for 24 hours. `on_quota` is told what the
        owner may still submit, if that is limited. `files`: the uploads that the input names.
        `parent`: it becomes one of that job's children. Raises JobConflict when that does not run.
        Raises IdempotencyMismatch when the key stands for a request with another fingerprint, IdempotencyInFlight while
        another one holds it.
        """
        new = _NewJob.of(
            Submission(
                task, data, options or _DEFAULTS, default_queue, default_ttl, max_attempts, job_id, owner, files
            ),
            words=self._words,
        )
        if self._spill is not None:
            new = new._replace(payload=await self._spill.payload(new.job_id, new.payload))
        if any(isinstance(one, int) for one in new.after):
            raise _wrong("after", "after names jobs by their ids; numbers are for jobs of a batch")
        before: list[Argument] = [*new.head, round(LIVE_SECONDS * 1000), new.tags]
        after: list[Argument] = [scoped(key, owner) if key else "", fingerprint, self._limits_word, *new.field_words()]
        script = _submit
        if parent is not None:
            if new.after:
                raise _wrong("after", "a job's children run at once, or after a delay")
            script = _submit_child
            after += [word for name, word in parent.fields() for word in (name, word)]
            after += [parent.job_id, parent.batch_id, parent.root, CHILDREN_MAX, parent.ttl_ms, owner or ""]
        if new.after:
            script = _submit_after
            after += [" ".join(map(str, new.after)), new.delay_ms, new.run_at_ms, owner or ""]
        for _ in range(2):  # the second time with a clock that was set by the first
            verdict, *rest = await script(
                self.client, key_names=[keys.queue(new.queue)], args=[*before, self._clock.deadline(), *after]
            )
            if verdict == b"mismatch":
                raise IdempotencyMismatch("The key was used for a request with another payload")
            if verdict == b"held":
                raise IdempotencyInFlight("Another request with this key has not been answered yet")
            if verdict == b"late":
                self._clock.set(int(rest[0]))
                continue
            if verdict == b"ended":
                raise JobConflict("The job does not run any more, and has no more children")
            if verdict == b"many":
                raise JobConflict(f"No more than {CHILDREN_MAX:,} jobs may descend from one")
            if verdict == b"unknown":
                raise _wrong("after", f"There is no job {rest[0].decode()!r} to run after")
            self._check_admitted(verdict, rest, {new.queue: 1}, 1)
            if verdict == b"waiting":
                self._on_stored(task)
                if quota := list(map(int, rest[1:])):
                    on_quota(Quota.of(*quota))
                return self._job(pairs(rest[0])), False
            if verdict != b"stored":
                return self._job(pairs(rest[0])), verdict == b"replayed"
            self._on_stored(task)
            now, due, *quota = map(int, rest)
            self._clock.set(now)
            if quota:
                on_quota(Quota.of(*quota))
            return self._job(new.record(now, due)), False
        raise RedisUnavailable("Redis answered too late")

    async def submit_many(self, submissions: Sequence[Submission]) -> Sequence[str]:
        """Store up to 10,000 jobs and put them on their queues, in one round trip, all or none. Their ids, in order.

        A call that is repeated with the same `job_id`s stores nothing new. Raises InvalidParameter when one of them
        makes no sense, PayloadTooLarge for a batch that is too large, JobConflict when some of the ids are taken
        already, RedisUnavailable as `submit` does: then none is stored.
        """
        ids, _ = await self.submit_many_once(submissions)
        return ids

    async def submit_many_once(
        self,
        submissions: Sequence[Submission],
        *,
        first_id: str | None = None,
        owner: str | None = None,
        key: str = "",
        fingerprint: str = "",
        on_quota: Callable[[Quota], None] = lambda quota: None,
    ) -> tuple[Sequence[str], bool]:
        """`submit_many` under an idempotency key: the ids, and whether they are those of an earlier request.

        `first_id`: the id of the first job; those of the others follow it (but see `Submission.job_id`, which a batch
        with a key must leave out). `owner`: whose key it is. `key` and `fingerprint`, and the errors: as `submit_once`.
        """
        first_id = first_id or new_job_id()
        new = await self._new_jobs(submissions, job_ids(first_id, len(submissions)))
        if any(job.after for job in new):
            raise _wrong("after", "jobs that run after others come one by one, or as a batch: submit_batch")
        if not new:
            return [], False
        call = _ManyCall(first_id, scoped(key, owner) if key else "", fingerprint)
        first = await self._store_many(_submit_many, new, call, (), on_quota)
        if first is not None:
            return job_ids(first, len(submissions)), first != first_id
        return [job.job_id for job in new], False

    async def submit_batch(
        self,
        submissions: Sequence[Submission],
        *,
        batch_id: str | None = None,
        owner: str | None = None,
        key: str = "",
        fingerprint: str = "",
        on_quota: Callable[[Quota], None] = lambda quota: None,
    ) -> tuple[StoredBatch, bool]:
        """`submit_many_once` of at least one job, and a batch with it, which counts them: jobstream.batches reads it.

        The ids of the jobs follow the batch's; no submission has one of its own. `owner`: whose the batch is, and the
        key; the jobs should have the same one. Gives the ids, and whether they are those of an earlier request.
        """
        batch_id = batch_id or new_job_id()
        if not submissions or any(submission.job_id for submission in submissions):
            raise InvalidParameter("A batch has at least one job, and none has an id of its own")
        new = await self._new_jobs(submissions, job_ids(batch_id, len(submissions) + 1)[1:], batch_id)
        call = _ManyCall(batch_id, scoped(key, owner) if key else "", fingerprint)
        ttl = max(int(job.fields["ttl"]) for job in new)
        more = [*_order(new), batch_id, len(new), ttl, owner or ""]
        first = await self._store_many(_submit_batch, new, call, more, on_quota)
        found = StoredBatch(first or batch_id, job_ids(first or batch_id, len(new) + 1)[1:])
        return found, found.batch_id != batch_id

    async def _new_jobs(
        self, submissions: Sequence[Submission], ids: Sequence[str], batch_id: str | None = None
    ) -> list[_NewJob]:
        """As the scripts want them; others have a turn of the event loop meanwhile."""
        if len(submissions) > BATCH_JOBS:
            raise PayloadTooLarge(f"A batch has at most {BATCH_JOBS:,} jobs")
        new: list[_NewJob] = []
        size = 0
        for number, submission in enumerate(submissions):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            try:
                job = _NewJob.of(submission, words=self._words, job_id=ids[number])
            except InvalidParameter as error:
                raise InvalidParameter(f"Job {number} of the batch: {error.detail}") from None
            if batch_id is not None:
                job.fields["batch"] = batch_id
            size += len(job.payload)
            if self._spill is not None:
                job = job._replace(payload=await self._spill.payload(job.job_id, job.payload))
            new.append(job)
        if size > BATCH_BYTES:
            raise PayloadTooLarge(f"The inputs of a batch have at most {BATCH_BYTES >> 20} MB")
        if len({job.job_id for job in new}) < len(new):
            raise InvalidParameter("Two jobs of the batch have the same id")
        return new

    async def _store_many(
        self,
        script: Script,
        new: Sequence[_NewJob],
        call: _ManyCall,
        more: Sequence[Argument],
        on_quota: Callable[[Quota], None],
    ) -> str | None:
        """Store them; the id that the key stands for when they were stored before. `more`: what follows the jobs."""
        words: list[Argument] = []
        for number, job in enumerate(new):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            fields = job.field_words()
            words += [*job.head, job.tags, len(fields), *fields]
        for _ in range(2):  # the second time with a clock that was set by the first
            verdict, *rest = await script(
                self.client,
                key_names=[keys.queue(queue) for queue in sorted({job.queue for job in new})],
                args=[
                    self._clock.deadline(),
                    round(LIVE_SECONDS * 1000),
                    call.key,
                    call.fingerprint,
                    call.first_id,
                    self._limits_word,
                    *words,
                    *more,
                ],
                patience=BATCH_SECONDS,
            )
            if verdict == b"mismatch":
                raise IdempotencyMismatch("The key was used for a request with another payload")
            if verdict == b"held":
                raise IdempotencyInFlight("Another request with this key has not been answered yet")
            if verdict == b"replayed":
                return cast(bytes, rest[0]).decode()
            if verdict == b"late":
                self._clock.set(int(rest[0]))
                continue
            if verdict == b"unknown":
                raise _unknown(rest[0].decode(), new)
            self._check_admitted(verdict, rest, Counter(job.queue for job in new), len(new))
            if verdict == b"clash":
                raise JobConflict(f"There is a job {rest[0].decode()} already, of which the rest of the batch has none")
            if verdict == b"stored":
                for job in new:
                    self._on_stored(job.task)
                self._clock.set(int(rest[0]))
                if quota := [int(word) for word in rest[2:]]:
                    on_quota(Quota.of(*quota))
            return None
        raise RedisUnavailable("Redis answered too late")

    async def check_room(self, *, queue: str | None = None, owner: str | None = None) -> None:
        """Raises what a submit of one job would be refused with now: QueueFull, or OverQuota.

        For callers who can save themselves work by it: it promises nothing, and charges nobody.
        """
        if owner is None and self._limits == NO_SUBMIT_LIMITS:
            return
        verdict, *rest = await _look(self.client, args=[queue or "", owner or "", self._limits_word])
        self._check_admitted(verdict, rest, {queue or "": 1}, 1)

    def _check_admitted(self, verdict: bytes, rest: Sequence[Any], queues: Mapping[str, int], jobs: int) -> None:
        """Raises what admit.lua has refused."""
        if verdict == b"full":
            queue, held, wait_ms = rest[0].decode(), int(rest[1]), int(rest[2])
            depth = self._limits.depth
            if queues[queue] > depth:
                raise PayloadTooLarge(f"A queue may hold {depth:,} jobs")
            seconds = QUEUE_FULL_SECONDS if wait_ms < 0 else min(QUEUE_FULL_MAX_SECONDS, max(1, ceil(wait_ms / 1000)))
            raise QueueFull(f"The queue {queue!r} holds {held:,} jobs, and may hold {depth:,}", retry_after=seconds)
        if verdict == b"over":
            wait_ms, *words = (int(word) for word in rest[1:])
            quota = Quota.of(*words)
            many = f"{quota.jobs:,} jobs in {quota.window:,} s"
            if wait_ms < 0:
                raise PayloadTooLarge(f"The quota lets {many} through: never {jobs:,} at once")
            raise OverQuota(
                f"The quota lets {many} through, and {quota.left:,} of them now",
                quota=quota,
                retry_after=max(1, ceil(wait_ms / 1000)),
            )

    async def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """The job. Raises JobNotFound, or JobGone within a day after it was purged."""
        record = await store.read_record(self.client, job_id)
        if record is None or not store.is_visible(record.get(b"owner"), owner):
            raise await self.missing(job_id, owner=owner)
        return self._job(record)

    async def check_visible(self, job_id: str, *, owner: str | None) -> None:
        """Raises JobNotFound or JobGone for a job that is not the owner's; without an owner it does not look."""
        if owner is not None:
            await self._queue_of(job_id, owner)

    async def list(
        self, wanted: JobFilter = ALL_JOBS, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Job], str | None]:
        """A page of jobs, newest first, and the cursor of the next one (None: there is none)."""
        page = await store.list_records(self.client, wanted, limit=limit, cursor=cursor)
        return [self._job(record) for record in page.records], page.next_cursor

    async def cancel(self, job_id: str, *, owner: str | None = None, only: str | None = None) -> Outcome:
        """Stop the job: one that waits is cancelled at once, one that runs is told so.

        Raises JobNotFound, JobGone, and JobConflict for one that is not in the state `only` (None: in any).
        """
        return await self._stop(job_id, owner, purge=False, only=only)

    async def purge(self, job_id: str, *, owner: str | None = None) -> Outcome:
        """Stop the job and remove its record (a running one: when it has stopped). Raises JobNotFound, JobGone."""
        return await self._stop(job_id, owner, purge=True)

    async def retry(self, job_id: str, *, owner: str | None = None, ended_before: datetime | None = None) -> Job:
        """Run a failed or cancelled job again: the same id, attempts counted on. Raises JobNotFound, JobGone,
        JobConflict, also for one that ended after `ended_before`."""
        queue = await self._queue_of(job_id, owner)
        answer = await _rerun(
            self.client,
            key_names=[keys.queue(queue)],
            args=[
                job_id,
                queue,
                round(LIVE_SECONDS * 1000),
                round(ended_before.timestamp() * 1000) if ended_before else "",
            ],
        )
        if not answer:
            raise await self.missing(job_id, owner=owner)
        verdict, stored, *more = answer
        if verdict == b"lost":
            raise JobConflict(f"Job {job_id} cannot be run again: its input was not kept")
        if verdict == b"blocked":
            raise JobConflict(
                f"Job {job_id} runs after job {more[0].decode()}, which has not succeeded: run that again first"
            )
        if verdict == b"newer":
            raise JobConflict(f"Job {job_id} has ended since")
        if verdict != b"again":
            raise JobConflict(f"Job {job_id} is {verdict.decode()}; only a failed or cancelled one is run again")
        return self._job(pairs(stored))

    async def _queue_of(self, job_id: str, owner: str | None) -> str:
        """Also the check that the job is the owner's: an id is never given to another owner's job later."""
        queue, stored = await cast(
            "Awaitable[list[bytes | None]]", self.client.hmget(keys.record(job_id), ["queue", "owner"])
        )
        if queue is None or not store.is_visible(stored, owner):
            raise await self.missing(job_id, owner=owner)
        return queue.decode()

    async def _stop(self, job_id: str, owner: str | None, *, purge: bool, only: str | None = None) -> Outcome:
        queue = await self._queue_of(job_id, owner)
        answer = await _cancel(
            self.client, key_names=[keys.queue(queue)], args=[job_id, "1" if purge else "", CANCELLED, only or ""]
        )
        if not answer:
            raise await self.missing(job_id, owner=owner)
        verdict, stored = answer
        if verdict == b"other":
            raise JobConflict(f"Job {job_id} is not {only}")
        return Outcome(job=self._job(pairs(stored)), stopping=verdict == b"cancelling", was_done=verdict == b"done")

    async def missing(self, job_id: str, *, owner: str | None = None) -> JobNotFound | JobGone:
        """The error for a job that is not there, or not the owner's."""
        if await store.was_purged(self.client, job_id, owner=owner):
            return JobGone(f"Job {job_id} was purged")
        return JobNotFound(f"There is no job {job_id[:64]!r}")

    def _job(self, record: Record) -> Job:
        return job_from_record(record, prefix=self._prefix)


class _ManyCall(NamedTuple):
    """Which request it is that stores many jobs: `first_id` names it, and what its key stands for from then on."""

    first_id: str
    key: str
    fingerprint: str


class _NewJob(NamedTuple):
    """A submission that makes sense, as the scripts want it."""

    job_id: str
    queue: str
    task: str
    payload: bytes
    delay_ms: int
    run_at_ms: int
    tags: str
    fields: dict[str, str | float | int]
    """More fields of the record."""
    after: tuple[str | int, ...]

    @classmethod
    def of(cls, wanted: Submission, *, words: int, job_id: str | None = None) -> Self:
        """`words`: how many of its input it is found by; `job_id`: if it has none. Raises InvalidParameter."""
        options, owner = wanted.options, wanted.owner
        if options is not _DEFAULTS:
            options.check()
        if owner is not None and not TENANT.match(owner):
            raise InvalidParameter("owner is 1 to 128 visible ASCII characters, without spaces")
        fields: dict[str, str | float | int] = {
            "max_attempts": wanted.max_attempts,
            "ttl": max(_TTL_MIN_MS, round((options.ttl or wanted.default_ttl) * 1000)),
        }
        if options.timeout is not None:
            fields["timeout"] = options.timeout
        if options.priority:
            fields["priority"] = options.priority
        if owner is not None:
            fields["owner"] = owner
        if options.callback_url is not None:
            fields["callback_url"] = options.callback_url
        if wanted.files:
            fields["files"] = msgspec.json.encode(wanted.files).decode()
        if trace := wanted.trace or current():
            fields |= trace  # for the webhooks; the workers read the payload
        after = tuple(dict.fromkeys(options.after))
        if after:
            fields["after"] = " ".join(map(str, after))
        if said := words_of(wanted.data, tags=options.tags, limit=words):
            fields["words"] = " ".join(said)
        return cls(
            job_id=wanted.job_id or job_id or new_job_id(),
            queue=options.queue or wanted.default_queue,
            task=wanted.task,
            payload=arq_payload(wanted.task, wanted.data, trace),
            delay_ms=round(options.delay * 1000),
            run_at_ms=round(options.run_at.timestamp() * 1000) if options.run_at else 0,
            tags=" ".join(dict.fromkeys(options.tags)),
            fields=fields,
            after=after,
        )

    @property
    def head(self) -> tuple[Argument, ...]:
        """Where the arguments of both scripts begin."""
        return (*self[:4], _NO_TIME_MS, 0) if self.after else self[:6]

    def field_words(self) -> list[Argument]:
        """Name, value, name, value, …"""
        return [word for pair in self.fields.items() for word in pair]

    def record(self, now: int, due: int) -> Record:
        """What the script has stored (ms of Redis's time)."""
        status = JobStatus.SCHEDULED if due > now else JobStatus.QUEUED
        stored: dict[str, object] = {
            "id": self.job_id,
            "task": self.task,
            "queue": self.queue,
            "status": status,
            "version": 1,
            "created_at": now,
        }
        stored |= self.fields | {"tags": self.tags} | ({"run_at": due} if due > now else {})
        return {name.encode(): str(value).encode() for name, value in stored.items()}


def tick_arguments(wanted: Submission, *, words: int) -> tuple[str, list[Argument]]:
    """For tick.lua: the queue's key, and what it stores of a job that has an id. Raises InvalidParameter."""
    new = _NewJob.of(wanted, words=words)
    live = round(LIVE_SECONDS * 1000)
    return keys.queue(new.queue), [*new.head[:4], live, new.tags, *new.field_words()]


def _order(new: Sequence[_NewJob]) -> list[Argument]:
    """What submit_batch.lua is told of the jobs that run after others; numbers of jobs become their ids.

    Raises InvalidParameter for a number that is not that of an earlier job.
    """
    words: list[Argument] = []
    waiting = [(number, job) for number, job in enumerate(new) if job.after]
    if sum(len(job.after) for _, job in waiting) > BATCH_JOBS:
        raise PayloadTooLarge(f"The jobs of a batch name at most {BATCH_JOBS:,} others to run after")
    for number, job in waiting:
        wrong = next((one for one in job.after if isinstance(one, int) and not 0 <= one < number), None)
        if wrong is not None:
            raise _wrong(f"{number}/after", f"{wrong} is not the number of an earlier job of the batch")
        own = {one: new[one].job_id for one in job.after if isinstance(one, int)}
        job.fields["after"] = " ".join(own[one] if isinstance(one, int) else one for one in job.after)
        ids = " ".join(f"#{own[one]}" if isinstance(one, int) else one for one in job.after)
        words += [job.job_id, job.delay_ms, job.run_at_ms, ids, job.fields.get("owner", "")]
    return [*words, len(waiting)]


def _unknown(job_id: str, new: Sequence[_NewJob]) -> InvalidParameter:
    why = f"There is no job {job_id!r} to run after"
    wrong = [number for number, job in enumerate(new) if job_id in job.after]
    return InvalidParameter(why, errors=[FieldError(pointer=f"/{number}/after", detail=why) for number in wrong[:50]])


class _RedisClock:
    """Redis's time as last seen: so that a call can say in Redis's own time until when its answer is awaited."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None

    def set(self, redis_ms: int) -> None:
        """Redis has just said what time it is."""
        self._ahead_ms = redis_ms - time.monotonic() * 1000

    def deadline(self) -> int:
        """When a call that is made now is given up, in ms of Redis's time; 0 while that is not known."""
        if self._ahead_ms is None:
            return 0
        return round(time.monotonic() * 1000 + self._ahead_ms + PATIENCE_SECONDS * 1000)


def arq_payload(task: str, data: dict[str, Any], trace: Carrier | None = None) -> bytes:
    """arq's job payload: the input travels as keyword arguments, so that a stock worker could run it.

    `trace`: what belongs to it; arq does not look at further members.
    """
    payload = {"t": None, "f": task, "a": (), "k": data, "et": time.time_ns() // 1_000_000}
    return serialize(payload | {"trace": dict(trace)} if trace else payload)
