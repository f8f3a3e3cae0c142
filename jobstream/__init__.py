"""jobstream: hand work over HTTP, keep the ticket, watch it live. A task's author imports from here."""

from jobstream.context import JobContext
from jobstream.errors import JobCancelled, Retry, TaskError
from jobstream.files import FileLimits, JobFile
from jobstream.retry import RetryPolicy
from jobstream.task import Task, task

__all__ = ["FileLimits", "JobCancelled", "JobContext", "JobFile", "Retry", "RetryPolicy", "Task", "TaskError", "task"]
