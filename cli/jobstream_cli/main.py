"""The `jobstream` command. Only click and the standard library are imported here; commands import what they need."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Literal, NoReturn, TextIO, TypeVar

import click

from jobstream_cli.exits import Exit
from jobstream_cli.service import DEFAULT_URL, Service

LIVE = "scheduled queued running retrying".split()
STATUSES = "scheduled queued running retrying cancelling succeeded failed cancelled".split()

SCOPES = "submit read cancel webhooks metrics admin".split()

Command = TypeVar("Command", bound=Callable[..., object])


def matching(command: Command) -> Command:
    """Options that say which jobs."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All jobs."),
        click.option("--search", "q", metavar="WORDS", help="Jobs whose input or tags say all these words."),
        click.option("--tag", help="Jobs with this tag."),
        click.option("--task", help="Jobs of this task."),
    ):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="JSON on standard output, and no progress.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="jobstream", prog_name="jobstream")
@click.option(
    "--url",
    envvar="JOBSTREAM_URL",
    default=DEFAULT_URL,
    show_default=True,
    metavar="URL",
    help="The service. [env: JOBSTREAM_URL]",
)
@click.option("--token", envvar="JOBSTREAM_TOKEN", metavar="TOKEN", help="A bearer token. [env: JOBSTREAM_TOKEN]")
@click.pass_context
def cli(context: click.Context, url: str, token: str | None) -> None:
    """Hand work over HTTP, keep the ticket, watch it live.

    Data goes to standard output, progress to standard error.

    \b
    Exit codes: 0 succeeded, 1 a job failed, 2 usage, 3 cancelled, 4 not found, 5 no permission,
    6 rejected, 7 service unreachable, 124 time is over and the job goes on, 130 detached by Ctrl-C.
    With several jobs the worst one counts.
    """
    context.obj = Service(url, token)


@cli.command()
@click.option("--host", envvar="JOBSTREAM_HOST", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), envvar=["JOBSTREAM_PORT", "PORT"], default=8000, show_default=True
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option(
    "--redis",
    type=click.Choice(["auto", "own", "server", "fake"]),
    envvar="JOBSTREAM_DEV_REDIS",
    default="auto",
    show_default=True,
    help="auto: JOBSTREAM_REDIS_URL, else own. own: server, else fake. server: a valkey-server or redis-server of our "
    "own. fake: fakeredis, in memory. [env: JOBSTREAM_DEV_REDIS]",
)
@click.option(
    "--app",
    metavar="MODULE:APP",
    help="A FastAPI app of yours: it is served at the port, and workers call its background tasks. The service is then "
    "at the next port.",
)
def dev(host: str, port: int, workers: int, redis: Literal["auto", "own", "server", "fake"], app: str | None) -> None:
    """Run everything here: API, worker and, if need be, a Redis of its own. Ctrl-C stops it all (exit code 0)."""
    from jobstream_cli.dev import DevOptions, run

    if app is not None and ":" not in app:
        raise click.BadParameter("name the module and the app in it: shop:app", param_hint="--app")
    with _configuration_errors():
        raise SystemExit(run(DevOptions(host=host, port=port, workers=workers, redis=redis, app=app)))


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), envvar="PORT", help="Port to use; 8000 or the next free one.")
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave it running afterwards, until Ctrl-C. [env: KEEP=1]")
def demo(port: int | None, keep: bool) -> None:
    """See it work: start everything, run all four built-in tasks on real input, show their progress and results."""
    from jobstream_cli.demo import run

    raise SystemExit(run(port=port, keep=keep))


@cli.command()
@click.option("--host", help="Address to listen on. [env: JOBSTREAM_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="[env: JOBSTREAM_PORT]")
def api(host: str | None, port: int | None) -> None:
    """Run the HTTP process. Needs JOBSTREAM_REDIS_URL."""
    from jobstream_api.main import main as serve
    from jobstream_api.settings import ApiSettings

    given = {"host": host, "port": port}
    with _configuration_errors():
        serve(ApiSettings.model_validate({name: value for name, value in given.items() if value is not None}))


@cli.command()
@click.option(
    "--background",
    metavar="MODULES",
    help="Modules, separated by commas, whose functions it calls as background tasks. [env: JOBSTREAM_BACKGROUND]",
)
def worker(background: str | None) -> None:
    """Run a worker process. Needs JOBSTREAM_REDIS_URL."""
    from jobstream_workers.main import main as work
    from jobstream_workers.settings import WorkerSettings

    with _configuration_errors():
        work(WorkerSettings() if background is None else WorkerSettings(background=background))


@cli.command()
@click.argument("task", required=False)
@click.argument("fields", nargs=-1, metavar="[key=text | key:=json | key=@file | @object.json | -]...")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="[FIELD=]PATH",
    help="Upload a file, to the field `files` unless another is named; may be repeated.",
)
@click.option(
    "--batch",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help='Many jobs instead of one, a line each: {"task": …, "input": {…}}, and options; `-`: standard input.',
)
@click.option("--queue", help="The queue, if not the task's own.")
@click.option("--tag", "tags", multiple=True, help="A tag to find the job by; may be repeated.")
@click.option(
    "--after", multiple=True, metavar="ID", help="Run it when this job or batch has succeeded; may be repeated."
)
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Start it so much later.")
@click.option("--priority", type=int, help="A whole number; higher ones run first.")
@click.option("--key", help="Idempotency key: the same key never makes a second job.")
@click.option("--watch", is_flag=True, help="Show the progress until the end, then print the result.")
@click.option("--wait", is_flag=True, help="Wait in silence until the end, then print the result.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Watch or wait no longer than this.")
@as_json
@click.pass_obj
def submit(
    service: Service,
    task: str | None,
    fields: tuple[str, ...],
    files: tuple[str, ...],
    batch: TextIO | None,
    queue: str | None,
    tags: tuple[str, ...],
    after: tuple[str, ...],
    delay: float | None,
    priority: int | None,
    key: str | None,
    watch: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Hand in a job and print its id; with --watch or --wait its result.

    \b
    jobstream submit words text='to be or not to be' --watch
    jobstream submit primes limit:=1000000
    jobstream submit files --file a.csv --file b.csv --wait
    jobstream submit --batch jobs.ndjson --tag nightly

    A batch is stored in parts of up to 10,000 jobs, each of them whole or not at all, and the ids are printed. Its jobs
    have the queue, tags, delay, priority and predecessors (--after) that are given here, unless their lines say
    otherwise. In a line "after" may have numbers, too: of jobs before it in the same part, the first is 0.
    """
    from jobstream_cli import batches, commands
    from jobstream_cli.fields import parse_fields, parse_files

    if batch is not None:
        if task is not None or files or watch or wait or timeout is not None:
            raise click.UsageError("--batch takes no task, fields or files, and does not wait.")
        defaults = batches.Defaults(queue=queue, tags=tags, after=after, delay=delay, priority=priority)
        _run(batches.submit(service, batch, defaults, key=key, as_json=as_json))
    if task is None:
        raise click.UsageError("Missing argument 'TASK'.")
    order = commands.Order(
        task,
        parse_fields(fields),
        parse_files(files),
        queue=queue,
        tags=tags,
        after=after,
        delay=delay,
        priority=priority,
        key=key,
    )
    follow: commands.Follow = "watch" if watch else "wait" if wait else "no"
    _run(commands.submit(service, order, follow=follow, timeout=timeout, as_json=as_json))


@cli.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Watch no longer than this.")
@click.option("--logs", is_flag=True, help="Show the jobs' log lines, too.")
@as_json
@click.pass_obj
def watch(service: Service, ids: tuple[str, ...], timeout: float | None, logs: bool, as_json: bool) -> None:
    """Show the progress of jobs until they are done; `-` reads ids from standard input.

    Ctrl-C only stops watching: the jobs go on. With --json every event is a line of its own.
    """
    from jobstream_cli import commands

    _run(commands.watch(service, _ids(ids), timeout=timeout, logs=logs, as_json=as_json))


@cli.command()
@click.argument("job_id", metavar="ID")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--to",
    type=click.Path(),
    metavar="PATH",
    help="Where to put it, or the directory for it; this one unless it is given.",
)
@click.pass_obj
def download(service: Service, job_id: str, names: tuple[str, ...], to: str | None) -> None:
    """Fetch files of a job: those of its result, or those that are named; their paths are printed.

    A download that is cut goes on where it was, and what has arrived is checked against its SHA-256.
    """
    from jobstream_cli import downloads

    _run(downloads.download(service, job_id, names, to=to))


@cli.command(name="list")
@click.option("--status", type=click.Choice(STATUSES), metavar="STATUS", help=f"One of {', '.join(STATUSES)}.")
@click.option("--task", help="Jobs of this task only.")
@click.option("--tag", help="Jobs with this tag only.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--ids", "only_ids", is_flag=True, help="Print nothing but ids, one a line.")
@as_json
@click.pass_obj
def list_jobs(
    service: Service,
    status: str | None,
    task: str | None,
    tag: str | None,
    limit: int,
    only_ids: bool,
    as_json: bool,
) -> None:
    """Print the latest jobs, the newest first. With --json one object a line."""
    from jobstream_cli import commands

    form: commands.ListForm = "json" if as_json else "ids" if only_ids else "table"
    _run(commands.list_jobs(service, status=status, task=task, tag=tag, limit=limit, form=form))


@cli.command()
@click.argument("job_id", metavar="ID")
@as_json
@click.pass_obj
def show(service: Service, job_id: str, as_json: bool) -> None:
    """Print all there is to know of a job."""
    from jobstream_cli import commands

    _run(commands.show(service, job_id, as_json=as_json))


@cli.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option(
    "--status", type=click.Choice(["scheduled", "queued", "retrying", "running"]), help="All jobs in this state."
)
@matching
@as_json
@click.pass_obj
def cancel(
    service: Service,
    ids: tuple[str, ...],
    status: str | None,
    task: str | None,
    tag: str | None,
    q: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Ask jobs to stop: those that are named, or all that match and are there now.

    `-` reads ids from standard input; what became of each is printed. All that match are stopped by a job, which is
    followed; Ctrl-C only stops following.
    """
    from jobstream_cli import bulk, commands

    wanted: bulk.BulkFilter = {"status": status, "task": task, "tag": tag, "q": q, "all": everything}
    if any(wanted.values()) == bool(ids):
        raise click.UsageError("Name jobs, or say which: --status, --task, --tag, --search or --all.")
    if ids:
        _run(commands.change(service, _ids(ids), "cancel", as_json=as_json))
    _run(bulk.change(service, "cancel", wanted, as_json=as_json))


@cli.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--status", type=click.Choice(["failed", "cancelled"]), help="All jobs in this state.")
@matching
@as_json
@click.pass_obj
def retry(
    service: Service,
    ids: tuple[str, ...],
    status: str | None,
    task: str | None,
    tag: str | None,
    q: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Run failed or cancelled jobs again, under their ids: those that are named, or all failed ones that match.

    `-` reads ids from standard input. All that match are run again by a job, which is followed; --status cancelled is
    for jobs that were cancelled.
    """
    from jobstream_cli import bulk, commands

    wanted: bulk.BulkFilter = {"status": status, "task": task, "tag": tag, "q": q, "all": everything}
    if any(wanted.values()) == bool(ids):
        raise click.UsageError("Name jobs, or say which: --status, --task, --tag, --search or --all.")
    if ids:
        _run(commands.change(service, _ids(ids), "retry", as_json=as_json))
    _run(bulk.change(service, "retry", wanted, as_json=as_json))


@cli.group()
def keys() -> None:
    """API keys: make, list, rotate and revoke them. Needs JOBSTREAM_REDIS_URL."""


@keys.command(name="create")
@click.option("--tenant", required=True, help="Whose jobs it submits and sees.")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True, help="May be repeated.")
@click.option("--name", default="", help="What it is for, to know it by in the list.")
@click.option("--expires", metavar="DURATION", help="Valid for so long: 90d, 12h. For ever, if not given.")
@as_json
def create_key(tenant: str, scopes: tuple[str, ...], name: str, expires: str | None, as_json: bool) -> None:
    """Make a key and print it: the only time that it is shown.

    \b
    jobstream keys create --tenant acme --scope submit --scope read --expires 90d
    """
    from jobstream_cli import keys

    lifetime = None if expires is None else keys.seconds(expires)
    _run(
        keys.on_redis(
            lambda client: keys.create(
                client, tenant=tenant, scopes=scopes, name=name, lifetime=lifetime, as_json=as_json
            )
        )
    )


@keys.command(name="list")
@as_json
def list_keys(as_json: bool) -> None:
    """Print all keys, without their secrets. With --json one object a line."""
    from jobstream_cli import keys

    _run(keys.on_redis(lambda client: keys.show(client, as_json=as_json)))


@keys.command(name="rotate")
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap", metavar="DURATION", default="24h", show_default=True, help="How long the old secret stays valid."
)
@as_json
def rotate_key(key_id: str, overlap: str, as_json: bool) -> None:
    """Give a key a new secret and print it; for a while the old one is valid, too."""
    from jobstream_cli import keys

    seconds = keys.seconds(overlap)
    _run(keys.on_redis(lambda client: keys.rotate(client, key_id, overlap=seconds, as_json=as_json)))


@keys.command(name="revoke")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def revoke_keys(ids: tuple[str, ...]) -> None:
    """Forget keys: within five seconds nobody gets in with them any more."""
    from jobstream_cli import keys

    _run(keys.on_redis(lambda client: keys.revoke(client, ids)))


@cli.group()
def limits() -> None:
    """Limits of single tenants, where they are to differ from the settings. Needs JOBSTREAM_REDIS_URL."""


@limits.command(name="set")
@click.argument("tenant")
@click.option("--rate", help="Jobs it may submit in a time: 100/m, 1000/10m; 0: any number.")
@click.option("--running", type=click.IntRange(0), help="Jobs of it that run at once; 0: any number.")
@click.option("--weight", type=click.IntRange(1, 100), help="Its share of the workers, against 1 of others.")
def set_limits(tenant: str, rate: str | None, running: int | None, weight: int | None) -> None:
    """Set limits of a tenant; those that are not named stay as they are. They count at once."""
    from jobstream_cli import keys, limits

    if (rate, running, weight) == (None, None, None):
        raise click.UsageError("give --rate, --running or --weight")
    _run(keys.on_redis(lambda client: limits.change(client, tenant, rate=rate, running=running, weight=weight)))


@limits.command(name="list")
@as_json
def list_limits(as_json: bool) -> None:
    """Print the tenants that have limits of their own. With --json one object a line."""
    from jobstream_cli import keys, limits

    _run(keys.on_redis(lambda client: limits.show(client, as_json=as_json)))


@limits.command(name="clear")
@click.argument("tenants", nargs=-1, required=True, metavar="TENANT...")
def clear_limits(tenants: tuple[str, ...]) -> None:
    """Forget the limits of tenants: the settings' count again."""
    from jobstream_cli import keys, limits

    _run(keys.on_redis(lambda client: limits.clear(client, tenants)))


@cli.group()
def webhooks() -> None:
    """Webhooks: what signs them. Needs JOBSTREAM_REDIS_URL, and JOBSTREAM_WEBHOOK_SECRET as the service has it."""


@webhooks.command(name="secret")
@click.option("--tenant", help="Whose jobs. Without it: jobs of nobody, as in a service without authentication.")
def callback_secret(tenant: str | None) -> None:
    """Print the secret by which receivers verify what goes to a `callback_url`."""
    from jobstream_cli import webhooks

    with _configuration_errors():
        _run(webhooks.secret(tenant))


@webhooks.command(name="rotate")
@click.option("--tenant", help="Whose jobs. Without it: jobs of nobody, as in a service without authentication.")
@click.option(
    "--overlap",
    type=click.FloatRange(min=0),
    default=86_400.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long the old one signs, too.",
)
def rotate_callback_secret(tenant: str | None, overlap: float) -> None:
    """Make another secret for what goes to a `callback_url`, and print what signs now."""
    from jobstream_cli import webhooks

    with _configuration_errors():
        _run(webhooks.rotate(tenant, overlap=overlap))


of_owner = click.option("--owner", metavar="TENANT", help="Whose, for admins.")


@cli.group()
def schedules() -> None:
    """Schedules: jobs that are handed in again and again, when a cron says so."""


@schedules.command(name="list")
@of_owner
@as_json
@click.pass_obj
def list_schedules(service: Service, owner: str | None, as_json: bool) -> None:
    """Print all schedules: the tasks' own, then those that were made here or over HTTP."""
    from jobstream_cli import schedules

    _run(schedules.list_all(service, owner=owner, as_json=as_json))


@schedules.command(name="create")
@click.argument("name")
@click.argument("task")
@click.argument("fields", nargs=-1, metavar="[key=text | key:=json | key=@file | @object.json | -]...")
@click.option("--cron", required=True, metavar="'M H D M W'", help="Minute, hour, day, month, day of the week.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose local times these are: an IANA name.")
@click.option("--queue", help="The queue, if not the task's own.")
@click.option("--tag", "tags", multiple=True, help="A tag of its jobs; may be repeated.")
@click.option("--priority", type=int, help="A whole number; higher ones run first.")
@of_owner
@as_json
@click.pass_obj
def create_schedule(
    service: Service,
    name: str,
    task: str,
    fields: tuple[str, ...],
    cron: str,
    timezone: str,
    queue: str | None,
    tags: tuple[str, ...],
    priority: int | None,
    owner: str | None,
    as_json: bool,
) -> None:
    """Make a schedule, or give it another definition; the same again changes nothing.

    \b
    jobstream schedules create nightly words text='to be' --cron '30 3 * * *' --timezone Europe/Berlin
    """
    from jobstream_cli import schedules
    from jobstream_cli.fields import parse_fields

    plan = schedules.Plan(name, task, parse_fields(fields), cron, timezone, queue, tags, priority)
    _run(schedules.create(service, plan, owner=owner, as_json=as_json))


@schedules.command()
@click.argument("name")
@of_owner
@as_json
@click.pass_obj
def pause(service: Service, name: str, owner: str | None, as_json: bool) -> None:
    """No more ticks; `task:` and a task's name is the task's own schedule."""
    from jobstream_cli import schedules

    _run(schedules.change(service, name, "pause", owner=owner, as_json=as_json))


@schedules.command()
@click.argument("name")
@of_owner
@as_json
@click.pass_obj
def resume(service: Service, name: str, owner: str | None, as_json: bool) -> None:
    """Ticks again, from the next one on."""
    from jobstream_cli import schedules

    _run(schedules.change(service, name, "resume", owner=owner, as_json=as_json))


@schedules.command(name="run")
@click.argument("name")
@of_owner
@click.pass_obj
def run_schedule(service: Service, name: str, owner: str | None) -> None:
    """Run it once now, whatever its cron says, and print the job's id."""
    from jobstream_cli import schedules

    _run(schedules.run(service, name, owner=owner))


@schedules.command(name="delete")
@click.argument("name")
@of_owner
@click.pass_obj
def delete_schedule(service: Service, name: str, owner: str | None) -> None:
    """Forget it; its jobs stay."""
    from jobstream_cli import schedules

    _run(schedules.delete(service, name, owner=owner))


@schedules.command(name="next")
@click.argument("name")
@click.option("--count", type=click.IntRange(1, 100), default=10, show_default=True)
@of_owner
@click.pass_obj
def next_ticks(service: Service, name: str, count: int, owner: str | None) -> None:
    """Print when it is due next, paused or not, in UTC."""
    from jobstream_cli import schedules

    _run(schedules.next_ticks(service, name, count=count, owner=owner))


@cli.command()
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    envvar="JOBSTREAM_GRACE_SECONDS",
    metavar="SECONDS",
    help="From SIGTERM to SIGKILL where workers run: terminationGracePeriodSeconds. [env: JOBSTREAM_GRACE_SECONDS]",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all findings.")
def doctor(grace: float | None, strict: bool, as_json: bool) -> None:
    """Look for what is wrong with Redis, workers and API processes, and say what to do. Needs JOBSTREAM_REDIS_URL.

    Exit code 0: nothing is; 1: something loses jobs or holds them up; 7: Redis cannot be reached.
    """
    from jobstream_cli import doctor
    from jobstream_workers.settings import WorkerSettings

    with _configuration_errors():
        _run(doctor.run(grace=grace, drain=WorkerSettings().drain_seconds, strict=strict, as_json=as_json))


@contextlib.contextmanager
def _configuration_errors() -> Iterator[None]:
    """A wrong setting is one sentence and exit code 2, not a traceback."""
    from pydantic import ValidationError

    from jobstream.errors import ConfigurationError

    try:
        yield
    except (ConfigurationError, ValidationError) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(Exit.USAGE) from None


def _ids(arguments: Sequence[str]) -> list[str]:
    """The ids, once each; `-` stands for the first word of each line of standard input."""
    found: list[str] = []
    for argument in arguments:
        if argument == "-":
            found += [line.split()[0] for line in sys.stdin if line.strip()]
        else:
            found.append(argument)
    return list(dict.fromkeys(found))


def _run(command: Coroutine[object, object, Exit]) -> NoReturn:
    """Run a command that speaks to the service; its exit code, or that of what went wrong, becomes ours."""
    from jobstream.client import ClientError
    from jobstream_cli.screen import clean
    from jobstream_cli.views import exit_of

    try:
        code = asyncio.run(command)
    except ClientError as error:
        click.echo(clean(f"error: {error}"), err=True)
        code = exit_of(error)
    except KeyboardInterrupt:
        code = Exit.DETACHED
    raise SystemExit(code)


EXTRAS = {
    "api": "fastapi starlette uvicorn jsonschema_rs python_multipart fastapi_offline jwt cryptography".split(),
    "cli": ["httpx2"],
    "dev-redis": ["fakeredis", "lupa"],
}
"""Which extra of the package brings which module."""


def main() -> None:
    """The entry point of the `jobstream` script."""
    try:
        cli(prog_name="jobstream")
    except ModuleNotFoundError as error:
        extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        click.echo(f"error: {error.name} is not installed; it comes with: pip install 'jobstream[{extra}]'", err=True)
        raise SystemExit(Exit.USAGE) from None
