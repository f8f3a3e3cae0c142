"""The catalogue: `GET /tasks` and `GET /tasks/{task}`: what can be submitted, and who would run it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from jobstream.catalogue import Announcement, WorkerInfo, find, read_workers
from jobstream_api.auth.gate import Known
from jobstream_api.service import Service


class TaskView(BaseModel):
    """A task as the catalogue shows it. Times in seconds."""

    name: str
    summary: str
    description: str
    queue: str
    executor: str
    timeout: float
    ttl: float
    max_attempts: int
    max_running: int | None
    accepted_status: int
    file_fields: list[str]
    workers: int
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    links: dict[str, str]


class TaskList(BaseModel):
    """The catalogue."""

    tasks: list[TaskView]


def add_routes(router: APIRouter, service: Service) -> None:
    """`GET /tasks`, `GET /tasks/{task}`."""

    @router.get("/tasks", tags=["tasks"], summary="What can be submitted")
    async def tasks(caller: Known) -> TaskList:
        await service.tasks.refresh()
        workers = await read_workers(service.client)
        return TaskList(tasks=[_view(task, workers, service) for task in service.tasks.tasks.values()])

    @router.get("/tasks/{task}", tags=["tasks"], summary="One task: schemas, limits, workers alive")
    async def one_task(task: str, caller: Known) -> TaskView:
        await service.tasks.refresh()
        return _view(find(service.tasks.tasks, task), await read_workers(service.client), service)


def _view(task: Announcement, workers: list[WorkerInfo], service: Service) -> TaskView:
    able = sum(1 for worker in workers if task.name in worker.tasks and task.queue in worker.queues)
    return TaskView(
        name=task.name,
        summary=task.summary,
        description=task.description,
        queue=task.queue,
        executor=task.executor,
        timeout=task.timeout,
        ttl=task.ttl,
        max_attempts=task.max_attempts,
        max_running=task.max_running,
        accepted_status=service.accepted_status(task),
        file_fields=list(task.file_fields),
        workers=able,
        input_schema=task.input_schema,
        output_schema=task.output_schema,
        links={"submit": f"{service.prefix}/{task.name}", "jobs": f"{service.prefix}/jobs?task={task.name}"},
    )
