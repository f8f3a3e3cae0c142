"""The ledger: what Redis and the tasks' own notes say of each job, and whether the two sides balance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import redis

from jobstream import keys
from jobstream.events import JobEvent, parse_message
from jobstream.job import JobStatus
from tests.integration.test_queue import LIVES_AS_LONG_AS_THE_DATA

OF_WAITING_JOBS = (keys.ARQ_JOB, keys.ARQ_IN_PROGRESS, keys.ARQ_RETRY)
SWEPT = {keys.INDEX, keys.EXPIRY, keys.ARQ_ABORT}
SWEPT_PREFIXES = (
    keys.INDEX_STATUS,
    keys.INDEX_TASK,
    keys.INDEX_TAG,
    keys.INDEX_OWNER,
    keys.INDEX_OWNED,
    keys.INDEX_WORDS,
)


class Run(NamedTuple):
    """An attempt in a worker, as a claim's event and a task's note both name it."""

    job_id: str
    attempt: int
    pid: int


def claimed_by(event: JobEvent) -> tuple[int, int] | None:
    """Attempt and worker's pid, when the event says that a worker has taken the job."""
    if event.kind != "status":
        return None
    said = json.loads(event.data)
    return (said["attempt"], int(said["worker"].split(":")[-2])) if "worker" in said else None


@dataclass(frozen=True)
class Account:
    """All that Redis keeps of one job."""

    job_id: str
    record: Mapping[str, str]
    entries: list[JobEvent]

    def __str__(self) -> str:
        words = [
            f"{entry.version} {entry.time_ms % 10**6} {entry.kind} {entry.data[:100].decode()}"
            for entry in self.entries
            if entry.kind != "log"
        ]
        story = " | ".join(words if len(words) <= 14 else [*words[:7], "…", *words[-7:]])
        return f"{self.job_id} {self.record.get('task')}: {story}"

    @property
    def status(self) -> JobStatus:
        """As the record has it."""
        return JobStatus(self.record["status"])

    @property
    def code(self) -> str | None:
        """The error's code."""
        return json.loads(self.record["error"])["code"] if "error" in self.record else None

    @property
    def claims(self) -> list[Run]:
        """Every time a worker took the job, in order."""
        return [Run(self.job_id, *claim) for _, claim in self._claims()]

    @property
    def claim_times(self) -> list[int]:
        """When, in ms of Redis's time."""
        return [entry.time_ms for entry, _ in self._claims()]

    @property
    def takeovers(self) -> Iterator[tuple[Run, int, int]]:
        """The attempts that the job was taken away from, each with the time of its claim and of the next one."""
        held: tuple[Run, int] | None = None
        for entry in self.entries:
            if (claim := claimed_by(entry)) is not None:
                if held is not None:
                    yield *held, entry.time_ms
                held = Run(self.job_id, *claim), entry.time_ms
            elif entry.kind == "status" and json.loads(entry.data)["status"] != "cancelling":
                held = None  # given back

    def faults(self) -> Iterator[str]:
        """What is wrong with this account by itself."""
        kinds = [entry.kind for entry in self.entries]
        if not self.status.done:
            yield f"ends {self.status}"
        again = "spent" in self.record  # a child that was run again, in its parent's next attempt
        if (kinds.count("done") != 1 and not again) or kinds[-1] != "done":
            yield f"has {kinds.count('done')} `done` events and ends with {kinds[-1:]}"
        elif self.entries[-1].data != self.status.encode():
            yield f"told {self.entries[-1].data!r}, but is {self.status}"
        yield from self._gaps()
        yield from self._words_of_zombies()

    def _claims(self) -> Iterator[tuple[JobEvent, tuple[int, int]]]:
        for entry in self.entries:
            if (claim := claimed_by(entry)) is not None:
                yield entry, claim

    def _gaps(self) -> Iterator[str]:
        versions = [entry.version for entry in self.entries]
        if versions != sorted(set(versions)):
            yield "has versions that do not rise"
        if versions and versions[-1] != int(self.record["version"]):
            yield f"is at version {self.record['version']}, its log at {versions[-1]}"
        # Progress is an event too, but not a durable one: a job without it has no gaps. A parent's is forgotten when it
        # is given back.
        if not {"progress", "children"} & self.record.keys() and versions != list(range(1, len(versions) + 1)):
            yield "has gaps between its versions"

    def _words_of_zombies(self) -> Iterator[str]:
        """Every word is of the attempt that held the job at that time."""
        holder: tuple[int, int] | None = None
        for entry in self.entries:
            if entry.kind == "chunk":
                said = json.loads(entry.data)
                if (said["attempt"], said["pid"]) != holder:
                    yield f"version {entry.version} was said by {said}, held by {holder}"
            elif (claim := claimed_by(entry)) is not None:
                holder = claim
            elif entry.kind == "status" and json.loads(entry.data)["status"] != "cancelling":
                holder = None  # a cancel that was asked for leaves the job with its holder, all else does not


def notes(where: Path, word: str = "began") -> Counter[Run]:
    """What the tasks noted: how often each attempt began (or whatever `word` is)."""
    lines = where.read_text(encoding="utf-8").splitlines() if where.exists() else []
    words = (line.split() for line in lines)
    return Counter(Run(job_id, int(attempt), int(pid)) for first, job_id, attempt, pid in words if first == word)


class Ledger:
    """Reads the books of a Redis at rest."""

    def __init__(self, client: redis.Redis, where: Path) -> None:
        self._client = client
        self._where = where

    def unfinished(self) -> list[str]:
        """The jobs that the status indexes hold and that are in no final state."""
        indexes = [keys.index(status=status) for status in JobStatus if not status.done]
        return sorted(member.decode() for index in indexes for member in self._members(index))

    def accounts(self) -> dict[str, Account]:
        """All jobs that have a record."""
        ids = [key[len(keys.RECORD) :].decode() for key in self._client.scan_iter(match=keys.RECORD + "*", count=1000)]
        found = {job_id: self.account(job_id) for job_id in ids}
        return {job_id: account for job_id, account in found.items() if "jobs" not in account.record}

    def batches(self) -> dict[str, Account]:
        """All batches: the children of a job are one, too."""
        ids = [key[len(keys.RECORD) :].decode() for key in self._client.scan_iter(match=keys.RECORD + "*", count=1000)]
        found = {batch_id: self.account(batch_id) for batch_id in ids}
        return {batch_id: account for batch_id, account in found.items() if "jobs" in account.record}

    def check(self, accepted: Iterable[str]) -> dict[str, Account]:
        """Fail with everything that does not balance; else give the accounts."""
        accounts = self.accounts()
        faults = [f"{job_id} was accepted and is not there" for job_id in accepted if job_id not in accounts]
        for account in accounts.values():
            faults += [f"{fault}: {account}" for fault in account.faults()]
        faults += self._batch_faults(accounts)
        claimed = Counter(run for account in accounts.values() for run in account.claims)
        faults += [f"{run} ran without a claim" for run in notes(self._where) - claimed]
        faults += self._leftovers()
        faults += self._index_faults(accounts)
        assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:20])
        return accounts

    def account(self, job_id: str) -> Account:
        """One job's account."""
        record = cast("dict[bytes, bytes]", self._client.hgetall(keys.record(job_id)))
        entries = cast("list[bytes]", self._client.lrange(keys.log(job_id), 0, -1))
        return Account(
            job_id,
            {name.decode(): value.decode(errors="replace") for name, value in record.items()},
            [parse_message(entry) for entry in entries],
        )

    def _leftovers(self) -> Iterator[str]:
        """Nothing is stored without an expiry or an owner, and nothing of a waiting job when none waits."""
        for key in self._client.scan_iter(count=1000):
            name = key.decode()
            if name in SWEPT or name.startswith(SWEPT_PREFIXES) or key in LIVES_AS_LONG_AS_THE_DATA:
                continue
            if name.startswith(OF_WAITING_JOBS) or name.startswith((keys.queue("default"), keys.PROMOTE)):
                yield f"{name} is left"
            elif cast("int", self._client.pttl(key)) == -1:  # -2: it has gone since it was seen
                yield f"{name} never goes"
        if queued := self._members(keys.queue("default")):
            yield f"the queue holds {queued[:5]}"

    def _batch_faults(self, accounts: Mapping[str, Account]) -> Iterator[str]:
        """A batch says of its jobs what they say themselves."""
        for batch_id, batch in self.batches().items():
            jobs = Counter(account.status for account in accounts.values() if account.record.get("batch") == batch_id)
            said = {status: int(batch.record.get(f"n_{status}", 0)) for status in JobStatus}
            if {status: count for status, count in said.items() if count} != jobs or not batch.status.done:
                yield f"batch {batch} says {said}, its jobs are {jobs}"
            if int(batch.record["jobs"]) != jobs.total():
                yield f"batch {batch} has {jobs.total()} jobs"

    def _index_faults(self, accounts: Mapping[str, Account]) -> Iterator[str]:
        wanted: dict[str, set[str]] = {keys.INDEX: set(accounts)}
        for job_id, account in accounts.items():
            for index in (keys.index(status=account.status), keys.index(task=account.record["task"])):
                wanted.setdefault(index, set()).add(job_id)
        found = {key.decode() for key in self._client.scan_iter(match=keys.INDEX + "*", count=1000)}
        for index in found | wanted.keys():
            members = {member.decode() for member in self._members(index)}
            if odd := members ^ wanted.get(index, set()):
                yield f"{index} and the records differ by {sorted(odd)[:5]}"
        if {member.decode().split()[0] for member in self._members(keys.EXPIRY)} != set(accounts):
            yield f"{keys.EXPIRY} and the records differ"

    def _members(self, key: str) -> list[bytes]:
        return cast("list[bytes]", self._client.zrange(key, 0, -1))
