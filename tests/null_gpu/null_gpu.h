// Shared by the parts of the null GPU: the description of the card, counters with names, a log, and the rules of a
// capture. See README.md.
#pragma once
#include <stdbool.h>
#include <stddef.h>

#define API __attribute__((visibility("default")))

// Each counter is a number of calls since the last reset, except for those that end in `bytes`.
#define COUNTERS(X)                                                                                                    \
  X(kernel)              /* launches of compiled-in kernels: torch's own, and those of its libraries */               \
  X(triton_kernel)       /* launches of kernels that were compiled in this process */                                 \
  X(matmul)              /* cuBLAS and cuBLASLt */                                                                     \
  X(collective)          /* NCCL */                                                                                    \
  X(host_to_device)      /* copies; from pageable memory they count a second time below */                            \
  X(host_to_device_bytes)                                                                                              \
  X(device_to_host)                                                                                                    \
  X(device_to_device)                                                                                                  \
  X(pageable_copy)       /* between the device and host memory that is not pinned: the driver may wait */             \
  X(synchronous_copy)    /* cudaMemcpy: the host waits */                                                              \
  X(memset)                                                                                                            \
  X(synchronize)         /* of a stream, an event or the device: the host waits */                                    \
  X(device_malloc)                                                                                                     \
  X(device_malloc_bytes)                                                                                               \
  X(device_free)         /* of memory given back to the driver: the host waits */                                     \
  X(pinned_malloc)                                                                                                     \
  X(event_record)                                                                                                      \
  X(event_wait)          /* a stream waits for an event; the host does not */                                         \
  X(capture)             /* captures started */                                                                        \
  X(replay)              /* graphs launched */                                                                         \
  X(forbidden)           /* calls that a capture does not allow */

#define NAME_COUNTER(name) COUNT_##name,
enum counter { COUNTERS(NAME_COUNTER) N_COUNTERS };

struct card {
  int n_devices;
  int capability;  // 90 is compute capability 9.0
  size_t memory;   // bytes
  int multiprocessors;
  int shared_memory;  // bytes that a block may opt in to
  char name[128];
};

API const struct card *null_gpu_card(void);
API void null_gpu_count(enum counter counter, long long n);
API void null_gpu_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
