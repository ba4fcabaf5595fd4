# All compiled targets, for scripts/build-native.mjs, which selects among them.
# node-gyp defines flags only for Release (-O3); the tests have separate
# configurations, each with a folder in build/.
{
  'target_defaults': {
    'cflags!': ['-Wno-unused-parameter'],
    'cflags': ['-Wall', '-Wextra', '-Werror', '-fvisibility=hidden', '-pthread'],
    'cflags_cc!': ['-std=gnu++20', '-std=gnu++17', '-fno-rtti'],
    'cflags_cc': ['-std=c++17', '-fno-exceptions'],
    'ldflags': ['-pthread'],
    'include_dirs': ['native/engine', 'native'],
    'configurations': {
      'Test': {'cflags': ['-g', '-O1'], 'defines': ['REAP_TEST_HOOKS']},
      'Address': {
        'inherit_from': ['Test'],
        'cflags': [
          '-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer',
        ],
        'ldflags': ['-fsanitize=address,undefined'],
      },
      'Thread': {
        'inherit_from': ['Test'],
        'cflags': ['-fsanitize=thread'],
        'ldflags': ['-fsanitize=thread'],
      },
      # With clang only.
      'Fuzz': {
        'inherit_from': ['Test'],
        'cflags': ['-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all'],
        'ldflags': ['-fsanitize=fuzzer,address,undefined'],
      },
    },
  },
  'targets': [
    {
      'target_name': 'engine',
      'type': 'static_library',
      'sources': ["<!@(find native/engine -name '*.cc')"],
    },
    {
      'target_name': 'reap_trace',
      'sources': ["<!@(ls native/addon/*.cc)"],
      'dependencies': ['engine'],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      # In a worker thread that is being terminated no exception can be thrown; without the last define this
      # ends the process.
      'defines': [
        'NODE_ADDON_API_DISABLE_DEPRECATED',
        'NAPI_DISABLE_CPP_EXCEPTIONS',
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
      ],
      # The last worker thread that has loaded it would unload it, while the prefetchers' threads still run.
      'ldflags': ['-Wl,-z,nodelete'],
    },
    {
      'target_name': 'reap-guest',
      'type': 'executable',
      'sources': ["<!@(ls native/guest/*.cc)"],
    },
    {
      # Loaded into other programs: no C++ library, and only the symbols that it replaces.
      'target_name': 'reap-interposer',
      'type': 'shared_library',
      'product_prefix': '',
      'sources': ["<!@(ls native/interposer/*.cc)"],
      # It would make mmap() an alias of mmap64(), and both are defined here.
      'defines!': ['_FILE_OFFSET_BITS=64'],
      'cflags_cc': ['-fno-rtti', '-fno-threadsafe-statics'],
      'ldflags': ['-nodefaultlibs', '-Wl,--no-undefined', '-Wl,-z,now'],
      'libraries': ['-lc', '-lgcc'],
    },
    {
      # For measurements only. It shares the sockets, the handshake and the ioctls with the package,
      # and is not part of it.
      'target_name': 'reap-bench',
      'type': 'executable',
      'sources': [
        "<!@(ls bench/native/*.cc)",
        'native/guest/answer.cc', 'native/guest/handshake_sender.cc', 'native/guest/userfault.cc',
      ],
      'dependencies': ['engine'],
      'include_dirs': ['bench/native'],
    },
    {
      'target_name': 'native-tests',
      'type': 'executable',
      'sources': ["<!@(find test/native -name '*.cc' ! -name 'fuzz_*')"],
      'dependencies': ['engine'],
      'include_dirs': ['test/native'],
    },
    {
      'target_name': 'fuzz-handshake',
      'type': 'executable',
      'sources': ['test/native/handshake/fuzz_parser.cc', 'native/engine/handshake/parser.cc'],
    },
  ],
  'conditions': [
    ['target_arch=="x64"', {
      'targets': [
        {
          # Booted by Firecracker: it has neither a kernel nor a C library, and never saves the processor's
          # floating-point registers.
          'target_name': 'reap-microvm',
          'type': 'executable',
          'sources': ["<!@(ls native/guest/microvm/*.cc native/guest/microvm/*.S)"],
          'cflags!': ['-pthread', '-fPIC'],
          'cflags': ['-ffreestanding', '-mgeneral-regs-only', '-mno-red-zone', '-fno-pic', '-fno-pie'],
          'cflags_cc': [
            '-fno-rtti', '-fno-stack-protector', '-fno-asynchronous-unwind-tables',
            '-fno-threadsafe-statics', '-fcf-protection=none',
          ],
          'ldflags!': ['-pthread', '-rdynamic'],
          'ldflags': [
            '-nostdlib', '-static', '-no-pie', '-Wl,--build-id=none', '-Wl,-z,max-page-size=4096',
            '-Wl,-z,norelro', '-Wl,-T,<(module_root_dir)/native/guest/microvm/microvm.ld',
          ],
        },
      ],
    }],
  ],
}
