/**
 * One event stream per job and browser, however many tabs show it, and never more than a few for all jobs together.
 *
 * Over HTTP/1.1 a browser opens six connections to a host: the seventh stream would hang, and every request after it.
 * So the tabs of a job elect a leader (whoever holds the job's Web Lock), which streams and tells the others over a
 * BroadcastChannel; when it closes, the next one goes on behind the last event that it has. Leaders of different jobs
 * share `SLOTS` connections: where two want the same one they take turns, and resuming makes a turn lose nothing.
 *
 * Web Locks need a secure context (https, or localhost). Without them a tab streams by itself while it is visible.
 */

import { Client, ClientError, Unavailable, Unreachable } from './jobstream.js'

/** @typedef {import('./jobstream.js').JobEvent} JobEvent */
/**
 * @typedef {{event: (event: JobEvent) => void, connection?: (connected: boolean) => void,
 *   error?: (message: string) => void}} Listener
 * @typedef {{ask: string} | {to: string, replay: JobEvent[], connected: boolean} | {tell: JobEvent}
 *   | {connected: boolean} | {error: string} | {leads: true}} Message
 */

/** Streams of this origin: two of the six connections stay free. */
const SLOTS = 4
/** Milliseconds that a stream is kept although another job waits for its slot. */
const TURN = 2_000
/** Milliseconds until a service that does not answer is asked again. */
const AWAY = 2_000
/** As many as the service keeps. */
const EVENTS_KEPT = 5_000

/**
 * Tell `listener` all events of a job, from a snapshot to `done`.
 *
 * @param {string | URL} url The job's monitor.
 * @param {Listener} listener
 * @returns {() => void} Stops it.
 */
export function follow(url, listener) {
  const feed = new Feed(new URL(url, location.href), listener)
  feed.start()
  return () => feed.stop()
}

class Feed {
  #url
  #listener
  #me = Math.random().toString(36).slice(2)
  #stopped = new AbortController()
  /** @type {BroadcastChannel | undefined} */
  #channel
  #leads = false
  #connected = false
  /** @type {JobEvent | undefined} */
  #snapshot
  /** @type {JobEvent | undefined} */
  #progress
  /** @type {Map<string, JobEvent>} The durable events behind the snapshot, by id. */
  #events = new Map()
  #lastId = ''

  /** @param {URL} url @param {Listener} listener */
  constructor(url, listener) {
    this.#url = url
    this.#listener = listener
  }

  start() {
    const ending = navigator.locks && 'BroadcastChannel' in globalThis ? this.#followTogether() : this.#followAlone()
    ending.catch((error) => {
      if (!this.#stopped.signal.aborted) this.#fail(String(error?.message ?? error))
    })
  }

  stop() {
    this.#stopped.abort()
    this.#channel?.close()
    this.#channel = undefined
  }

  // --- Together -------------------------------------------------------------------------------------------------

  async #followTogether() {
    this.#channel = new BroadcastChannel(`jobstream ${this.#url}`)
    this.#channel.onmessage = ({ data }) => this.#hear(data)
    this.#say({ ask: this.#me })
    await navigator.locks.request(`jobstream ${this.#url}`, { signal: this.#stopped.signal }, () => this.#lead())
  }

  async #lead() {
    this.#leads = true
    this.#say({ leads: true })
    const slot = `jobstream slot ${[...this.#url.href].reduce((sum, c) => sum + c.charCodeAt(0), 0) % SLOTS}`
    const signal = this.#stopped.signal
    const bell = new BroadcastChannel(slot)
    try {
      while (!signal.aborted) {
        bell.postMessage('somebody waits')
        await navigator.locks.request(slot, { signal }, () => this.#turn(slot, bell))
      }
    } finally {
      bell.close()
    }
  }

  /** Stream for as long as nobody else needs the connection. @param {string} slot @param {BroadcastChannel} bell */
  async #turn(slot, bell) {
    const turn = new AbortController()
    const begun = Date.now()
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let end
    const yieldSoon = () => {
      end ??= setTimeout(() => turn.abort(), Math.max(0, begun + TURN - Date.now()))
    }
    bell.onmessage = yieldSoon
    const { pending } = await navigator.locks.query()
    if (pending?.some((lock) => lock.name === slot)) yieldSoon()
    try {
      await this.#stream(AbortSignal.any([turn.signal, this.#stopped.signal]))
    } finally {
      bell.onmessage = null
      clearTimeout(end)
    }
  }

  /** @param {Message} message */
  #hear(message) {
    if ('tell' in message) {
      if (this.#snapshot || message.tell.event === 'snapshot') this.#take(message.tell)
    } else if ('ask' in message) {
      if (this.#leads && this.#snapshot) {
        this.#say({ to: message.ask, replay: this.#history(), connected: this.#connected })
      }
    } else if ('replay' in message) {
      if (message.to === this.#me && !this.#snapshot) {
        this.#setConnected(message.connected)
        for (const event of message.replay) this.#take(event)
      }
    } else if ('leads' in message) {
      if (!this.#snapshot) this.#say({ ask: this.#me }) // asked while there was no leader
    } else if ('connected' in message) {
      this.#setConnected(message.connected)
    } else {
      this.#fail(message.error)
    }
  }

  /** @param {Message} message */
  #say(message) {
    this.#channel?.postMessage(message)
  }

  #history() {
    const history = [/** @type {JobEvent} */ (this.#snapshot), ...this.#events.values()]
    return this.#progress ? [...history, this.#progress] : history
  }

  // --- Alone ----------------------------------------------------------------------------------------------------

  async #followAlone() {
    const signal = this.#stopped.signal
    while (!signal.aborted) {
      await visible(signal)
      const hidden = new AbortController()
      const look = () => {
        if (document.hidden) hidden.abort()
      }
      document.addEventListener('visibilitychange', look)
      try {
        await this.#stream(AbortSignal.any([hidden.signal, signal]))
      } finally {
        document.removeEventListener('visibilitychange', look)
      }
    }
  }

  // --- Both -----------------------------------------------------------------------------------------------------

  /** Read the stream until `done`, or until `signal`. @param {AbortSignal} signal */
  async #stream(signal) {
    const job = new Client(this.#url.origin).jobAt(this.#url)
    const onConnection = (/** @type {boolean} */ connected) => {
      this.#setConnected(connected)
      this.#say({ connected })
    }
    while (!signal.aborted) {
      try {
        for await (const event of job.events({ after: this.#lastId, signal, onConnection })) {
          this.#say({ tell: event })
          this.#take(event)
        }
        this.stop() // `done`, or the service says that we have seen it
        return
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof ClientError && !(error instanceof Unreachable || error instanceof Unavailable)) {
          this.#say({ error: error.message })
          this.#fail(error.message)
          return
        }
        if (!(error instanceof ClientError)) throw error
        onConnection(false)
        await new Promise((resolve) => setTimeout(resolve, AWAY * (0.8 + 0.4 * Math.random())))
      }
    }
  }

  /** @param {JobEvent} event */
  #take(event) {
    if (event.event === 'progress') {
      this.#progress = event
    } else if (event.event === 'snapshot') {
      this.#snapshot = event
      this.#progress = undefined
      this.#events.clear()
      this.#lastId = event.id
    } else {
      if (this.#events.has(event.id)) return // told by the leader before this one, too
      this.#events.set(event.id, event)
      if (this.#events.size > EVENTS_KEPT) this.#events.delete(/** @type {string} */ (this.#events.keys().next().value))
      this.#lastId = event.id
    }
    this.#listener.event(event)
    if (event.event === 'done') this.stop()
  }

  /** @param {boolean} connected */
  #setConnected(connected) {
    if (connected === this.#connected) return
    this.#connected = connected
    this.#listener.connection?.(connected)
  }

  /** @param {string} message */
  #fail(message) {
    this.stop()
    this.#listener.error?.(message)
  }
}

/** @param {AbortSignal} signal @returns {Promise<void>} */
function visible(signal) {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return
      document.removeEventListener('visibilitychange', look)
      signal.removeEventListener('abort', look)
      resolve()
    }
    document.addEventListener('visibilitychange', look)
    signal.addEventListener('abort', look)
    look()
  })
}
