/**
 * Drives Chromium for the tests: a command per line of stdin, an answer per line of stdout, both JSON.
 *
 * `{"id": 1, "do": "open", "page": "a", …}` is answered by `{"id": 1, "value": …}` or `{"id": 1, "error": "…"}`.
 * It ends with its stdin.
 */

import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const ARGS = [
  '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--no-default-browser-check',
  ...(process.getuid?.() === 0 ? ['--no-sandbox'] : []),
]
const PATIENCE = 20_000

const browser = await chromium.launch({ executablePath: process.argv[2], args: ARGS })
/** @type {Map<string, import('playwright-core').BrowserContext>} */
const contexts = new Map()
/** @type {Map<string, {page: import('playwright-core').Page, console: string[], responses: [number, string][]}>} */
const tabs = new Map()

/** @type {Record<string, (command: any) => Promise<any>>} */
const commands = {
  async context({ context, options }) {
    contexts.set(context, await browser.newContext(options))
  },
  async script({ context, code }) {
    await contexts.get(context)?.addInitScript(code)
  },
  async end({ context }) {
    await contexts.get(context)?.close()
    contexts.delete(context)
  },
  async tab({ context, tab }) {
    const page = /** @type {import('playwright-core').Page} */ (await contexts.get(context)?.newPage())
    const kept = { page, console: /** @type {string[]} */ ([]), responses: /** @type {[number, string][]} */ ([]) }
    page.on('console', (message) => kept.console.push(`${message.type()}: ${message.text()}`))
    page.on('pageerror', (error) => kept.console.push(`uncaught: ${error.message}`))
    page.on('response', (response) => kept.responses.push([response.status(), response.url()]))
    tabs.set(tab, kept)
  },
  async goto({ tab, url }) {
    const response = await of(tab).page.goto(url, { waitUntil: 'domcontentloaded' })
    return { status: response?.status(), headers: response?.headers() }
  },
  async url({ tab }) {
    return of(tab).page.url()
  },
  async evaluate({ tab, code }) {
    return of(tab).page.evaluate(code)
  },
  /** Until an expression is true; gives its value. Asks again and again: a page under a strict policy may not eval. */
  async until({ tab, code }) {
    const end = Date.now() + PATIENCE
    for (;;) {
      const value = await of(tab).page.evaluate(code).catch((error) => {
        if (/context was destroyed|navigat/i.test(error.message)) return false // between two pages
        throw error
      })
      if (value) return value
      if (Date.now() > end) {
        const text = await of(tab).page.evaluate('document.body.innerText').catch(() => '')
        throw new Error(`never true: ${code}\nconsole: ${of(tab).console.join('\n')}\npage: ${text.slice(0, 2000)}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  },
  async click({ tab, selector }) {
    await of(tab).page.click(selector, { timeout: PATIENCE })
  },
  async press({ tab, key }) {
    await of(tab).page.keyboard.press(key)
  },
  async screenshot({ tab, path }) {
    await of(tab).page.screenshot({ path, fullPage: true })
  },
  async axe({ tab }) {
    await of(tab).page.evaluate(AXE)
    const { violations } = await of(tab).page.evaluate('axe.run()')
    return violations.map((/** @type {any} */ found) => `${found.id}: ${found.nodes.map((/** @type {any} */ node) => node.html).join(' | ')}`)
  },
  async console({ tab }) {
    return of(tab).console
  },
  async responses({ tab }) {
    return of(tab).responses
  },
  async close({ tab }) {
    await of(tab).page.close()
    tabs.delete(tab)
  },
}

/** @param {string} tab */
function of(tab) {
  const found = tabs.get(tab)
  if (!found) throw new Error(`there is no tab ${tab}`)
  return found
}

console.log(JSON.stringify({ id: 0, value: browser.version() }))
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...command } = JSON.parse(line)
  commands[name](command).then(
    (value) => console.log(JSON.stringify({ id, value: value ?? null })),
    (error) => console.log(JSON.stringify({ id, error: String(error?.message ?? error) })),
  )
}
await browser.close()
