/** Keeps the page of a job up to date: what the server has rendered is what this goes on from. */

import { Client } from './jobstream.js'
import { GLYPHS, JobProgress } from './job-progress.js'

/** @typedef {import('./jobstream.js').Job} Job */
/** @typedef {import('./jobstream.js').JobEvent} JobEvent */

/** Milliseconds between two changes of the page. */
const FLUSH = 100
/** Lines and pieces shown at most: as many as the service keeps. */
const SHOWN = 5_000
/** Characters of a result that are shown. */
const RESULT_SHOWN = 100_000

const bar = /** @type {JobProgress} */ (document.querySelector('job-progress'))
const log = section('log')
const output = section('output')
const items = section('items')
const result = section('result')

for (const { body } of [log, output, items]) body.scrollTop = body.scrollHeight

/** @type {JobEvent[]} */
let waiting = []
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer

bar.addEventListener('jobevent', (event) => {
  const { detail } = /** @type {CustomEvent<JobEvent>} */ (event)
  waiting.push(detail)
  if (detail.event === 'done') flush()
  else timer ??= setTimeout(flush, FLUSH)
})

function flush() {
  clearTimeout(timer)
  timer = undefined
  const events = waiting
  waiting = []
  const begin = events.findLastIndex((event) => event.event === 'snapshot')
  const fresh = begin >= 0
  const shown = fresh ? events.slice(begin) : events
  show(log, shown.filter((event) => event.event === 'log').map(line), fresh)
  show(output, shown.filter((event) => event.event === 'chunk').map(piece), fresh)
  const job = bar.job
  if (!job) return
  showItems(job.progress?.items ?? [])
  document.title = `${GLYPHS[job.status]} ${percent(job)}${job.task}`
  if (job.done) showEnd(job)
  if (shown.some((event) => event.event === 'done' || event.event === 'snapshot')) showFacts(job)
  else if (shown.some((event) => event.event === 'status')) refresh()
}

/** @param {string} name */
function section(name) {
  const whole = /** @type {HTMLElement} */ (document.getElementById(name))
  return { whole, body: /** @type {HTMLElement} */ (whole.querySelector('[data-body]')), old: true }
}

/** Add to a part of the page; its end stays in sight if it was.
 *
 * After a snapshot all comes again: what is there goes when the first of it has come, so that nothing flickers.
 * @param {{whole: HTMLElement, body: HTMLElement, old: boolean}} part @param {HTMLElement[]} added @param {boolean} fresh */
function show(part, added, fresh) {
  const { whole, body } = part
  part.old ||= fresh
  if (!added.length) return
  const atEnd = body.scrollHeight - body.scrollTop - body.clientHeight < 24
  if (part.old) body.replaceChildren()
  part.old = false
  body.append(...added)
  while (body.childElementCount > SHOWN) body.firstElementChild?.remove()
  whole.hidden = false
  if (atEnd) body.scrollTop = body.scrollHeight
}

/** @param {JobEvent} event */
function line({ data }) {
  const element = document.createElement('li')
  element.className = data.level
  element.textContent = data.message
  return element
}

/** @param {JobEvent} event */
function piece({ data }) {
  const element = document.createElement('span')
  element.textContent = typeof data === 'string' ? data : `${JSON.stringify(data)}\n`
  return element
}

/** @param {string[]} names */
function showItems(names) {
  const shown = items.body
  const same = shown.childElementCount === names.length && shown.lastElementChild?.textContent === names.at(-1)
  if (same) return
  items.whole.hidden = !names.length
  const atEnd = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 24
  const grown = names.length > shown.childElementCount && shown.lastElementChild?.textContent === names[shown.childElementCount - 1]
  if (!grown) shown.replaceChildren()
  for (const name of names.slice(shown.childElementCount)) {
    const element = document.createElement('li')
    element.textContent = name
    shown.append(element)
  }
  if (atEnd) shown.scrollTop = shown.scrollHeight
  const count = items.whole.querySelector('[data-count]')
  if (count) count.textContent = String(names.length)
}

/** @param {Job} job */
function showEnd(job) {
  const title = result.whole.querySelector('h2')
  result.whole.hidden = false
  result.whole.dataset.status = job.status
  if (job.status === 'succeeded') {
    if (title) title.textContent = 'Result'
    const text = typeof job.result === 'string' ? job.result : JSON.stringify(job.result, null, 2)
    result.body.textContent = text.length > RESULT_SHOWN ? `${text.slice(0, RESULT_SHOWN)}…` : text
  } else if (job.status === 'failed') {
    if (title) title.textContent = job.error?.title ?? 'Failed'
    result.body.textContent = `${job.error?.detail ?? ''}\n\n${job.error?.code ?? ''}`.trim()
  } else {
    if (title) title.textContent = 'Cancelled'
    result.body.textContent = 'The job was cancelled: there is no result.'
  }
}

/** The facts that events do not carry. */
async function refresh() {
  try {
    const url = new URL(bar.src, document.baseURI)
    showFacts(await new Client(url.origin).jobAt(url).get())
  } catch {
    // The stream says what is wrong.
  }
}

/** @param {Job} job */
function showFacts(job) {
  for (const element of document.querySelectorAll('[data-fact]')) {
    const name = element.getAttribute('data-fact')
    if (name === 'attempt') element.textContent = job.attempt ? `${job.attempt} of ${job.max_attempts}` : '–'
    else if (name === 'worker') element.textContent = job.worker ?? '–'
    else showTime(element, /** @type {any} */ (job)[name ?? ''])
  }
}

/** In the reader's own time zone. @param {Element} element @param {string | null | undefined} value */
function showTime(element, value) {
  element.textContent = value ? new Date(value).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' }) : '–'
  if (value) element.setAttribute('datetime', value)
}

/** @param {Job} job */
function percent(job) {
  const share = job.progress?.percent
  return job.done || share == null ? '' : `${Math.floor(share)} % `
}
