/**
 * The client for browsers and for Node.js 18 or later: submit a job, follow its events across cuts, fetch its result.
 *
 * An ES module without dependencies and without a build. Types are in JSDoc; `tsc --checkJs` checks them.
 *
 *     const client = new Client('http://127.0.0.1:8000')
 *     const job = await client.submit('words', { text: 'to be or not to be' })
 *     for await (const event of job.events()) console.log(event.event, event.data)
 *     console.log(await job.result())
 *
 * ClientError
 * ├── Unreachable      no answer: nothing listens there, or the connection broke
 * ├── Rejected         the service answered with a problem (RFC 9457): `problem`
 * │   ├── NotFound     404, 410
 * │   └── Unavailable  502, 503, 504: away for the moment
 * ├── JobFailed        the job has ended without a result: `job.error` says why
 * └── JobCancelled     the job was cancelled
 */

/**
 * @typedef {{type: string, title: string, status: number, detail: string, code: string, instance?: string,
 *   retryable?: boolean, attempt?: number, errors?: {pointer: string, detail: string}[]}} Problem
 * @typedef {{current: number | null, total: number | null, percent: number | null, message: string | null,
 *   eta_s: number | null, items: string[]}} Progress
 * @typedef {'scheduled' | 'queued' | 'running' | 'retrying' | 'cancelling' | 'succeeded' | 'failed' | 'cancelled'
 *   } JobStatus
 * @typedef {{id: string, task: string, queue: string, status: JobStatus, done: boolean, version: number,
 *   progress: Progress | null, attempt: number, max_attempts: number, result: any, error: Problem | null,
 *   errors: Problem[], created_at: string, run_at: string | null, started_at: string | null,
 *   finished_at: string | null, expires_at: string | null, worker: string | null, tags: string[],
 *   owner: string | null, parent: string | null, after: string[], batch: string | null, children: string | null,
 *   links: {self: string, result: string, events: string}}} Job
 * @typedef {'snapshot' | 'status' | 'progress' | 'log' | 'chunk' | 'done'} EventKind
 * @typedef {{id: string, event: EventKind, data: any}} JobEvent
 *   `id` is opaque: give it to `events({ after })` to go on behind this event. Empty before the first durable one.
 * @typedef {{delay?: number, runAt?: Date, queue?: string, priority?: number, tags?: string[], timeout?: number,
 *   ttl?: number, after?: string[], callbackUrl?: string, idempotencyKey?: string,
 *   files?: Iterable<File | Blob>, signal?: AbortSignal}} SubmitOptions
 *   Times in seconds. `after`: ids of jobs, or batches, that must have succeeded before it runs.
 * @typedef {{headers?: Record<string, string>, body?: BodyInit, signal?: AbortSignal}} RequestOptions
 * @typedef {{after?: string, patience?: number, signal?: AbortSignal, onConnection?: (connected: boolean) => void
 *   }} EventsOptions `patience`: seconds that a stream which was cut tries to come back (the client's by default).
 */

/** Milliseconds without a byte after which a stream counts as dead: the service pings every 15 s. */
const SILENCE = 45_000
/** Milliseconds between two attempts to come back, at most. */
const LONGEST_PAUSE = 30_000
/** Milliseconds between two attempts to come back, until the service says otherwise. */
const FIRST_PAUSE = 2_000
/** How often a submit that carries an idempotency key is sent again after a cut. */
const RESENDS = 2

/** Something went wrong between this client and the service. */
export class ClientError extends Error {
  /** @param {string} message @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, options)
    this.name = new.target.name
  }
}

/** No answer: nothing listens there, or the connection broke. */
export class Unreachable extends ClientError {}

/** The service said no; `problem` says why. */
export class Rejected extends ClientError {
  /** @param {Problem} problem */
  constructor(problem) {
    super(problem.detail || problem.title || `HTTP ${problem.status}`)
    this.problem = problem
  }
}

/** There is no such job or task, or it is gone. */
export class NotFound extends Rejected {}

/** The service is away, full or draining for the moment. */
export class Unavailable extends Rejected {}

/** The job has failed; `job.error` says why. */
export class JobFailed extends ClientError {
  /** @param {Job} job */
  constructor(job) {
    super(job.error?.detail || job.error?.title || 'the job failed')
    this.job = job
  }
}

/** The job was cancelled. */
export class JobCancelled extends ClientError {
  /** @param {Job} job */
  constructor(job) {
    super(`job ${job.id} was cancelled`)
    this.job = job
  }
}

/** One service. Holds no connection: nothing has to be closed. */
export class Client {
  /**
   * @param {string | URL} [base] Where the service is; in a browser the page's own origin by default.
   * @param {{token?: string, patience?: number, fetch?: typeof fetch}} [options] `token`: sent as a bearer token.
   *   `patience`: seconds that a stream which was cut keeps trying to come back; for ever by default.
   */
  constructor(base, { token, patience = Infinity, fetch: fetcher } = {}) {
    const page = globalThis.location?.href
    const root = base === undefined && page ? new URL('/', page) : new URL(base || '/', page)
    this.base = root.href.replace(/\/*$/, '')
    this.patience = patience
    /** @type {Record<string, string>} */
    this.headers = token ? { Authorization: `Bearer ${token}` } : {}
    /** @type {typeof fetch} */
    this.fetch = fetcher ?? ((...args) => globalThis.fetch(...args))
  }

  /**
   * Hand in a job; gives its handle as soon as the service has stored it.
   *
   * @param {string} task
   * @param {Record<string, unknown>} [input]
   * @param {SubmitOptions} [options]
   * @returns {Promise<JobHandle>} Throws Rejected (422 with `problem.errors` for an input that does not fit), NotFound
   *   for an unknown task, Unreachable.
   */
  async submit(task, input = {}, options = {}) {
    const url = new URL(`${this.base}/${encodeURIComponent(task)}`)
    for (const [name, value] of Object.entries(query(options))) url.searchParams.set(name, value)
    /** @type {Record<string, string>} */
    const headers = {}
    if (options.idempotencyKey) headers['Idempotency-Key'] = `"${options.idempotencyKey}"`
    const files = [...(options.files ?? [])]
    if (!files.length) headers['Content-Type'] = 'application/json'
    for (let attempt = 0; ; attempt++) {
      const body = files.length ? form(input, files) : JSON.stringify(input)
      try {
        const response = await this.#fetch('POST', url, { headers, body, signal: options.signal })
        // A task that answers 303 has accepted, too. `fetch` does not let us see that: it goes on to the result.
        if (response.redirected) return this.job(lastSegment(response.url))
        return this.job((await (await checked(response)).json()).id)
      } catch (error) {
        if (!(error instanceof Unreachable) || !options.idempotencyKey || attempt === RESENDS) throw error
        await pause(200 * (attempt + 1), options.signal)
      }
    }
  }

  /** The handle of a job whose id is known. Asks nobody. @param {string} id */
  job(id) {
    return new JobHandle(this, `${this.base}/jobs/${encodeURIComponent(id)}`)
  }

  /** The handle of the job whose monitor has this URL, such as `/jobs/01M7…`. Asks nobody. @param {string | URL} url */
  jobAt(url) {
    return new JobHandle(this, new URL(url, `${this.base}/`))
  }

  /**
   * One request; throws Unreachable, and Rejected for what is not a success.
   *
   * @param {string} method @param {string | URL} url @param {RequestOptions} [options]
   * @returns {Promise<Response>}
   */
  async request(method, url, options) {
    return checked(await this.#fetch(method, url, options))
  }

  /** @param {string} method @param {string | URL} url @param {RequestOptions} [options] */
  async #fetch(method, url, { headers, body, signal } = {}) {
    const all = { Accept: 'application/json', ...this.headers, ...headers }
    try {
      return await this.fetch(url, { method, headers: all, body, signal, cache: 'no-store' })
    } catch (error) {
      signal?.throwIfAborted()
      throw new Unreachable(`no answer from ${this.base}`, { cause: error })
    }
  }
}

/** A job on the service. Made by `Client.submit`, `Client.job` and `Client.jobAt`; holds nothing but a URL. */
export class JobHandle {
  /** @param {Client} client @param {string | URL} url */
  constructor(client, url) {
    this.client = client
    this.url = new URL(url)
    this.id = lastSegment(this.url)
  }

  /** The job as it is now. @param {AbortSignal} [signal] @returns {Promise<Job>} Throws NotFound. */
  async get(signal) {
    return (await this.client.request('GET', this.url, { signal })).json()
  }

  /**
   * Every change, from a snapshot (or from just behind the event `after`) to `done`.
   *
   * A cut is healed here: the stream comes back with `Last-Event-ID`, so nothing is lost and nothing comes twice. Throws
   * NotFound, Rejected, and Unreachable when the service was never there, or stays away for longer than `patience`.
   *
   * @param {EventsOptions} [options]
   * @returns {AsyncGenerator<JobEvent, void, undefined>}
   */
  async *events({ after = '', patience = this.client.patience, signal, onConnection } = {}) {
    let lastId = after
    let retry = FIRST_PAUSE
    let misses = 0
    let connected = false
    let awaySince = 0
    for (;;) {
      try {
        for await (const frame of this.#connect(lastId, signal)) {
          if (frame === 'over') return
          if (frame === 'open') {
            connected = true
            onConnection?.(true)
            continue
          }
          if (frame.retry !== undefined) retry = frame.retry
          if (frame.id !== undefined) lastId = frame.id
          misses = awaySince = 0
          if (frame.data === undefined) continue
          const event = /** @type {EventKind} */ (frame.event)
          yield { id: lastId, event, data: JSON.parse(frame.data) }
          if (event === 'done') return
        }
      } catch (error) {
        if (!(error instanceof Unreachable || error instanceof Unavailable)) throw error
        awaySince ||= Date.now()
        if (!connected || Date.now() - awaySince > patience * 1000) throw error
      }
      onConnection?.(false)
      await pause(Math.min(retry * 2 ** misses++, LONGEST_PAUSE) * (0.8 + 0.4 * Math.random()), signal)
    }
  }

  /** The job once it is done, whatever its end. @param {AbortSignal} [signal] @returns {Promise<Job>} */
  async wait(signal) {
    for await (const event of this.events({ signal })) if (event.event === 'done') return event.data
    return this.get(signal)
  }

  /**
   * What the task returned, once it has.
   *
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>} Throws JobFailed and JobCancelled.
   */
  async result(signal) {
    const job = await this.wait(signal)
    if (job.status === 'failed') throw new JobFailed(job)
    if (job.status === 'cancelled') throw new JobCancelled(job)
    const response = await this.client.request('GET', new URL(job.links.result, this.url), { signal })
    const isJson = response.headers.get('content-type')?.startsWith('application/json')
    return isJson ? response.json() : response.blob()
  }

  /** Ask the job to stop; its record stays. A job that is done already is given unchanged. @returns {Promise<Job>} */
  async cancel() {
    return (await this.client.request('POST', this.#at('/cancel'))).json()
  }

  /** Run a failed or cancelled job again, under the same id. @returns {Promise<Job>} */
  async retry() {
    return (await this.client.request('POST', this.#at('/retry'))).json()
  }

  /** Purge the job and its record; a running one is stopped first. */
  async delete() {
    await this.client.request('DELETE', this.url)
  }

  /** @param {string} path */
  #at(path) {
    const url = new URL(this.url)
    url.pathname += path
    return url
  }

  /**
   * One connection: 'open', its frames, then 'over' if there is nothing more to come. Throws Unreachable when it breaks.
   *
   * @param {string} lastId @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<'open' | 'over' | Frame, void, undefined>}
   */
  async *#connect(lastId, signal) {
    signal?.throwIfAborted()
    const dead = new AbortController()
    const stop = () => dead.abort(signal?.reason)
    signal?.addEventListener('abort', stop)
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let silence
    const heard = () => {
      clearTimeout(silence)
      silence = setTimeout(() => dead.abort(), SILENCE)
    }
    try {
      heard()
      /** @type {Record<string, string>} */
      const headers = { Accept: 'text/event-stream' }
      if (lastId) headers['Last-Event-ID'] = lastId
      const response = await this.client.request('GET', this.#at('/events'), { headers, signal: dead.signal })
      if (response.status === 204 || !response.body) {
        yield 'over'
        return
      }
      if (!response.headers.get('content-type')?.startsWith('text/event-stream')) {
        throw new ClientError(`what answers at ${this.url} does not stream events`)
      }
      yield 'open'
      const parser = new FrameParser()
      const reader = response.body.getReader()
      for (;;) {
        const { done, value } = await reader.read()
        if (done) return
        heard()
        yield* parser.feed(value)
      }
    } catch (error) {
      signal?.throwIfAborted()
      if (error instanceof ClientError) throw error
      throw new Unreachable(`the stream of ${this.url} broke`, { cause: error })
    } finally {
      clearTimeout(silence)
      signal?.removeEventListener('abort', stop)
      dead.abort() // lets go of the connection, whether the consumer read to the end or not
    }
  }
}

/** @typedef {{id?: string, event: string, data?: string, retry?: number}} Frame */

/** Bytes to frames (WHATWG HTML, section 9.2.6). A frame that was cut off is never given. */
export class FrameParser {
  #decoder = new TextDecoder()
  #waiting = ''
  #halfBreak = false
  /** @type {Frame & {lines: string[]}} */
  #frame = { event: 'message', lines: [] };

  /** @param {Uint8Array} bytes @returns {Generator<Frame>} */
  *feed(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true })
    if (!this.#halfBreak && !/[\r\n]/.test(text)) {
      this.#waiting += text // a long line is looked at once, when it is whole
      return
    }
    const lines = (this.#waiting + text).split(/\r\n|\n|\r(?!$)/) // a CR at the end may be half of a line break
    this.#waiting = lines.pop() ?? ''
    this.#halfBreak = this.#waiting.endsWith('\r')
    for (const line of lines) {
      if (line) this.#take(line)
      else yield* this.#end()
    }
  }

  /** @param {string} line */
  #take(line) {
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (field === 'data') this.#frame.lines.push(value)
    else if (field === 'event') this.#frame.event = value
    else if (field === 'id' && !value.includes('\0')) this.#frame.id = value
    else if (field === 'retry' && /^\d+$/.test(value)) this.#frame.retry = Number(value)
  }

  *#end() {
    const { lines, ...frame } = this.#frame
    this.#frame = { event: 'message', lines: [] }
    if (lines.length) yield { ...frame, data: lines.join('\n') }
    else if (frame.id !== undefined || frame.retry !== undefined) yield frame
  }
}

/** @param {string | URL} url */
function lastSegment(url) {
  return decodeURIComponent(new URL(url).pathname.split('/').at(-1) ?? '')
}

/** @param {SubmitOptions} options @returns {Record<string, string>} */
function query({ delay, runAt, queue, priority, tags, timeout, ttl, after, callbackUrl }) {
  const wanted = {
    delay,
    run_at: runAt?.toISOString(),
    queue,
    priority,
    tags: tags?.length ? tags.join(',') : undefined,
    timeout,
    ttl,
    after: after?.length ? after.join(',') : undefined,
    callback_url: callbackUrl,
  }
  return Object.fromEntries(
    Object.entries(wanted).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]])),
  )
}

/** Strings as they are, a list as a repeated field, the rest as JSON. @param {Record<string, unknown>} input
 * @param {(File | Blob)[]} files */
function form(input, files) {
  const body = new FormData()
  const text = (/** @type {unknown} */ value) => (typeof value === 'string' ? value : JSON.stringify(value))
  for (const [name, value] of Object.entries(input)) {
    for (const item of Array.isArray(value) ? value : [value]) body.append(name, text(item))
  }
  for (const file of files) body.append('files', file)
  return body
}

/** @param {Response} response @returns {Promise<Response>} */
async function checked(response) {
  if (response.ok) return response
  const status = response.status
  /** @type {Problem} */
  let problem
  try {
    problem = { status, ...(await response.json()) }
  } catch {
    problem = { type: 'about:blank', title: `HTTP ${status}`, status, detail: response.statusText, code: '' }
  }
  if (status === 404 || status === 410) throw new NotFound(problem)
  if (status === 502 || status === 503 || status === 504) throw new Unavailable(problem)
  throw new Rejected(problem)
}

/** @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>} */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const wake = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', wake)
      if (signal?.aborted) reject(signal.reason)
      else resolve()
    }
    const timer = setTimeout(wake, ms)
    signal?.addEventListener('abort', wake)
    if (signal?.aborted) wake()
  })
}
