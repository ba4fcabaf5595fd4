{
  'target_defaults': {
    'cflags': [
      '-O2', '-Wall', '-Wextra', '-Werror', '-fvisibility=hidden', '-pthread',
    ],
    'cflags_cc!': ['-std=gnu++20', '-std=gnu++17', '-fno-rtti'],
    'cflags_cc': ['-std=c++17', '-fno-exceptions'],
    'include_dirs': ['native/engine', 'native'],
  },
  'targets': [
    {
      'target_name': 'reap_trace',
      'sources': ["<!@(find native/engine native/addon -name '*.cc')"],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      # In a worker thread that is being terminated no exception can be thrown; without the last one that
      # ends the process.
      'defines': [
        'NODE_ADDON_API_DISABLE_DEPRECATED',
        'NAPI_DISABLE_CPP_EXCEPTIONS',
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
      ],
      # The last worker thread to end that has loaded it unloads it, and the prefetchers' threads stay.
      'ldflags': ['-Wl,-z,nodelete'],
    },
    {
      'target_name': 'reap-guest',
      'type': 'executable',
      'sources': ["<!@(ls native/guest/*.cc)"],
      'ldflags': ['-pthread'],
    },
    {
      # Loaded into processes of others: no C++ library, and no symbols but those that it replaces.
      'target_name': 'reap-interposer',
      'type': 'shared_library',
      'product_prefix': '',
      'sources': ["<!@(ls native/interposer/*.cc)"],
      # It makes mmap() another name for mmap64(), and both are defined here.
      'defines!': ['_FILE_OFFSET_BITS=64'],
      'cflags_cc': ['-fno-rtti', '-fno-threadsafe-statics'],
      'ldflags': ['-nodefaultlibs', '-Wl,--no-undefined', '-Wl,-z,now'],
      'libraries': ['-lc', '-lgcc'],
    },
  ],
  'conditions': [
    ['target_arch=="x64"', {
      'targets': [
        {
          # What a Firecracker boots: no kernel below it and no C library, and the processor's registers
          # for floating point are nobody's.
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
