"""Where functions run: results, failures by name, cancellation that is honest, children that never outlive anybody."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobstream import Task, TaskError
from jobstream.cancellation import Flag
from jobstream.errors import (
    ConfigurationError,
    InvalidInput,
    InvalidOutput,
    JobstreamError,
    TaskCrashed,
    TaskRaised,
)
from jobstream.files import FileStore
from jobstream.outbox import CHUNK_BYTES, Batch, Outbox
from jobstream_workers.executors import Execution, Executors
from tests import sample_tasks as sample

PATIENCE = 20.0
"""Seconds after which something that should happen counts as missing."""


class Spoken:
    """An outbox and all that came out of it, to wait for."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self.outbox = Outbox(self._notify)
        self.batches: list[Batch] = []

    def _notify(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    def read(self) -> list[object]:
        """Everything said so far that is not progress."""
        self.batches.append(self.outbox.take())
        return [msgspec.json.decode(entry.data) for batch in self.batches for entry in batch.entries]

    def logs(self) -> list[str]:
        return [line["message"] for line in self.read() if isinstance(line, dict)]

    async def first(self) -> Any:
        """The first chunk or log line, as soon as it is there."""
        while not (said := self.read()):
            await self.anything()
        return said[0]

    async def anything(self) -> None:
        """Return when something new was said, progress included."""
        async with asyncio.timeout(PATIENCE):
            await self._news.wait()
        self._news.clear()


@pytest.fixture
async def executors(tmp_path: Path) -> AsyncIterator[Executors]:
    async with Executors(threads=2, processes=1, files=FileStore(tmp_path), kill_grace=0.3) as executors:
        yield executors


def execution(task: Task, data: object = None, *, outbox: Outbox | None = None, job_id: str = "j1") -> Execution:
    return Execution(
        task=task,
        data={} if data is None else data,
        job_id=job_id,
        attempt=2,
        max_attempts=5,
        outbox=outbox or Outbox(lambda: None),
        cancelled=Flag(),
    )


async def cancelled(running: asyncio.Task[bytes]) -> None:
    """Cancel it and see it end as cancelled."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE):
            await running


def gone(pid: int) -> Callable[[], Awaitable[None]]:
    """Call it early, while the process lives; await what it gives to know that the process has ended."""
    descriptor = os.pidfd_open(pid)

    async def wait() -> None:
        try:
            ready, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], PATIENCE)
            if not ready:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                pytest.fail(f"process {pid} outlived what it belongs to")
        finally:
            os.close(descriptor)

    return wait


# Results


@pytest.mark.parametrize("task", [sample.add, sample.thread_add, sample.process_add], ids=lambda task: task.executor)
async def test_the_result_is_json_of_the_output_type(executors: Executors, task: Task) -> None:
    assert await executors.run(execution(task, {"a": 2, "b": 3})) == b'{"total":5}'
    assert await executors.run(execution(task, {"a": 2})) == b'{"total":3}'


async def test_def_tasks_leave_the_event_loop(executors: Executors) -> None:
    name = msgspec.json.decode(await executors.run(execution(sample.thread_name)))
    assert name != threading.current_thread().name


async def test_a_child_process_is_used_again(executors: Executors, capfd: pytest.CaptureFixture[str]) -> None:
    first = await executors.run(execution(sample.process_pid))
    assert first != str(os.getpid()).encode()
    assert await executors.run(execution(sample.process_pid)) == first
    assert capfd.readouterr().out == "a line on standard output\n" * 2


async def test_jobs_wait_for_a_free_child_in_their_order(executors: Executors) -> None:
    ended: list[str] = []

    async def run(job_id: str) -> bytes:
        pid = await executors.run(execution(sample.process_pid, job_id=job_id))
        ended.append(job_id)
        return pid

    names = [f"job-{number}" for number in range(6)]
    assert len(set(await asyncio.gather(*map(run, names)))) == 1
    assert ended == names


async def test_no_more_children_than_allowed_work_at_once(tmp_path: Path) -> None:
    async with Executors(threads=1, processes=2, files=FileStore(tmp_path)) as pool:
        pids = await asyncio.gather(*(pool.run(execution(sample.process_pid)) for _ in range(6)))
    assert len(set(pids)) == 2


async def test_a_task_in_a_process_knows_its_job_and_opens_its_files(executors: Executors, tmp_path: Path) -> None:
    async with FileStore(tmp_path).create("j1", 0, name="a.txt", content_type=None) as writer:
        await writer.write(b"12345")
    result = await executors.run(execution(sample.process_size, {"file": writer.file.model_dump()}))
    assert msgspec.json.decode(result) == ["j1", 2, 5, "process_size", 5]


async def test_a_task_may_have_another_name_than_its_function(executors: Executors) -> None:
    assert await executors.run(execution(sample.process_double, {"number": 4})) == b"8"


async def test_a_task_in_a_process_finds_standard_input_empty(executors: Executors) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await executors.run(execution(sample.process_stdin)) == b'""'


# What a process says


async def test_everything_a_process_says_arrives_in_order_before_its_result(executors: Executors) -> None:
    spoken = Spoken()
    await executors.run(execution(sample.process_talks, {"steps": 3000}, outbox=spoken.outbox))
    *chunks, last = spoken.read()
    assert chunks == list(range(3000))
    assert last == {"level": "info", "message": "the last word"}
    progress = spoken.batches[-1].progress
    assert progress is not None
    assert (progress.current, progress.total, progress.message) == (3000, 3000, "step 2999")


async def test_log_lines_dropped_in_a_process_are_counted_in_the_worker(executors: Executors) -> None:
    spoken = Spoken()
    await executors.run(execution(sample.process_floods, {"lines": 40_000}, outbox=spoken.outbox))
    lines = spoken.logs()
    assert lines[-1] == "39999"
    assert len(lines) + sum(batch.logs_dropped for batch in spoken.batches) == 40_000


async def test_speaking_in_a_process_is_heard_while_it_runs(executors: Executors) -> None:
    spoken = Spoken()
    running = asyncio.create_task(executors.run(execution(sample.process_sleeps, outbox=spoken.outbox)))
    assert (await spoken.first())["message"].isdigit()
    assert not running.done()
    await cancelled(running)


# Failures

RAISING = [sample.loop_raises, sample.thread_raises, sample.process_raises]
WRONG_RESULT = [sample.loop_wrong_result, sample.process_wrong_result]
WRONG_INPUT = [sample.add, sample.thread_add, sample.process_add]


@pytest.mark.parametrize("task", WRONG_INPUT, ids=lambda task: task.executor)
async def test_an_invalid_input_is_named_with_its_pointer(executors: Executors, task: Task) -> None:
    with pytest.raises(InvalidInput) as caught:
        await executors.run(execution(task, {"a": "many"}))
    assert [error["pointer"] for error in caught.value.errors] == ["/a"]


@pytest.mark.parametrize(
    "task", [sample.loop_wrong_result, sample.process_wrong_result], ids=lambda task: task.executor
)
async def test_a_result_that_breaks_its_promise_is_an_invalid_output(executors: Executors, task: Task) -> None:
    with pytest.raises(InvalidOutput, match="should be a valid integer") as caught:
        await executors.run(execution(task))
    assert "no number" not in caught.value.detail


@pytest.mark.parametrize("task", RAISING, ids=lambda task: task.executor)
async def test_a_task_error_passes_through_with_all_it_says(executors: Executors, task: Task) -> None:
    with pytest.raises(TaskError) as caught:
        await executors.run(execution(task, {"kind": "task"}))
    error = caught.value
    assert (error.detail, error.http_status, error.problem_code, error.retryable) == ("too poor", 402, "no-money", True)


async def test_a_task_error_that_says_odd_things_still_leaves_its_process(executors: Executors) -> None:
    with pytest.raises(TaskError, match="not a string"):
        await executors.run(execution(sample.process_raises, {"kind": "odd-task"}))


@pytest.mark.parametrize("task", RAISING, ids=lambda task: task.executor)
@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("value", "ValueError: bad value"),
        ("exit", "SystemExit: 7"),
        ("interrupt", "KeyboardInterrupt"),
        ("cancelled", "CancelledError"),
        ("job-cancelled", "JobCancelled"),
        ("broken", "Broken: <exception str() failed>"),
        ("undecodable", "FileNotFoundError: /caf?"),
        ("input", "InvalidInput: not the caller's"),
    ],
)
async def test_whatever_a_task_raises_ends_only_its_job(
    executors: Executors, task: Task, kind: str, detail: str
) -> None:
    with pytest.raises(TaskRaised) as caught:
        await executors.run(execution(task, {"kind": kind}))
    assert caught.value.detail == detail
    assert "_raise" in caught.value.traceback_text
    assert (caught.value.status, caught.value.code) == (500, "task-raised")


@pytest.mark.parametrize("task", [sample.thread_raises, sample.process_raises], ids=lambda task: task.executor)
async def test_stop_iteration_cannot_confuse_a_future(executors: Executors, task: Task) -> None:
    with pytest.raises(TaskRaised, match="StopIteration"):
        await executors.run(execution(task, {"kind": "stop"}))


async def test_a_huge_message_is_cut(executors: Executors) -> None:
    with pytest.raises(TaskRaised) as caught:
        await executors.run(execution(sample.thread_raises, {"kind": "huge"}))
    assert len(caught.value.detail) < 10_000


@pytest.mark.parametrize("task", [sample.thread_picky, sample.process_picky], ids=lambda task: task.executor)
async def test_a_validator_that_raises_oddly_counts_as_the_task(executors: Executors, task: Task) -> None:
    with pytest.raises(TaskRaised, match="RuntimeError: refused 1"):
        await executors.run(execution(task, {"value": 1}))


@pytest.mark.parametrize(
    ("how", "reason"), [("exit", "exit code 3"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("closefds", "SIGKILL")]
)
async def test_a_process_that_dies_fails_its_job_and_is_replaced(executors: Executors, how: str, reason: str) -> None:
    with pytest.raises(TaskCrashed, match=reason):
        await executors.run(execution(sample.process_dies, {"how": how}))
    assert await executors.run(execution(sample.process_add, {"a": 1})) == b'{"total":2}'


async def test_a_crash_is_noticed_and_cleared_while_a_fork_of_the_process_lives(
    executors: Executors, tmp_path: Path
) -> None:
    path = tmp_path / "fork"
    with pytest.raises(TaskCrashed, match="exit code 4"):
        async with asyncio.timeout(PATIENCE):
            await executors.run(execution(sample.process_forks, {"path": str(path)}))
    with suppress(ProcessLookupError):
        await gone(int(path.read_text()))()


async def test_a_child_that_died_between_jobs_costs_no_job(executors: Executors) -> None:
    pid = int(await executors.run(execution(sample.process_pid)))
    is_gone = gone(pid)
    os.kill(pid, signal.SIGKILL)
    await is_gone()
    assert int(await executors.run(execution(sample.process_pid))) != pid


async def test_a_task_that_a_child_cannot_import_is_a_wrong_set_up(executors: Executors) -> None:
    with pytest.raises(ConfigurationError, match="inside a function"):
        await executors.run(execution(sample.nested()))


async def test_a_task_that_its_module_lost_is_a_wrong_set_up(
    executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample.process_double.function, "__qualname__", "moved")
    with pytest.raises(ConfigurationError, match="not an attribute of module"):
        await executors.run(execution(sample.process_double, {"number": 1}))


# Cancellation


async def test_cancelling_reaches_the_coroutine(executors: Executors) -> None:
    spoken = Spoken()
    attempt = execution(sample.loop_forever, outbox=spoken.outbox)
    running = asyncio.create_task(executors.run(attempt))
    await spoken.first()
    await cancelled(running)
    assert spoken.logs() == ["started", "cleaned up"]
    assert attempt.cancelled.is_set()


async def test_a_timeout_ends_a_coroutine_as_a_timeout(executors: Executors) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await executors.run(execution(sample.loop_forever))


async def test_cancelling_tells_the_thread_and_waits_for_its_end(executors: Executors) -> None:
    spoken = Spoken()
    running = asyncio.create_task(executors.run(execution(sample.thread_until_cancelled, outbox=spoken.outbox)))
    await spoken.anything()
    await cancelled(running)
    assert spoken.logs() == ["cleaned up"]


async def test_cancelling_twice_does_not_abandon_a_thread(executors: Executors) -> None:
    started, release = threading.Event(), threading.Event()
    task = blocking(started, release)
    running = asyncio.create_task(executors.run(execution(task)))
    await asyncio.to_thread(started.wait, PATIENCE)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=0.02)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=0.02)
    assert not done
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_job_that_waits_for_a_thread_is_cancelled_at_once_and_never_runs(tmp_path: Path) -> None:
    started, release, never = threading.Event(), threading.Event(), threading.Event()
    async with Executors(threads=1, processes=1, files=FileStore(tmp_path)) as executors:
        first = asyncio.create_task(executors.run(execution(blocking(started, release))))
        await asyncio.to_thread(started.wait, PATIENCE)
        second = asyncio.create_task(executors.run(execution(blocking(never, release))))
        await asyncio.sleep(0)
        await cancelled(second)
        release.set()
        await first
    assert not never.is_set()


async def test_leaving_does_not_wait_for_a_thread_that_is_stuck(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()
    async with Executors(threads=1, processes=1, files=FileStore(tmp_path)) as executors:
        running = asyncio.create_task(executors.run(execution(blocking(started, release))))
        await asyncio.to_thread(started.wait, PATIENCE)
    assert not running.done()
    release.set()
    await running


async def test_cancelling_interrupts_a_process_in_a_system_call_and_its_finally_runs(tmp_path: Path) -> None:
    spoken = Spoken()
    # The grace is long: on a busy machine the child's `finally` may have to wait for its turn.
    async with Executors(threads=1, processes=1, files=FileStore(tmp_path), kill_grace=30) as executors:
        running = asyncio.create_task(executors.run(execution(sample.process_sleeps, outbox=spoken.outbox)))
        is_gone = gone(int((await spoken.first())["message"]))
        await cancelled(running)
        assert spoken.logs()[-1] == "cleaned up"
        await is_gone()


async def test_a_process_that_will_not_stop_is_killed_with_its_own_children(executors: Executors) -> None:
    spoken = Spoken()
    running = asyncio.create_task(executors.run(execution(sample.process_spins, outbox=spoken.outbox)))
    processes = [gone(pid) for pid in await spoken.first()]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await cancelled(running)
    assert loop.time() - began < 0.3 + 2
    assert "not now" in spoken.logs()
    for is_gone in processes:
        await is_gone()
    assert await executors.run(execution(sample.process_add, {"a": 1})) == b'{"total":2}'


async def test_a_process_that_holds_the_gil_is_killed(executors: Executors, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    os.mkfifo(path)
    running = asyncio.create_task(executors.run(execution(sample.process_holds_the_gil, {"path": str(path)})))
    is_gone = gone(msgspec.json.decode(await asyncio.to_thread(path.read_text))[0])
    await cancelled(running)
    await is_gone()


async def test_cancelling_twice_still_waits_for_the_end_of_the_process(executors: Executors) -> None:
    spoken = Spoken()
    running = asyncio.create_task(executors.run(execution(sample.process_spins, outbox=spoken.outbox)))
    processes = [gone(pid) for pid in await spoken.first()]
    running.cancel()
    await asyncio.sleep(0)
    await cancelled(running)
    for is_gone in processes:
        await is_gone()


async def test_a_job_that_waits_for_a_process_is_cancelled_at_once(executors: Executors) -> None:
    spoken = Spoken()
    first = asyncio.create_task(executors.run(execution(sample.process_sleeps, outbox=spoken.outbox)))
    await spoken.first()
    second = asyncio.create_task(executors.run(execution(sample.process_add, {"a": 1})))
    await asyncio.sleep(0)
    await cancelled(second)
    await cancelled(first)


async def test_a_job_cancelled_while_its_process_starts_leaves_nothing(executors: Executors) -> None:
    running = asyncio.create_task(executors.run(execution(sample.process_sleeps)))
    await asyncio.sleep(0)
    await cancelled(running)
    assert await executors.run(execution(sample.process_add, {"a": 1})) == b'{"total":2}'


async def test_a_signal_that_the_worker_did_not_mean_stops_no_job(executors: Executors) -> None:
    assert await executors.run(execution(sample.process_ignores_sigterm_of_strangers)) == b'"survived"'


# Nobody is left behind


async def test_leaving_ends_every_child_and_the_jobs_in_them(tmp_path: Path) -> None:
    async with Executors(threads=1, processes=2, files=FileStore(tmp_path)) as executors:
        idle = gone(int(await executors.run(execution(sample.process_pid))))
        spoken = Spoken()
        running = [
            asyncio.create_task(executors.run(execution(sample.process_spins, outbox=spoken.outbox))),
            asyncio.create_task(executors.run(execution(sample.process_sleeps))),
            asyncio.create_task(executors.run(execution(sample.process_sleeps))),
        ]
        busy = [gone(pid) for pid in await spoken.first()]
    ends = await asyncio.gather(*running, return_exceptions=True)
    assert [type(end) for end in ends] == [TaskCrashed] * 3
    for is_gone in (idle, *busy):
        await is_gone()


ORPHANING = """
import asyncio, sys
from pathlib import Path
from jobstream.cancellation import Flag
from jobstream.files import FileStore
from jobstream.outbox import Outbox
from jobstream_workers.executors import Execution, Executors
from tests import sample_tasks

async def main():
    def tell():
        for entry in outbox.take().entries:
            print(entry.data.decode(), flush=True)

    outbox = Outbox(tell)
    async with Executors(threads=1, processes=2, files=FileStore(Path("."))) as executors:
        await executors.run(Execution(sample_tasks.process_add, {"a": 1}, "j0", 1, 1, outbox, Flag()))
        task = getattr(sample_tasks, sys.argv[1])
        await executors.run(Execution(task, {}, "j1", 1, 1, outbox, Flag()))

asyncio.run(main())
"""


@pytest.mark.parametrize("task", [sample.process_spins, sample.process_holds_the_gil], ids=lambda task: task.name)
async def test_no_process_outlives_a_worker_that_was_killed(task: Task) -> None:
    root = Path(__file__).parents[2]
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHANING, task.name, stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert worker.stdout is not None
    async with asyncio.timeout(PATIENCE):
        processes = [gone(pid) for pid in msgspec.json.decode(await worker.stdout.readline())]
    worker.kill()
    await worker.wait()
    for is_gone in processes:
        await is_gone()


# A task that says more than anybody writes

SHOUTING = [sample.loop_shouts, sample.thread_shouts, sample.process_shouts]


async def full(outbox: Outbox) -> None:
    """Return when no chunk finds room any more."""
    async with asyncio.timeout(PATIENCE):
        while not outbox.full:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("task", SHOUTING, ids=lambda task: task.executor)
async def test_a_task_that_is_held_back_goes_on_when_there_is_room(executors: Executors, task: Task) -> None:
    outbox = Outbox(lambda: None, never_block=threading.get_ident())
    running = asyncio.create_task(executors.run(execution(task, {"count": 200}, outbox=outbox)))
    numbers: list[int] = []
    while len(numbers) <= 150:
        await full(outbox)
        entries = outbox.take().entries
        assert sum(len(entry.data) for entry in entries) < 3 * CHUNK_BYTES
        numbers += [msgspec.json.decode(entry.data)[0] for entry in entries]
    async with asyncio.timeout(PATIENCE):
        while not running.done():
            numbers += [msgspec.json.decode(entry.data)[0] for entry in outbox.take().entries]
            await asyncio.wait([running], timeout=0.005)
    assert await running == b"200"
    numbers += [msgspec.json.decode(entry.data)[0] for entry in outbox.take().entries]
    assert numbers == list(range(200))


@pytest.mark.parametrize("task", SHOUTING, ids=lambda task: task.executor)
async def test_a_task_that_is_held_back_is_cancelled_at_once(tmp_path: Path, task: Task) -> None:
    outbox = Outbox(lambda: None, never_block=threading.get_ident())
    async with Executors(threads=1, processes=1, files=FileStore(tmp_path), kill_grace=PATIENCE) as executors:
        running = asyncio.create_task(executors.run(execution(task, outbox=outbox)))
        await full(outbox)
        began = time.monotonic()
        await cancelled(running)
        assert time.monotonic() - began < PATIENCE / 2  # not killed: it has heard of it


def blocking(started: threading.Event, release: threading.Event) -> Task:
    """A task that holds its thread, whatever it is told."""
    from jobstream import task

    def hold() -> None:
        started.set()
        assert release.wait(PATIENCE)

    return task(name="hold")(hold)


def test_every_failure_is_one_of_ours() -> None:
    assert all(issubclass(kind, JobstreamError) for kind in (TaskRaised, TaskCrashed, InvalidOutput))
