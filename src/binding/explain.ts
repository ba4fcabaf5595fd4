import { getSystemErrorName as errnoName } from 'node:util'
import { ReapTraceError } from '../errors.js'
import { fileExplanations } from './explain-file.js'
import { vmmExplanations } from './explain-vmm.js'
import type {
  Explain,
  Explanation,
  FailureContext,
  NativeErrorCode,
  NativeFailure,
} from './failure.js'

function explainLimit({ check, errno, syscall }: NativeFailure): Explanation {
  return {
    message: `no file descriptor is left: ${syscall} failed with ${errnoName(errno)}`,
    hint:
      check === 'RLIMIT_NOFILE'
        ? 'Raise the limit of open files of this process (ulimit -n; LimitNOFILE in systemd).'
        : 'Raise the limit of open files of this host (sysctl fs.file-max).',
  }
}

/** Describes why the engine, or a task of it, has not started. */
function explainStart({ syscall, errno }: NativeFailure): Explanation {
  const failed = `${syscall} failed with ${errnoName(errno)}`
  return syscall === 'pthread_create'
    ? {
        message: `no thread can be started: ${failed}`,
        hint: "Is the limit of threads reached? It is RLIMIT_NPROC (ulimit -u) for a user, pids.max for a cgroup (systemd's TasksMax). Or is there no memory for a stack?",
      }
    : { message: `the engine cannot start: ${failed}` }
}

const explanations: Readonly<Record<NativeErrorCode, Explain>> = {
  ...vmmExplanations,
  ...fileExplanations,
  ERR_NATIVE_UNAVAILABLE: explainStart,
  ERR_LIMIT: explainLimit,
}

/** Message, remedy and path for a native failure. */
function explain(failure: NativeFailure, context: FailureContext): Explanation {
  const explanation = explanations[failure.code](failure, context)
  const { vm } = context
  // 0: in another pid namespace.
  const name = vm?.pid ? `the VM (pid ${vm.pid})` : 'the VM'
  if (vm?.state === 'vm-killed') {
    return { ...explanation, message: `${explanation.message}; ${name} was killed` }
  }
  if (vm?.state === 'vm-left') {
    return {
      ...explanation,
      message: `${explanation.message}; ${name} was left without a handler and will freeze at its next fault`,
    }
  }
  return explanation
}

/** Turns a native failure into the error for the user. */
export function toError(failure: NativeFailure, context: FailureContext): ReapTraceError {
  const { code } = failure
  const { message, hint, path } = explain(failure, context)
  return new ReapTraceError(code, message, {
    hint,
    path,
    errno: failure.errno === 0 ? undefined : failure.errno,
    syscall: failure.syscall === '' ? undefined : failure.syscall,
    check: failure.check === '' ? undefined : failure.check,
    offset:
      failure.offset === 0n && (failure.check === '' || code === 'ERR_PAGE_CACHE')
        ? undefined
        : Number(failure.offset),
  })
}
