/** The client's reader of event streams, fed in every way that a network may cut them. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FrameParser } from '../../api/jobstream_api/web/jobstream.js'

/** @param {Uint8Array[]} pieces */
const read = (pieces) => {
  const parser = new FrameParser()
  return pieces.flatMap((piece) => [...parser.feed(piece)])
}
const bytes = (/** @type {string} */ text) => new TextEncoder().encode(text)

const STREAM = [
  '\uFEFFretry: 2000', '', ': ping', '', 'id: 00000000-1', 'event: log', 'data: {"message":"größer 😀"}', '',
  'data:no space', 'data:  two', 'data', '', 'id: bad\0id', 'retry: 1x', 'unknown: field', 'event: lonely', '',
  'id', 'data: the id is reset', '', 'data: cut off',
]
const FRAMES = [
  { event: 'message', retry: 2000 },
  { event: 'log', id: '00000000-1', data: '{"message":"größer 😀"}' },
  { event: 'message', data: 'no space\n two\n' },
  { event: 'message', id: '', data: 'the id is reset' },
]

for (const [name, end] of [['LF', '\n'], ['CRLF', '\r\n']]) {
  const whole = bytes(STREAM.join(end))
  test(`lines that end with ${name}, whole`, () => assert.deepEqual(read([whole]), FRAMES))
  test(`lines that end with ${name}, cut anywhere`, () => {
    for (let cut = 0; cut <= whole.length; cut++) {
      assert.deepEqual(read([whole.subarray(0, cut), whole.subarray(cut)]), FRAMES, `cut at ${cut}`)
    }
  })
  test(`lines that end with ${name}, byte by byte`, () => {
    assert.deepEqual(read([...whole].map((byte) => Uint8Array.of(byte))), FRAMES)
  })
}

test('lines that end with CR', () => assert.deepEqual(read([bytes(STREAM.join('\r'))]), FRAMES))

test('a frame of many megabytes in small pieces takes no time to speak of', () => {
  const piece = bytes('x'.repeat(16_384))
  const pieces = [bytes('data: '), ...Array.from({ length: 1_000 }, () => piece), bytes('\n\n')]
  const begun = process.cpuUsage().user
  assert.equal(read(pieces)[0].data?.length, 16_384_000)
  assert.ok(process.cpuUsage().user - begun < 5e6)
})
