/** Reads an OpenAPI document with Redocly's recommended rules: a line for each thing that it finds. */

import { createConfig, lint } from '@redocly/openapi-core'

const config = await createConfig({ extends: ['recommended'] })
for (const found of await lint({ ref: process.argv[2], config })) {
  console.log(`${found.severity} ${found.ruleId} at ${found.location[0]?.pointer}: ${found.message}`)
}
