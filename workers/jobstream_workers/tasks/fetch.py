"""fetch: downloads from a third party, which may be slow, lying, or hostile. An `async def` task that mostly waits."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import httpx2
from pydantic import BaseModel, Field, HttpUrl
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobstream import JobContext, TaskError, task
from jobstream.egress import EgressPolicy
from jobstream_workers.egress import guarded_client

MAX_REDIRECTS = 5


class FetchSettings(BaseSettings):
    """What the task `fetch` may do: `JOBSTREAM_FETCH_…` in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="JOBSTREAM_FETCH_", env_file=".env", extra="ignore", env_ignore_empty=True
    )

    allow: str = Field(
        "",
        description="Networks, addresses and host names that `fetch` may reach although they are private, "
        "separated by commas: 10.0.0.0/8, example.org",
    )
    max_bytes: int = Field(1 << 30, ge=1, description="The largest body that `fetch` reads, in bytes.")
    timeout: float = Field(60.0, gt=0, description="Seconds that `fetch` waits for the next byte.")


class Fetched(BaseModel):
    """What came."""

    url: str = Field(description="Where it came from in the end, after redirects")
    status: int
    content_type: str | None
    size: int = Field(description="Bytes of the body, as they were sent")
    sha256: str
    elapsed: float = Field(description="Seconds from the first request to the last byte")


@task(timeout=3600)
async def fetch(job: JobContext, url: HttpUrl) -> Fetched:
    """Download what is at a URL, and say what came: its status, type, size and SHA-256."""
    settings = FetchSettings()
    client = guarded_client(EgressPolicy.parse(settings.allow), timeout=settings.timeout)
    started, digest, size = time.monotonic(), hashlib.sha256(), 0
    with upstream_faults():
        async with client, answer(job, client, str(url)) as response:
            total = content_length(response)
            refuse_above(settings.max_bytes, total or 0)
            job.progress(0, total, f"Receiving from {response.url.host}")
            async for piece in response.aiter_raw():
                digest.update(piece)
                size += len(piece)
                refuse_above(settings.max_bytes, size)
                job.progress(size)
    return Fetched(
        url=shown(response.url),
        status=response.status_code,
        content_type=response.headers.get("content-type"),
        size=size,
        sha256=digest.hexdigest(),
        elapsed=round(time.monotonic() - started, 3),
    )


@asynccontextmanager
async def answer(job: JobContext, client: httpx2.AsyncClient, url: str) -> AsyncIterator[httpx2.Response]:
    """The answer at the end of the redirects, its body unread. Raises TaskError when there is no good one.

    httpx2 could follow redirects by itself, but reads their bodies, however long.
    """
    request = client.build_request("GET", url, headers={"Accept-Encoding": "identity"})
    for _ in range(MAX_REDIRECTS + 1):
        async with aclosing(await client.send(request, stream=True)) as response:
            if not response.has_redirect_location:
                if response.is_error:
                    raise refusal(response)
                yield response
                return
            following = response.next_request
        if following is None or following.url.scheme not in ("http", "https"):
            raise TaskError(
                f"{shown(request.url)} redirects to what is no web address", status=502, code="bad-redirect"
            )
        job.log(f"{response.status_code}: {shown(request.url)} redirects to {shown(following.url)}")
        request = following
    raise TaskError(f"{url} redirects more than {MAX_REDIRECTS} times", status=502, code="too-many-redirects")


@contextmanager
def upstream_faults() -> Iterator[None]:
    """Say whose fault it was, and whether to try again."""
    try:
        yield
    except httpx2.InvalidURL as error:
        raise TaskError(f"The URL cannot be used: {error}", code="invalid-url") from error
    except httpx2.TimeoutException as error:
        detail = f"{shown(error.request.url)} did not answer in time"
        raise TaskError(detail, status=504, code="upstream-timeout", retryable=True) from error
    except httpx2.RequestError as error:
        detail = f"{shown(error.request.url)} could not be read: {str(error) or type(error).__name__}"
        raise TaskError(detail, status=502, code="upstream-unreachable", retryable=True) from error


def refusal(response: httpx2.Response) -> TaskError:
    """The third party answered, but not with what was asked for."""
    status = response.status_code
    detail = f"{shown(response.url)} answered {status} {response.reason_phrase}".rstrip()
    return TaskError(detail, status=502, code="upstream-status", retryable=status == 429 or status >= 500)


def refuse_above(limit: int, size: int) -> None:
    """Raise TaskError if the body is, or is said to be, larger than `limit` bytes."""
    if size > limit:
        raise TaskError(f"The body is larger than {limit:,} bytes", status=413, code="body-too-large")


def content_length(response: httpx2.Response) -> int | None:
    """How many bytes are to come, if the third party says so."""
    said = response.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdigit() else None


def shown(url: httpx2.URL) -> str:
    """The URL without the password that may be in it."""
    return str(url.copy_with(userinfo=b""))
