"""Jobs: a FastAPI dependency that hands work over from inside somebody's own app, from any depth of it.

from jobstream_api.app import create_router
from jobstream_api.jobs import Jobs, answer_problems

app = FastAPI()
app.include_router(create_router(), prefix="/background")
answer_problems(app)

@app.post("/orders")
async def order(jobs: Annotated[Jobs, Depends()]) -> Job:
    return await jobs.submit("words", {"text": "to be"})
"""

from __future__ import annotations

from typing import Any

import pydantic_core
from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response

from jobstream.errors import ConfigurationError, JobstreamError
from jobstream.job import Job
from jobstream.queue import Outcome, SubmitOptions
from jobstream_api import problems
from jobstream_api.service import Service

STATE = "jobstream"
"""Where in an app's state the service is, while the app runs."""


class Jobs:
    """The jobs of the service whose router the app includes."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._service = service_of(connection.app)

    async def submit(
        self,
        task: str,
        input: object = None,
        *,
        options: SubmitOptions | None = None,
        owner: str | None = None,
        key: str = "",
    ) -> Job:
        """Store a job, as `POST /{task}` does; it is in Redis when this returns.

        `input`: a mapping, a pydantic model or a dataclass. `key`: an idempotency key; the same key with the same input
        gives the job as it was first stored. Raises UnknownTask, InvalidInput, InvalidParameter, IdempotencyMismatch,
        IdempotencyInFlight, and redis-py's errors when Redis is away.
        """
        validator = await self._service.tasks.validator(task)
        if options is not None and options.callback_url is not None:
            await self._service.targets.check(options.callback_url, option="callback_url")
        data = validator.check(pydantic_core.to_jsonable_python({} if input is None else input))
        announced = validator.task
        job, _ = await self._service.queue.submit_once(
            task,
            data,
            options=options,
            default_queue=announced.queue,
            default_ttl=announced.ttl,
            max_attempts=announced.max_attempts,
            owner=owner,
            key=f"{task}:{key}" if key else "",
            fingerprint=pydantic_core.to_json([data, options]).decode() if key else "",
        )
        return job

    async def get(self, job_id: str, *, owner: str | None = None) -> Job:
        """The job as it is. Raises JobNotFound, also for another owner's job, and JobGone."""
        return await self._service.queue.get(job_id, owner=owner)

    async def cancel(self, job_id: str, *, owner: str | None = None) -> Outcome:
        """Stop the job; its record stays. Raises JobNotFound and JobGone."""
        return await self._service.queue.cancel(job_id, owner=owner)


def service_of(app: Any) -> Service:
    """The service whose router the app includes. Raises ConfigurationError when there is none, or it does not run."""
    service = getattr(app.state, STATE, None)
    if not isinstance(service, Service):
        raise ConfigurationError("include jobstream_api.app.create_router() in the app, and run the app's lifespan")
    return service


def answer_problems(app: FastAPI) -> None:
    """Let the app answer what `Jobs` raises with problem+json. Its other errors stay as they are."""

    async def answer(request: Request, error: Exception) -> Response:
        return problems.respond(error, request, service_of(request.app).prefix)

    app.add_exception_handler(JobstreamError, answer)
