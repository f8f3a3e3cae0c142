"""`jobstream download`: files of a job, with a bar for each while it comes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import click

from jobstream.client import Client, JobFileInfo
from jobstream.client.transfer import OnProgress
from jobstream_cli.exits import Exit
from jobstream_cli.screen import clean, look_of
from jobstream_cli.service import Service


async def download(service: Service, job_id: str, names: Sequence[str], *, to: str | None) -> Exit:
    """Fetch the files of these names, or all that the result has; print their paths."""
    async with Client(service.url, token=service.token) as client:
        job = client.job(job_id)
        files = await job.files()
        wanted = [file for file in files if (file.name in names if names else file.role == "result")]
        missing = sorted(set(names) - {file.name for file in wanted})
        if missing or not wanted:
            known = ", ".join(file.name for file in files) or "none"
            said = f"no file named {missing[0]!r}" if missing else "no file in its result"
            click.echo(clean(f"{job_id} has {said}; files: {known}"), err=True)
            return Exit.NOT_FOUND
        if len(wanted) > 1 and to is not None and not os.path.isdir(to):  # noqa: ASYNC240 (there is nobody to wait)
            raise click.UsageError(f"{to} is no directory, and there are {len(wanted)} files.")
        for file in wanted:
            with _bar(file) as on_progress:
                path = await job.download(file.name, to, on_progress=on_progress)
            click.echo(str(path))
    return Exit.OK


@contextlib.contextmanager
def _bar(file: JobFileInfo) -> Iterator[OnProgress | None]:
    """On a terminal only."""
    if not look_of(sys.stderr).screen:
        yield None
        return
    with click.progressbar(length=file.size, label=clean(file.name), file=sys.stderr) as bar:
        yield lambda at, size: bar.update(at - bar.pos)
