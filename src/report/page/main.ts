import 'uplot/dist/uPlot.min.css'
import './style.css'
import type { Entry, PageData } from '../page-data.js'
import { comparisonPanels } from './comparisons.js'
import { element } from './dom.js'
import { type Named, nameOf } from './entries.js'
import { restorePanels } from './restores.js'
import { workingSetPanels } from './working-sets.js'

async function readData(): Promise<PageData> {
  const text = document.getElementById('data')!.textContent!.trim()
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'))
  return JSON.parse(await new Response(stream).text()) as PageData
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'

const header = (entries: readonly Named[]): HTMLElement =>
  element(
    'header',
    {},
    element('h1', {}, 'reap-trace report'),
    element('p', { class: 'names' }, ...entries.map(nameOf)),
  )

const ofKind = <K extends Entry['kind']>(entries: readonly Named[], kind: K) =>
  entries.filter(({ entry }) => entry.kind === kind) as Named<Extract<Entry, { kind: K }>>[]

const data = await readData()
const entries = data.entries.map((entry, place) => ({ entry, place, letter: LETTERS[place % 26]! }))
const sets = ofKind(entries, 'working-set')
const restores = ofKind(entries, 'restore')
const comparisons = ofKind(entries, 'comparison')
document.body.append(
  header(entries),
  element(
    'main',
    {},
    ...(comparisons.length > 0 ? comparisonPanels(comparisons) : []),
    ...(restores.length > 0 ? restorePanels(restores, sets) : []),
    ...(sets.length > 0 ? workingSetPanels(sets) : []),
  ),
)
