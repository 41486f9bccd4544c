// The CUDA runtime of the null GPU, loaded before the real one by LD_PRELOAD. Device memory is address space that
// cannot be read, kernels do nothing, and everything that the host copies back is zero.
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "null_gpu.h"

#define COUNT(name) null_gpu_count(COUNT_##name, 1)
#define MAX_DEVICES 8
#define MIB ((size_t)1 << 20)
#define GRANULE (2 * MIB)    // a real driver rounds allocations up to this
#define CONTEXT (500 * MIB)  // memory of the card that a context takes

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// --- The card, as the environment describes it -----------------------------------------------------------------------

static struct card the_card;

static double number(const char *variable, double otherwise) {
  const char *text = getenv(variable);
  return text ? atof(text) : otherwise;
}

static void describe_card(void) {
  const char *name = getenv("NULL_GPU_NAME");
  struct card *c = &the_card;
  c->n_devices = (int)number("NULL_GPU_DEVICES", 1);
  if (c->n_devices > MAX_DEVICES) c->n_devices = MAX_DEVICES;
  c->capability = (int)number("NULL_GPU_CAPABILITY", 90);
  c->memory = (size_t)(number("NULL_GPU_GIB", 79.1) * 1024) * MIB;
  c->multiprocessors = c->capability >= 80 ? 132 : 40;
  c->shared_memory = c->capability >= 90   ? 232448
                     : c->capability == 80 ? 166912
                     : c->capability > 80  ? 101376
                     : c->capability == 75 ? 65536
                                           : 98304;
  snprintf(c->name, sizeof c->name, "%s", name ? name : "NVIDIA H100 80GB HBM3");
}

API const struct card *null_gpu_card(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, describe_card);
  return &the_card;
}

// --- Counters and the log, for Python through ctypes -----------------------------------------------------------------

#define NAME_TEXT(name) #name,
static const char *const counter_names[] = {COUNTERS(NAME_TEXT) NULL};
static long long counters[N_COUNTERS];
static FILE *log_file;

void null_gpu_count(enum counter counter, long long n) { __atomic_add_fetch(&counters[counter], n, __ATOMIC_RELAXED); }

API const char *null_gpu_counter_name(int counter) { return counter < N_COUNTERS ? counter_names[counter] : NULL; }

API long long null_gpu_counter(int counter) { return counters[counter]; }

API void null_gpu_reset(void) { memset(counters, 0, sizeof counters); }

// Write a line for each launch, copy and wait from now on, starting with the time in nanoseconds on the profiler's
// clock. NULL ends the log.
API void null_gpu_log_to(const char *path) {
  if (log_file) fclose(log_file);
  log_file = path ? fopen(path, "w") : NULL;
}

void null_gpu_log(const char *format, ...) {
  if (!log_file) return;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(log_file, "%lld%09ld %s\n", (long long)now.tv_sec, now.tv_nsec, line);
}

// --- Errors ----------------------------------------------------------------------------------------------------------

static __thread cudaError_t last_error;

static cudaError_t failed(cudaError_t error) { return last_error = error; }

API cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

API cudaError_t cudaPeekAtLastError(void) { return last_error; }

API const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess                         ? "cudaSuccess"
         : error == cudaErrorMemoryAllocation         ? "cudaErrorMemoryAllocation"
         : error == cudaErrorStreamCaptureUnsupported ? "cudaErrorStreamCaptureUnsupported"
                                                      : "cudaErrorOfTheNullGpu";
}

API const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                         ? "no error"
         : error == cudaErrorMemoryAllocation         ? "out of memory"
         : error == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
         : error == cudaErrorStreamCaptureInvalidated ? "operation failed due to a previous error during capture"
         : error == cudaErrorInvalidDevice            ? "invalid device ordinal"
                                                      : "an error of the null GPU";
}

// --- Captures --------------------------------------------------------------------------------------------------------
// One capture at a time. The rules are our own, based on the documentation of cudaStreamBeginCapture for the modes
// `global` and `thread_local`. A real driver may differ.

static cudaStream_t capturing_stream;
static bool is_capturing, is_invalid;  // invalid: a forbidden call was made during the capture
static unsigned long long n_captures;
static __thread bool captures_here;  // this thread started the capture
static __thread enum cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

static bool is_in_capture(cudaStream_t stream) { return is_capturing && stream == capturing_stream; }

static bool is_unsafe_here(void) { return captures_here && mode != cudaStreamCaptureModeRelaxed; }

static cudaError_t forbidden(const char *call) {
  COUNT(forbidden);
  is_invalid = true;
  null_gpu_log("forbidden %s", call);
  fprintf(stderr, "null GPU: %s is not allowed during a capture\n", call);
  return failed(cudaErrorStreamCaptureUnsupported);
}

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode new_mode) {
  if (is_capturing || getenv("NULL_GPU_REFUSES_CAPTURE")) return forbidden("cudaStreamBeginCapture");
  COUNT(capture);
  capturing_stream = stream, is_capturing = captures_here = true, is_invalid = false, mode = new_mode, n_captures++;
  return cudaSuccess;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (!is_in_capture(stream)) return forbidden("cudaStreamEndCapture");
  is_capturing = captures_here = false, mode = cudaStreamCaptureModeGlobal;
  *graph = is_invalid ? NULL : calloc(1, 64);
  return is_invalid ? failed(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = is_in_capture(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                         unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                         const cudaGraphEdgeData **edges, size_t *n_nodes) {
  if (id) *id = n_captures;
  if (graph) *graph = NULL;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (n_nodes) *n_nodes = 0;
  return cudaStreamIsCapturing(stream, status);
}

API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *exchanged) {
  enum cudaStreamCaptureMode before = mode;
  mode = *exchanged, *exchanged = before;
  return cudaSuccess;
}

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *runnable, cudaGraph_t graph, unsigned long long flags) {
  *runnable = calloc(1, 64);
  return cudaSuccess;
}

API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  COUNT(replay);
  null_gpu_log("replay");
  return cudaSuccess;
}

API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes) {
  *n_nodes = 1;
  return cudaSuccess;
}

API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return free(graph), cudaSuccess; }

// --- Devices ---------------------------------------------------------------------------------------------------------

static __thread int current_device;

API cudaError_t cudaGetDeviceCount(int *n) { return *n = null_gpu_card()->n_devices, cudaSuccess; }
API cudaError_t cudaGetDevice(int *device) { return *device = current_device, cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }

API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= null_gpu_card()->n_devices) return failed(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, null_gpu_card()->name);
  p->totalGlobalMem = null_gpu_card()->memory;
  p->major = null_gpu_card()->capability / 10, p->minor = null_gpu_card()->capability % 10;
  p->multiProcessorCount = null_gpu_card()->multiprocessors;
  p->maxThreadsPerMultiProcessor = null_gpu_card()->capability == 75 ? 1024 : 2048;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = null_gpu_card()->shared_memory;
  p->sharedMemPerMultiprocessor = null_gpu_card()->shared_memory + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->memPitch = 2147483647, p->textureAlignment = 512, p->l2CacheSize = 50 * MIB, p->memoryBusWidth = 5120;
  p->unifiedAddressing = p->managedMemory = p->concurrentKernels = 1;
  p->pciBusID = device + 1;
  memset(p->uuid.bytes, device + 1, sizeof p->uuid.bytes);
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

API cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 1, cudaSuccess; }
API cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return cudaSuccess; }

API cudaError_t cudaDeviceSynchronize(void) {
  COUNT(synchronize);
  null_gpu_log("synchronize device");
  return captures_here ? forbidden("cudaDeviceSynchronize") : cudaSuccess;
}

// --- Memory ----------------------------------------------------------------------------------------------------------
// Each device has an address range without access rights, and pinned memory has one with access rights. The range of a
// pointer says which kind of memory it points to. Addresses are not reused.

struct allocation {
  char *start;
  size_t size;
};

struct arena {
  char *start, *next;
  size_t size, used;
  struct allocation *live;
  int n_live, room;
};

static struct arena devices[MAX_DEVICES], pinned;

static void reserve(struct arena *arena, size_t size, int rights) {
  arena->start = mmap(NULL, size, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena->start == MAP_FAILED) perror("null GPU: mmap"), abort();
  arena->next = arena->start, arena->size = size;
}

static void reserve_all(void) {
  for (int i = 0; i < null_gpu_card()->n_devices; i++) reserve(&devices[i], (size_t)4 << 40, PROT_NONE);
  reserve(&pinned, (size_t)64 << 30, PROT_READ | PROT_WRITE);
}

static void *take(struct arena *arena, size_t size, size_t limit) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, reserve_all);
  char *start = NULL;
  pthread_mutex_lock(&lock);
  if (arena->used + size <= limit && arena->next + size <= arena->start + arena->size) {
    if (arena->n_live == arena->room) {
      arena->room = arena->room ? 2 * arena->room : 256;
      arena->live = realloc(arena->live, arena->room * sizeof *arena->live);
    }
    start = arena->next;
    arena->live[arena->n_live++] = (struct allocation){start, size};
    arena->next += size, arena->used += size;
  }
  pthread_mutex_unlock(&lock);
  return start;
}

static void give_back(struct arena *arena, void *start) {
  pthread_mutex_lock(&lock);
  for (int i = arena->n_live - 1; i >= 0; i--) {
    if (arena->live[i].start == start) {
      madvise(start, arena->live[i].size, MADV_DONTNEED);
      arena->used -= arena->live[i].size;
      arena->live[i] = arena->live[--arena->n_live];
      break;
    }
  }
  pthread_mutex_unlock(&lock);
}

static bool is_in(const struct arena *arena, const void *pointer) {
  return (const char *)pointer >= arena->start && (const char *)pointer < arena->start + arena->size;
}

// Return the device that a pointer belongs to, or -1.
static int device_of(const void *pointer) {
  for (int i = 0; i < null_gpu_card()->n_devices; i++)
    if (is_in(&devices[i], pointer)) return i;
  return -1;
}

static size_t usable_memory(void) {
  size_t all = null_gpu_card()->memory;
  return all > CONTEXT ? all - CONTEXT : 0;
}

API cudaError_t cudaMalloc(void **pointer, size_t size) {
  if (is_unsafe_here()) return forbidden("cudaMalloc");
  size = (size + GRANULE - 1) / GRANULE * GRANULE;
  *pointer = take(&devices[current_device], size, usable_memory());
  if (!*pointer) return failed(cudaErrorMemoryAllocation);
  COUNT(device_malloc);
  null_gpu_count(COUNT_device_malloc_bytes, (long long)size);
  return cudaSuccess;
}

API cudaError_t cudaFree(void *pointer) {
  if (!pointer || device_of(pointer) < 0) return cudaSuccess;
  COUNT(device_free);
  give_back(&devices[device_of(pointer)], pointer);
  return cudaSuccess;
}

API cudaError_t cudaMemGetInfo(size_t *n_free, size_t *total) {
  *total = null_gpu_card()->memory;
  *n_free = usable_memory() - devices[current_device].used;
  return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
  COUNT(pinned_malloc);
  *pointer = take(&pinned, (size + 4095) / 4096 * 4096, pinned.size ? pinned.size : SIZE_MAX);
  return *pointer ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

API cudaError_t cudaFreeHost(void *pointer) { return give_back(&pinned, pointer), cudaSuccess; }

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
  int device = device_of(pointer);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = device >= 0              ? cudaMemoryTypeDevice
                     : is_in(&pinned, pointer) ? cudaMemoryTypeHost
                                              : cudaMemoryTypeUnregistered;
  attributes->device = device >= 0 ? device : current_device;
  if (attributes->type != cudaMemoryTypeUnregistered) attributes->devicePointer = (void *)pointer;
  if (attributes->type == cudaMemoryTypeHost) attributes->hostPointer = (void *)pointer;
  return cudaSuccess;
}

// Count a copy. Copies from the device write zeros to host memory. Return whether host memory that is not pinned is
// involved.
static bool copy(void *to, const void *from, size_t size) {
  bool to_device = device_of(to) >= 0, from_device = device_of(from) >= 0;
  bool is_pageable = (!to_device && !is_in(&pinned, to)) || (!from_device && !is_in(&pinned, from));
  if (to_device && from_device) {
    COUNT(device_to_device);
  } else if (to_device) {
    COUNT(host_to_device);
    null_gpu_count(COUNT_host_to_device_bytes, (long long)size);
  } else if (from_device) {
    COUNT(device_to_host);
    memset(to, 0, size);
  } else {
    memcpy(to, from, size);
  }
  if (is_pageable) COUNT(pageable_copy);
  null_gpu_log("copy %s to %s%s, %zu bytes", from_device ? "device" : "host", to_device ? "device" : "host",
               is_pageable ? ", pageable" : "", size);
  return is_pageable;
}

API cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  COUNT(synchronous_copy);
  copy(to, from, size);
  return is_unsafe_here() ? forbidden("cudaMemcpy") : cudaSuccess;
}

API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
  bool is_pageable = copy(to, from, size);
  return is_pageable && is_in_capture(s) ? forbidden("cudaMemcpyAsync from or to pageable memory") : cudaSuccess;
}

API cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                  size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  for (size_t i = 0; i < height && device_of(to) < 0; i++) memset((char *)to + i * to_pitch, 0, width);
  COUNT(device_to_device);
  return cudaSuccess;
}

API cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size,
                                    cudaStream_t stream) {
  COUNT(device_to_device);
  return cudaSuccess;
}

API cudaError_t cudaMemset(void *pointer, int value, size_t size) { return COUNT(memset), cudaSuccess; }

API cudaError_t cudaMemsetAsync(void *pointer, int value, size_t size, cudaStream_t stream) {
  COUNT(memset);
  null_gpu_log("memset %zu bytes", size);
  return cudaSuccess;
}

// --- Streams and events ----------------------------------------------------------------------------------------------

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = calloc(1, 64);
  return cudaSuccess;
}

API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { return *priority = 0, cudaSuccess; }

API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  COUNT(synchronize);
  null_gpu_log("synchronize stream");
  // torch itself waits for another stream when it starts a capture, in relaxed mode or not.
  bool is_ours = is_in_capture(stream) || stream == NULL;
  return is_unsafe_here() && is_ours ? forbidden("cudaStreamSynchronize") : cudaSuccess;
}

API cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return is_in_capture(stream) ? forbidden("cudaStreamQuery") : cudaSuccess;
}

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return COUNT(event_wait), cudaSuccess;
}

API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  return function(data), cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = calloc(1, 64);
  return cudaSuccess;
}

API cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s) { return COUNT(event_record), cudaSuccess; }

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return cudaEventRecord(event, stream);
}

API cudaError_t cudaEventQuery(cudaEvent_t event) {
  return is_unsafe_here() ? forbidden("cudaEventQuery") : cudaSuccess;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  COUNT(synchronize);
  null_gpu_log("synchronize event");
  return is_unsafe_here() ? forbidden("cudaEventSynchronize") : cudaSuccess;
}

API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return *milliseconds = 1, cudaSuccess;
}

// --- Kernels ---------------------------------------------------------------------------------------------------------

struct kernel {
  const void *function;
  const char *name;
};

static struct kernel *kernels;
static int n_kernels;

API void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  return handle;
}

API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}
API char __cudaInitModule(void **handle) { return 1; }

API void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name, int n,
                                void *a, void *b, void *c, void *d, int *e) {
  pthread_mutex_lock(&lock);
  if (n_kernels % 65536 == 0) kernels = realloc(kernels, (n_kernels + 65536) * sizeof *kernels);
  kernels[n_kernels++] = (struct kernel){function, name};
  pthread_mutex_unlock(&lock);
}

API void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external, size_t size,
                           int constant, int global) {}

static const char *name_of(const void *function) {
  for (int i = 0; i < n_kernels; i++)
    if (kernels[i].function == function) return kernels[i].name;
  return "unknown";
}

static __thread struct {
  dim3 grid, block;
  size_t shared_memory;
  void *stream;
} configuration;  // of the next launch

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_memory, struct CUstream_st *stream) {
  configuration.grid = grid, configuration.block = block;
  configuration.shared_memory = shared_memory, configuration.stream = stream;
  return 0;
}

API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_memory, void *stream) {
  *grid = configuration.grid, *block = configuration.block;
  *shared_memory = configuration.shared_memory, *(void **)stream = configuration.stream;
  return cudaSuccess;
}

API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  return *kernel = (cudaKernel_t)function, cudaSuccess;
}

static cudaError_t launch(const void *function, dim3 grid, dim3 block) {
  size_t n_threads = (size_t)block.x * block.y * block.z, n_blocks = (size_t)grid.x * grid.y * grid.z;
  if (!n_threads || n_threads > 1024 || !n_blocks || grid.y > 65535 || grid.z > 65535) {
    fprintf(stderr, "null GPU: no card launches %u,%u,%u blocks of %u,%u,%u threads (%s)\n", grid.x, grid.y, grid.z,
            block.x, block.y, block.z, name_of(function));
    return failed(cudaErrorInvalidConfiguration);
  }
  COUNT(kernel);
  if (log_file) null_gpu_log("kernel %zux%zu %s", n_blocks, n_threads, name_of(function));
  return cudaSuccess;
}

API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_memory,
                                 cudaStream_t stream) {
  return launch(function, grid, block);
}

API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_memory,
                                   cudaStream_t stream) {
  return launch((const void *)kernel, grid, block);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function, void **arguments) {
  return launch(function, how->gridDim, how->blockDim);
}

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = null_gpu_card()->capability;
  attributes->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}

API cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
  return cudaSuccess;
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *function, int block,
                                                                        size_t shared_memory, unsigned flags) {
  return *n = 2, cudaSuccess;
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *function, int block, size_t memory) {
  return *n = 2, cudaSuccess;
}

// --- Driver functions, which torch looks up by name ------------------------------------------------------------------

API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                 unsigned long long flags,
                                                 enum cudaDriverEntryPointQueryResult *result) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : NULL;
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
