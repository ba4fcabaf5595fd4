import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Keeps what tests find out about their files from the user's own cache folder. */
export default function setup(): () => void {
  const folder = mkdtempSync(join(tmpdir(), 'reap-proofs-'))
  process.env.REAP_TRACE_PROOFS = folder
  return () => rmSync(folder, { recursive: true })
}
