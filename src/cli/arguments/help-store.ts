// Text below the options of "store" and of its commands in --help.

export const storeHelp = `
A store is a folder in which "restore --store DIR" and openStore() keep what restores have taught:
for each snapshot its working sets, and the evidence that they are made of. docs/store.md has the
rest. Each of these commands may run while other processes restore from the store.

Examples:
  $ reap-trace store ls /var/lib/reap-trace
  $ reap-trace store show /var/lib/reap-trace --memory vm.mem
  $ reap-trace store export /var/lib/reap-trace --memory vm.mem -o vm.evidence
  $ reap-trace store import /var/lib/reap-trace vm.evidence --memory vm.mem

"reap-trace store COMMAND --help" shows the options and more examples.`

export const storeListHelp = `
"restores" counts the restores that taught something. --json prints one object per snapshot, as
store.snapshots() returns it.

Examples:
  $ reap-trace store ls /var/lib/reap-trace
  $ reap-trace store ls /var/lib/reap-trace --json | jq -r 'select(.restoreCount < 2).key'`

const named = `
A snapshot is named by its key, as "store ls" prints it, or by its memory file; a snapshot that is
restored with a --snapshot-id needs that id too.`

export const storeShowHelp = `${named}

"residual" is the share of the touched pages that the set did not have, and "waste" the share of
the set that was not touched: an estimate from pages that restores leave out by chance. "now" is
the mean of the last few restores. A drift is a change of what restores touch. --json prints the
object that store.describe() returns.

Examples:
  $ reap-trace store show /var/lib/reap-trace 5f2c0e9b17aa4d63
  $ reap-trace store show /var/lib/reap-trace --memory vm.mem
  $ reap-trace store show /var/lib/reap-trace --memory vm.mem --json | jq .learned.quality`

export const storeForgetHelp = `${named}

Its next restore begins again and records. The exit status is 1 if the store does not have it.

Examples:
  $ reap-trace store forget /var/lib/reap-trace --memory vm.mem
  $ reap-trace store forget /var/lib/reap-trace 5f2c0e9b17aa4d63`

export const storeExportHelp = `${named}

Example:
  $ reap-trace store export /var/lib/reap-trace --memory vm.mem -o vm.evidence`

export const storeImportHelp = `
The memory file must be that of the exported snapshot, such as a copy of it. The bytes of the sets
are read from it, so that the first restore on this host already prefetches.

Examples:
  $ reap-trace store import /var/lib/reap-trace vm.evidence --memory vm.mem
  $ reap-trace store import /var/lib/reap-trace vm.evidence --memory vm.mem --snapshot-id build-417`
