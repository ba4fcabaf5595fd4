{
  'target_defaults': {
    'cflags': [
      '-O2', '-Wall', '-Wextra', '-Werror', '-fvisibility=hidden', '-pthread',
    ],
    'cflags_cc!': ['-std=gnu++20', '-std=gnu++17', '-fno-rtti'],
    'cflags_cc': ['-std=c++17', '-fno-exceptions'],
    'include_dirs': ['native'],
  },
  'targets': [
    {
      'target_name': 'reap_trace',
      'sources': [
        'native/addon.cc',
        'native/addon_comparison.cc',
        'native/addon_files.cc',
        'native/addon_page_cache.cc',
        'native/cached_file.cc',
        'native/comparison.cc',
        'native/cores.cc',
        'native/crc32c.cc',
        'native/engine.cc',
        'native/fault_handler.cc',
        'native/fault_handler_fill.cc',
        'native/gate.cc',
        'native/guest_memory.cc',
        'native/handshake.cc',
        'native/handshake_parser.cc',
        'native/locality.cc',
        'native/mapped_pages.cc',
        'native/page_cache_prefetcher.cc',
        'native/page_cache_recorder.cc',
        'native/page_samples.cc',
        'native/page_source.cc',
        'native/plan.cc',
        'native/prefetch_order.cc',
        'native/prefetch_sharing.cc',
        'native/prefetch_tasks.cc',
        'native/private_file.cc',
        'native/prefetcher.cc',
        'native/session.cc',
        'native/session_handshake.cc',
        'native/survey.cc',
        'native/uffd.cc',
        'native/working_set_index.cc',
      ],
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
