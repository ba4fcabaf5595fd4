import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Keeps the findings of tests about their files out of the user's cache folder. */
export default function setup(): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'reap-proofs-'))
  process.env.REAP_TRACE_PROOFS = folder
  return () => rmSync(folder, { recursive: true })
}
