/**
 * `<job-progress src="/jobs/ID">`: a job's bar, message, time left and status, live.
 *
 *     <script type="module" src="/static/job-progress.js"></script>
 *     <job-progress src="/jobs/01M7…" label="Your upload" cancel></job-progress>
 *
 * Attributes: `src` (the monitor of a job, or of a batch), `label` (what to call it; the task's name by default), `cancel` (show the button).
 * Events, none of which bubble: `update` (detail: the Job), `jobevent` (detail: a JobEvent), `done` (detail: the Job).
 * Its colours are custom properties, listed in `STYLE`; parts: status, label, percent, bar, fill, message, eta, cancel.
 * What is inside the element is shown until it is defined, and where there are no scripts.
 */

import { Client } from './jobstream.js'
import { follow } from './shared-events.js'

/** @typedef {import('./jobstream.js').Job} Job */
/** @typedef {import('./jobstream.js').JobEvent} JobEvent */
/** @typedef {import('./jobstream.js').JobStatus} JobStatus */

/** @type {Record<JobStatus, string>} */
export const GLYPHS = {
  scheduled: '◷',
  queued: '○',
  running: '◐',
  retrying: '↻',
  cancelling: '◌',
  succeeded: '✓',
  failed: '✕',
  cancelled: '⊘',
}

/** Every how many per cent a screen reader is told. */
const SAID_EVERY = 25

const STYLE = `
:host {
  --_accent: var(--jobstream-accent, #2563eb);
  --_ok: var(--jobstream-ok, #15803d);
  --_bad: var(--jobstream-bad, #b91c1c);
  --_text: var(--jobstream-text, #1c1f24);
  --_muted: var(--jobstream-muted, #565d68);
  --_track: var(--jobstream-track, #dfe3e9);
  --_height: var(--jobstream-height, 0.625rem);
  --_radius: var(--jobstream-radius, 999px);
  display: block;
  color: var(--_text);
  font-variant-numeric: tabular-nums;
  line-height: 1.4;
}
:host([hidden]) { display: none }
@media (prefers-color-scheme: dark) {
  :host {
    --_accent: var(--jobstream-accent, #6ea8fe);
    --_ok: var(--jobstream-ok, #4ade80);
    --_bad: var(--jobstream-bad, #f98b8b);
    --_text: var(--jobstream-text, #e7e9ed);
    --_muted: var(--jobstream-muted, #a6adb9);
    --_track: var(--jobstream-track, #343a45);
  }
}
.row { display: flex; gap: 0.75em; align-items: baseline; min-height: 1.4em }
.label { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.status { color: var(--_muted); white-space: nowrap }
.percent { margin-inline-start: auto; font-weight: 600 }
.message { flex: 1; min-width: 0; overflow-wrap: anywhere; unicode-bidi: isolate; color: var(--_muted) }
.eta { color: var(--_muted); white-space: nowrap }
.bar { height: var(--_height); margin-block: 0.4em; border-radius: var(--_radius); background: var(--_track); overflow: hidden }
.fill {
  height: 100%; width: 100%; border-radius: inherit; background: var(--_accent);
  transform: translateX(calc(-100% + var(--_share, 0) * 100%)); transition: transform 0.3s ease-out;
}
:host([data-status='succeeded']) .fill { background: var(--_ok) }
:host([data-status='succeeded']) .status { color: var(--_ok) }
:host([data-status='failed']) .fill { background: var(--_bad) }
:host([data-status='failed']) .status { color: var(--_bad) }
:host([data-status='cancelled']) .fill { background: var(--_muted) }
.bar.unknown .fill { width: 30%; transform: none; animation: wander 1.6s ease-in-out infinite alternate }
@keyframes wander { from { transform: translateX(0) } to { transform: translateX(233%) } }
button {
  font: inherit; font-size: 0.875em; color: inherit; background: transparent; cursor: pointer;
  border: 1px solid var(--_muted); border-radius: 0.4em; padding: 0.15em 0.8em;
}
button:hover:enabled { border-color: var(--_bad); color: var(--_bad) }
button:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px }
button:disabled { opacity: 0.6; cursor: default }
.said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
[hidden] { display: none }
@media (prefers-reduced-motion: reduce) {
  .fill { transition: none }
  .bar.unknown .fill { animation: none; width: 100%; opacity: 0.35 }
}
@media (forced-colors: active) {
  .bar { border: 1px solid CanvasText }
  .fill { background: Highlight !important; forced-color-adjust: none }
}
`

/** @type {CSSStyleSheet | undefined} */
let sheet

/** The element. `job` is the job as far as it is known, null before the first answer. */
export class JobProgress extends HTMLElement {
  static observedAttributes = ['src', 'label', 'cancel']

  /** @type {Job | null} */
  job = null
  /** @type {(() => void) | undefined} */
  #stop
  #connected = true
  #error = ''
  #asked = false
  #said = ''
  /** When the job will be over, by our clock. */
  #end = NaN
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #drawing
  #parts

  constructor() {
    super()
    const root = this.attachShadow({ mode: 'open' })
    if (!sheet) {
      sheet = new CSSStyleSheet()
      sheet.replaceSync(STYLE)
    }
    root.adoptedStyleSheets = [sheet]
    const part = (/** @type {string} */ name, tag = 'span') => {
      const element = document.createElement(tag)
      element.className = name
      element.setAttribute('part', name)
      return element
    }
    const parts = {
      label: part('label'),
      status: part('status'),
      percent: part('percent'),
      bar: part('bar', 'div'),
      fill: part('fill', 'div'),
      message: part('message'),
      eta: part('eta'),
      cancel: /** @type {HTMLButtonElement} */ (part('cancel', 'button')),
      said: part('said', 'div'),
    }
    parts.bar.setAttribute('role', 'progressbar')
    parts.bar.setAttribute('aria-valuemin', '0')
    parts.bar.setAttribute('aria-valuemax', '100')
    parts.bar.append(parts.fill)
    parts.said.setAttribute('role', 'status')
    parts.cancel.type = 'button'
    parts.cancel.addEventListener('click', () => this.cancel())
    const above = part('row', 'div')
    above.append(parts.label, parts.status, parts.percent)
    const below = part('row', 'div')
    below.append(parts.message, parts.eta, parts.cancel)
    root.append(above, parts.bar, below, parts.said)
    this.#parts = parts
  }

  get src() {
    return this.getAttribute('src') ?? ''
  }
  set src(value) {
    this.setAttribute('src', value)
  }

  connectedCallback() {
    this.#begin()
    this.#clock = setInterval(() => this.#drawEta(), 1000)
  }

  disconnectedCallback() {
    this.#stop?.()
    this.#stop = undefined
    clearInterval(this.#clock)
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (!this.isConnected || before === now) return
    if (name === 'src') this.#begin()
    else this.#draw()
  }

  /** Ask the job to stop. */
  async cancel() {
    this.#asked = true
    this.#draw()
    try {
      await this.#handle().cancel()
    } catch (error) {
      this.#asked = false
      this.#error = `The job could not be cancelled: ${error instanceof Error ? error.message : error}`
      this.#draw()
    }
  }

  #handle() {
    const url = new URL(this.src, document.baseURI)
    return new Client(url.origin).jobAt(url)
  }

  #begin() {
    this.#stop?.()
    this.#stop = undefined
    this.job = null
    this.#error = this.#said = ''
    this.#asked = false
    this.#connected = true
    this.#end = NaN
    this.#draw()
    if (!this.src) return
    this.#stop = follow(new URL(this.src, document.baseURI), {
      event: (event) => this.#take(event),
      connection: (connected) => {
        this.#connected = connected
        this.#drawSoon()
      },
      error: (message) => {
        this.#error = message
        this.#draw()
      },
    })
  }

  /** @param {JobEvent} event */
  #take({ event, id, data }) {
    if (event === 'snapshot' || event === 'done') this.job = data
    else if (event === 'status') this.job = this.job && { ...this.job, ...data }
    else if (event === 'progress') this.job = this.job && { ...this.job, progress: data }
    if (event === 'status') this.#end = NaN
    const left = this.job?.progress?.eta_s
    if (event === 'progress' || event === 'snapshot') this.#end = left == null ? NaN : Date.now() + left * 1000
    this.dispatchEvent(new CustomEvent('jobevent', { detail: { event, id, data } }))
    if (event === 'log' || event === 'chunk') return
    this.dispatchEvent(new CustomEvent('update', { detail: this.job }))
    if (event === 'done') {
      this.#draw()
      this.dispatchEvent(new CustomEvent('done', { detail: this.job }))
    } else {
      this.#drawSoon()
    }
  }

  /** At most ten times a second, also in a tab that is hidden. */
  #drawSoon() {
    this.#drawing ??= setTimeout(() => this.#draw(), 100)
  }

  #draw() {
    clearTimeout(this.#drawing)
    this.#drawing = undefined
    const { label, status, percent, bar, fill, message, cancel, said } = this.#parts
    const job = this.job
    const name = this.getAttribute('label') ?? job?.task ?? 'job'
    const state = job?.status
    const share = state === 'succeeded' ? 100 : (job?.progress?.percent ?? null)
    this.dataset.status = state ?? ''
    label.textContent = name
    status.textContent = state ? `${GLYPHS[state] ?? ''} ${state}` : ''
    percent.textContent = share === null ? '' : `${share.toFixed(share % 1 && share < 100 ? 1 : 0)} %`
    message.textContent = this.#error || (this.#connected ? describe(job) : 'Reconnecting…')
    bar.setAttribute('aria-label', name)
    bar.classList.toggle('unknown', share === null && state === 'running')
    if (share === null) bar.removeAttribute('aria-valuenow')
    else bar.setAttribute('aria-valuenow', String(Math.round(share)))
    bar.setAttribute('aria-valuetext', [state, percent.textContent, describe(job)].filter(Boolean).join(', '))
    fill.style.setProperty('--_share', String((share ?? 0) / 100))
    const asked = this.#asked || state === 'cancelling'
    cancel.hidden = !this.hasAttribute('cancel') || !job || job.done
    cancel.disabled = asked
    cancel.textContent = asked ? 'Cancelling…' : 'Cancel'
    cancel.setAttribute('aria-label', `${cancel.textContent.replace('…', '')} ${name}`)
    this.#drawEta()
    const step = share === null || job?.done ? '' : `${Math.floor(share / SAID_EVERY) * SAID_EVERY} %`
    const news = this.#error || (state ? [`${name}: ${state}`, step === '0 %' ? '' : step].filter(Boolean).join(', ') : '')
    if (news !== this.#said) said.textContent = this.#said = news
  }

  #drawEta() {
    const left = (this.#end - Date.now()) / 1000
    const shown = this.job?.status === 'running' && this.#connected && Number.isFinite(left)
    this.#parts.eta.textContent = shown ? (left < 1 ? 'any moment now' : `about ${duration(left)} left`) : ''
  }
}

/** What there is to say beside the bar. @param {Job | null} job */
function describe(job) {
  if (!job) return ''
  if (job.status === 'failed') return job.error?.detail || job.error?.title || ''
  return job.progress?.message ?? ''
}

/** `40 s`, `3 min`, `2 h 10 min`. @param {number} seconds */
export function duration(seconds) {
  if (seconds < 99.5) return `${Math.round(seconds)} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 100) return `${minutes} min`
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`
}

customElements.define('job-progress', JobProgress)
