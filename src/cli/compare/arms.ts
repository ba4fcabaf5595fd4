/** Ways to restore, in the order of their rows. */
export const arms = ['kernel-file', 'on-demand', 'page-cache', 'working-set', 'auto'] as const
export type Arm = (typeof arms)[number]
