/** Page size of working-set files, memory files and disk images, whatever the guest uses: 4 KiB. */
export const PAGE = 4096

/** Size of a huge page of a guest: 2 MiB. */
export const HUGE_PAGE = 2 ** 21

/** Maximum size of a guest's memory: 4 TiB. It limits what a file can make a reader allocate. */
export const MAX_MEMORY = 2 ** 42
