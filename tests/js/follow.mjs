/**
 * Follows a job as somebody else's client would: `node follow.mjs CLIENT MONITOR`.
 *
 * An event per line of stdout, as JSON; `{"event": "closed"}` when the client has given up for good.
 */

import { EventSource } from 'eventsource'
import WebSocket from 'ws'
import { Client } from '../../api/jobstream_api/web/jobstream.js'

const [how, monitor] = process.argv.slice(2)
const KINDS = ['snapshot', 'status', 'progress', 'log', 'chunk', 'done']

/** @param {{id?: string, event: string, data?: unknown}} event */
const tell = (event) => console.log(JSON.stringify(event))

/** @type {Record<string, () => Promise<void>>} */
const clients = {
  async jobstream() {
    for await (const event of new Client(new URL(monitor).origin).jobAt(monitor).events()) tell(event)
    tell({ event: 'closed' })
  },

  async eventsource() {
    const source = new EventSource(`${monitor}/events`)
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => tell({ id: event.lastEventId, event: kind, data: JSON.parse(event.data) }))
    }
    source.addEventListener('error', () => {
      if (source.readyState === source.CLOSED) tell({ event: 'closed' })
    })
  },

  async ws() {
    let lastId = ''
    const connect = () => {
      const url = new URL(`${monitor.replace(/^http/, 'ws')}/ws`)
      if (lastId) url.searchParams.set('last_event_id', lastId)
      const socket = new WebSocket(url)
      socket.on('message', (message) => {
        const event = JSON.parse(String(message))
        lastId = event.id ?? lastId
        tell(event)
        if (event.event === 'log' && event.data.message === 'started') socket.send('{"action": "cancel"}')
      })
      socket.on('error', () => {}) // `close` comes, too
      socket.on('close', (code) => {
        if (code === 1000 || code >= 4000) tell({ event: 'closed', data: code })
        else setTimeout(connect, 200)
      })
    }
    connect()
  },

  async fetch() {
    const response = await fetch(`${monitor}/events`, { headers: { Accept: 'text/event-stream' } })
    const text = await response.text() // the stream ends with the job
    for (const block of text.split('\n\n')) {
      const fields = Object.fromEntries(block.split('\n').map((line) => line.split(/: (.*)/s, 2)))
      if (fields.data) tell({ id: fields.id ?? '', event: fields.event, data: JSON.parse(fields.data) })
    }
    tell({ event: 'closed' })
  },
}

await clients[how]()
