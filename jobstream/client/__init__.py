"""The HTTP client: submit a job, keep its handle, follow its events across cuts, fetch its result.

`Client` is for asyncio, `SyncClient` for everything else; they differ in nothing but `await`. What both say and
understand is in `calls` (one request and its answer) and `stream` (events, across cuts), which do no I/O.
"""

from jobstream.batch import Batch
from jobstream.client.aio import BatchHandle, Client, JobHandle
from jobstream.client.calls import DEFAULT_URL, BatchItem, BulkFilter, ScheduleOptions, SubmitOptions, TaskInfo
from jobstream.client.errors import (
    ClientError,
    FieldProblem,
    Gone,
    JobCancelled,
    JobFailed,
    NotFound,
    Problem,
    Rejected,
    StillRunning,
    Unauthorized,
    Unavailable,
    UnexpectedResult,
    Unreachable,
)
from jobstream.client.stream import Event
from jobstream.client.sync import SyncBatchHandle, SyncClient, SyncJobHandle
from jobstream.client.transfer import JobFileInfo
from jobstream.schedule import Schedule

__all__ = [
    "DEFAULT_URL",
    "Batch",
    "BatchHandle",
    "BatchItem",
    "BulkFilter",
    "Client",
    "ClientError",
    "Event",
    "FieldProblem",
    "Gone",
    "JobCancelled",
    "JobFailed",
    "JobFileInfo",
    "JobHandle",
    "NotFound",
    "Problem",
    "Rejected",
    "Schedule",
    "ScheduleOptions",
    "StillRunning",
    "SubmitOptions",
    "SyncBatchHandle",
    "SyncClient",
    "SyncJobHandle",
    "TaskInfo",
    "Unauthorized",
    "Unavailable",
    "UnexpectedResult",
    "Unreachable",
]
