"""Every key in Redis: its name, type, owner and lifetime. The only file with a key string.

arq's keys keep arq's names (arq 0.28, constants.py), so that stock arq clients and workers can share a queue with us.
Ids live in one namespace across queues, as in arq.
"""

from __future__ import annotations

from typing import Final

ARQ_QUEUE: Final = "arq:queue"
"""zset id → ms when due, of the default queue; that of another one has `:` and its name behind it."""
ARQ_JOB: Final = "arq:job:"
"""string, the payload {t,f,a,k,et}; from submit to the end, PX the record's."""
ARQ_IN_PROGRESS: Final = "arq:in-progress:"
"""string, the attempt's token `worker#attempt`; PX the lease. Stock arq workers store `1`."""
ARQ_RETRY: Final = "arq:retry:"
"""string, how many attempts have begun; from the first claim to the end, with the record's lifetime."""
ARQ_RESULT: Final = "arq:result:"
"""string, arq's result envelope; PX `arq_keep_result`."""
ARQ_ABORT: Final = "arq:abort"
"""zset id → ms; entries go when the job ends, the sweep removes those of ids that are not queued."""

RECORD: Final = "jobstream:job:"
"""hash, the job's record; expires `ttl` after the end, or when nobody ran it in `LIVE_TTL`. Also that of a batch: it
has `jobs` and counts `n_<status>`; expires 400 days after the submit, or the longest `ttl` of its jobs
after its end."""
LOG: Final = "jobstream:log:"
"""list, the job's durable events as in `EVENTS`; capped; lives as long as the record."""
TOMBSTONE: Final = "jobstream:gone:"
"""string, says that a job was purged, by `=` and its owner (`1`: it had none); 24 h."""
IDEMPOTENCY: Final = "jobstream:idempotency:"
"""hash per Idempotency-Key of an owner's and a task's: `by`, the request that holds it, PX a lease; then `print`
and the record as first answered, 24 h. Of a batch (its task: `jobs/batch`) `first`: its ids count up from there."""
UPLOAD: Final = "jobstream:upload:"
"""string, the job's files are arriving: no sweep may take them for somebody's leavings; an hour after the last sign."""
FILES_SWEPT: Final = "jobstream:files:swept"
"""string, a worker has just looked through the bucket of all files; ten minutes."""
EVENTS: Final = "jobstream:events:"
"""channel, one message per event of a job: `<version> <kind> <ms> <data>`."""

JOURNAL: Final = "jobstream:journal"
"""hash generation, history, seq, bytes, floor: the events of all jobs are wanted in one order; until 10 minutes after
the last process that said so."""
JOURNAL_LOG: Final = "jobstream:journal:log"
"""list, durable events of all jobs, as in `JOURNAL_ENTRY`; capped; lives a minute longer than the journal."""
JOURNAL_ENTRY: Final = "jobstream:journal:entry"
"""channel, every event of every job while the journal is wanted; `jobstream/scripts/prelude.lua` has the layout."""

INDEX: Final = "jobstream:jobs"
"""zset id → created ms, all jobs with a record; entries leave with the sweep of `EXPIRY`."""
INDEX_STATUS: Final = "jobstream:jobs:status:"
"""zset per status, as `INDEX`."""
INDEX_TASK: Final = "jobstream:jobs:task:"
"""zset per task, as `INDEX`."""
INDEX_TAG: Final = "jobstream:jobs:tag:"
"""zset per tag, as `INDEX`."""
INDEX_OWNER: Final = "jobstream:jobs:owner:"
"""zset per owner, as `INDEX`; jobs without an owner are in none."""
INDEX_OWNED: Final = "jobstream:jobs:owned:"
"""zset per status and owner (`<status> <owner>`), as `INDEX`: with an owner no index of all owners' jobs is walked."""
INDEX_WORDS: Final = "jobstream:words:"
"""zset per owner, and one of all jobs (no owner's name), `word ms id` → 0: which jobs' inputs and tags say a word."""
EXPIRY: Final = "jobstream:expiry"
"""zset `id task tag tag… =owner ~word~word… !batch` → ms when the record expires; the sweep takes what is due out of
all indexes."""

IDLE: Final = "jobstream:idle:"
"""zset per queue, worker id → minus the free slots that it found no job for; one leaves when it is woken, or full; an
hour after the last claim."""
CONTROL: Final = "jobstream:control:"
"""channel per worker: `cancel <id>`, and `claim <queue>`, the wake-up: a job is waiting."""
PARKED: Final = "jobstream:parked:"
"""zset per task id → ms when it was due: jobs held back because `max_running` others run; a day after the last one.
Those of owners are in zsets of theirs, `<task> <owner>`, and `=<owner>` stands here, by when its turn came."""
LEFT: Final = "jobstream:left:"
"""zset per queue and task (`<queue>:<task>`), id → ms when it was due: jobs that workers without their task left to
others; a day after the last one."""
LACKED: Final = "jobstream:lacked:"
"""set per queue: the tasks that have, or had, a zset `LEFT`; a day after the last such job."""
RUNNING: Final = "jobstream:running:"
"""zset per task with `max_running`, and per owner (`=` and its name) with such a limit, id → ms when the lease ends; a
day after the last claim."""
SEATS: Final = "jobstream:seats:"
"""zset per queue and owner (`<queue> <owner>`), id → its place among the owner's jobs: those that may be claimed,
as many as the owner's weight; 8 days after the last one."""
ROOM: Final = "jobstream:room:"
"""zset per queue and owner, as `SEATS`: the jobs that wait for one of these seats."""
ROOMS: Final = "jobstream:rooms:"
"""set per queue: the owners that have, or had, a room; 8 days after the last one."""
ACTIVE: Final = "jobstream:active:"
"""zset per set of queues that workers serve (names with commas), owner → ms when a worker of these last came upon a job
of it; older ones than 10 minutes go, the zset a day after the last one came."""
LIMITS: Final = "jobstream:limits"
"""hash owner → `jobs window running weight`, `-` for what was not set; owner: the deployment."""
RATE: Final = "jobstream:rate:"
"""string per owner, ms when all of what it may submit will be there again; PX until then."""
FULL: Final = "jobstream:full:"
"""hash per queue: since when a submit found it full, and how many jobs were claimed since; PX a minute."""
WAITING: Final = "jobstream:waiting"
"""zset id → ms when it is looked at again: jobs that are to run after others; entries leave when they wait no more."""
SUCCESSORS: Final = "jobstream:successors:"
"""set per job or batch of ids of the jobs that wait for it; until its end, or 373 days."""
CHILDREN: Final = "jobstream:children:"
"""list per batch of a job's children: their ids; 400 days after the last one."""
PROMOTE: Final = "jobstream:promote:"
"""zset per queue, delayed jobs with a priority, id → ms when due; entries leave when due, cancelled or purged."""
SCHEDULE: Final = "jobstream:schedule:"
"""hash per schedule (`<owner> <name>`; of a task's own ` task:<task>`): which tick was queued last, which ran last,
whether it is paused. One that was made by a client has its definition there: owner its tenant, until it is deleted. A
task's own lives until two days after its tick; 30 days since its task was last seen while it is paused."""
SCHEDULES: Final = "jobstream:schedules"
"""zset of those that clients have made, all with score 0: by owner, then name; entries leave when they are deleted."""
SCHEDULES_DUE: Final = "jobstream:schedules:due"
"""zset, of these, schedule → ms when its next tick is to be queued; entries leave when it is paused or deleted."""
CLAIMS: Final = "jobstream:claims:"
"""string per worker, `<number> <queue> <ms> <id> <id> …`: its last claim, and what it was given; PX an hour."""
CONTACT: Final = "jobstream:contact"
"""string, ms of any worker's last claim; an hour."""
GRACE: Final = "jobstream:grace"
"""string, after an outage: leases that ran out meanwhile are not taken over yet; PX one lease."""

RECOVERY: Final = "jobstream:recovery"
"""string, somebody has just looked after the jobs of dead workers; PX half a second."""

WORKER: Final = "jobstream:worker:"
"""hash, a worker's heartbeat; PX three beats."""
WORKERS: Final = "jobstream:workers"
"""zset worker id → ms of its last beat; beats remove the silent ones; expires an hour after the last beat."""
API_PROCESS: Final = "jobstream:api:"
"""hash, an API process's heartbeat; PX three beats."""
API_PROCESSES: Final = "jobstream:apis"
"""zset process id → ms of its last beat; beats remove the silent ones; expires an hour after the last beat."""
CATALOGUE: Final = "jobstream:catalogue"
"""hash task name → announcement (JSON); expires 7 days after the last beat of any worker."""
CATALOGUE_VERSION: Final = "jobstream:catalogue:version"
"""int, counts changes of the catalogue; lives as long as the catalogue."""
ANNOUNCED: Final = "jobstream:announced"
"""zset task → ms when a worker last said that it has it; entries go after 7 days, the key as the catalogue."""
EPOCH: Final = "jobstream:epoch"
"""string, `<eight hex digits> <replication id>`: names this history; the deployment's, kept as long as the data."""

API_KEY: Final = "jobstream:key:"
"""hash, an API key without its secret; owner: the deployment. One that expires goes 30 days after that."""
API_KEYS: Final = "jobstream:keys"
"""zset key id → created ms; owner: the deployment. A list removes those that are gone."""
TICKET_SECRET: Final = "jobstream:ticket-secret"
"""string, signs tickets; made once, owner: the deployment."""

WEBHOOK: Final = "jobstream:webhook:"
"""hash, an endpoint with its secret; owner: its tenant, until it is deleted."""
WEBHOOKS: Final = "jobstream:webhooks"
"""zset endpoint id → created ms; entries leave when it is deleted."""
WEBHOOKS_OF: Final = "jobstream:webhooks:owner:"
"""zset per tenant, as `WEBHOOKS`; endpoints without a tenant are in none."""
WEBHOOKS_IN_USE: Final = "jobstream:webhooks:in-use:"
"""set per tenant, and one of nobody's (no name): ids of endpoints that are not disabled."""
WEBHOOK_SECRET: Final = "jobstream:webhook-secret"
"""string, signs what goes to a `callback_url`; made once, owner: the deployment."""
WEBHOOK_SALT: Final = "jobstream:webhook-salt:"
"""hash per tenant, and one of nobody's (no name), whose callback secret was rotated: the `salt` that it is made with,
the `old` one, and until when that signs, too; owner: the tenant."""
MAILBAG: Final = "jobstream:webhooks:mailbag"
"""list, records (JSON) of ended jobs of which somebody is to be told; a worker takes them at once."""
COLLECTING: Final = "jobstream:webhooks:collecting"
"""string, the worker that takes from the mailbag; PX seconds."""
DELIVERY: Final = "jobstream:delivery:"
"""hash, a message to one receiver and what became of it; until two weeks after the last attempt."""
DELIVERY_ATTEMPTS: Final = "jobstream:delivery:attempts:"
"""list per delivery of its attempts (JSON); capped; lives as long as the delivery."""
DELIVERIES_TO: Final = "jobstream:deliveries:to:"
"""zset per endpoint, delivery id → created ms; capped; two weeks after the last one."""
DELIVERIES_OF: Final = "jobstream:deliveries:of:"
"""zset per job, delivery id → created ms; two weeks after the last one."""
LANE: Final = "jobstream:lane:"
"""zset per receiver, and one of all slow ones (`slow`), id of a delivery's job → ms when it has ended at the latest:
those under way; a minute more."""
SLOW_RECEIVER: Final = "jobstream:slow:"
"""string per receiver that has not answered in time; until it does, an hour and a minute at most."""


def queue(name: str) -> str:
    """zset id → ms when due (arq's `queue_name`); `default` is arq's own default queue."""
    return ARQ_QUEUE if name == "default" else f"{ARQ_QUEUE}:{name}"


def queue_name(key: str) -> str:
    """The reverse of `queue`."""
    return "default" if key == ARQ_QUEUE else key.removeprefix(f"{ARQ_QUEUE}:")


def arq_job(job_id: str) -> str:
    """string, see ARQ_JOB."""
    return ARQ_JOB + job_id


def arq_result(job_id: str) -> str:
    """string, see ARQ_RESULT."""
    return ARQ_RESULT + job_id


def in_progress(job_id: str) -> str:
    """string, see ARQ_IN_PROGRESS."""
    return ARQ_IN_PROGRESS + job_id


def record(job_id: str) -> str:
    """hash, see RECORD."""
    return RECORD + job_id


def log(job_id: str) -> str:
    """list, see LOG."""
    return LOG + job_id


def tombstone(job_id: str) -> str:
    """string, see TOMBSTONE."""
    return TOMBSTONE + job_id


def upload(job_id: str) -> str:
    """string, see UPLOAD."""
    return UPLOAD + job_id


def events(job_id: str) -> str:
    """channel, see EVENTS."""
    return EVENTS + job_id


def idle(queue: str) -> str:
    """zset, see IDLE; `queue` is the name, not the key."""
    return IDLE + queue


def control(worker_id: str) -> str:
    """channel, see CONTROL."""
    return CONTROL + worker_id


def worker(worker_id: str) -> str:
    """hash, see WORKER."""
    return WORKER + worker_id


def api_process(process_id: str) -> str:
    """hash, see API_PROCESS."""
    return API_PROCESS + process_id


def api_key(key_id: str) -> str:
    """hash, see API_KEY."""
    return API_KEY + key_id


def webhook(webhook_id: str) -> str:
    """hash, see WEBHOOK."""
    return WEBHOOK + webhook_id


def webhooks_of(owner: str) -> str:
    """zset, see WEBHOOKS_OF."""
    return WEBHOOKS_OF + owner


def webhooks_in_use(owner: str | None) -> str:
    """set, see WEBHOOKS_IN_USE."""
    return WEBHOOKS_IN_USE + (owner or "")


def webhook_salt(owner: str | None) -> str:
    """hash, see WEBHOOK_SALT."""
    return WEBHOOK_SALT + (owner or "")


def delivery(delivery_id: str) -> str:
    """hash, see DELIVERY."""
    return DELIVERY + delivery_id


def delivery_attempts(delivery_id: str) -> str:
    """list, see DELIVERY_ATTEMPTS."""
    return DELIVERY_ATTEMPTS + delivery_id


def deliveries_to(webhook_id: str) -> str:
    """zset, see DELIVERIES_TO."""
    return DELIVERIES_TO + webhook_id


def deliveries_of(job_id: str) -> str:
    """zset, see DELIVERIES_OF."""
    return DELIVERIES_OF + job_id


def schedule(schedule_id: str) -> str:
    """hash, see SCHEDULE."""
    return SCHEDULE + schedule_id


def owned(status: str, owner: str) -> str:
    """zset id → created ms: an owner's jobs of a status, see INDEX_OWNED."""
    return f"{INDEX_OWNED}{status} {owner}"


def index(
    *, status: str | None = None, task: str | None = None, tag: str | None = None, owner: str | None = None
) -> str:
    """zset id → created ms: of an owner, of a status, of a task, of a tag, or of all jobs."""
    if owner is not None:
        return INDEX_OWNER + owner
    if status is not None:
        return INDEX_STATUS + status
    if task is not None:
        return INDEX_TASK + task
    if tag is not None:
        return INDEX_TAG + tag
    return INDEX
