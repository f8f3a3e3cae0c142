"""What is known of a job that is being watched, and which exit code that asks for."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobstream.client import (
    ClientError,
    Event,
    NotFound,
    Rejected,
    StillRunning,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from jobstream.job import Job, JobError, JobProgress, JobStatus
from jobstream_cli.exits import Exit

_BY_ERROR: tuple[tuple[type[ClientError], Exit], ...] = (  # the first that fits: subclasses before their parents
    (NotFound, Exit.NOT_FOUND),
    (Unauthorized, Exit.UNAUTHORIZED),
    (Unavailable, Exit.UNREACHABLE),
    (Rejected, Exit.REJECTED),
    (Unreachable, Exit.UNREACHABLE),
    (StillRunning, Exit.TIMEOUT),
)

_BY_STATUS = {
    JobStatus.SUCCEEDED: Exit.OK,
    JobStatus.FAILED: Exit.FAILED,
    JobStatus.CANCELLED: Exit.CANCELLED,
}


def exit_of(error: ClientError) -> Exit:
    """The code for an error of the client."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)


@dataclass
class JobView:
    """A job as its events have told it so far."""

    id: str
    task: str = ""
    status: JobStatus | None = None
    progress: JobProgress = field(default_factory=JobProgress)
    error: JobError | None = None
    job: Job | None = None
    """The whole record, as the last snapshot or the end gave it."""
    fault: ClientError | None = None
    """Why it cannot be watched."""

    def apply(self, event: Event) -> bool:
        """Take in an event. True when the status has changed.

        A fresh stream begins with a snapshot of now, and then repeats what led there: those statuses are past.
        """
        before = self.status
        if event.job is not None:
            self.take(event.job)
        elif event.event == "progress":
            self.progress = JobProgress.model_validate(event.data)
        elif event.event == "status" and isinstance(event.data, dict) and not self._knows(event):
            self.status = JobStatus(str(event.data["status"]))
        return self.status != before

    def _knows(self, event: Event) -> bool:
        return self.job is not None and event.version is not None and event.version <= self.job.version

    def take(self, job: Job) -> None:
        """Take in the whole record."""
        self.job, self.task, self.status, self.error = job, job.task, job.status, job.error
        self.progress = job.progress or self.progress

    @property
    def done(self) -> bool:
        """True at the end, and when there is nothing to wait for."""
        return self.fault is not None or (self.status is not None and self.status.done)

    @property
    def exit(self) -> Exit:
        """The exit code that this job asks for: TIMEOUT as long as it goes on."""
        if self.fault is not None:
            return exit_of(self.fault)
        return _BY_STATUS.get(self.status, Exit.TIMEOUT) if self.status else Exit.TIMEOUT

    @property
    def word(self) -> str:
        """The status in a word."""
        if self.fault is not None:
            return "not found" if isinstance(self.fault, NotFound) else "lost"
        return self.status.value if self.status else "waiting"

    @property
    def message(self) -> str:
        """The most telling sentence: the fault, the error, or what the task says."""
        if self.fault is not None:
            return str(self.fault)
        if self.error is not None:
            return self.error.detail or self.error.title
        return "" if self.status == JobStatus.SUCCEEDED else self.progress.message or ""

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took; None before the end."""
        if self.job is None or self.job.started_at is None or self.job.finished_at is None:
            return None
        return (self.job.finished_at - self.job.started_at).total_seconds()
