// libcuda.so.1 of the null GPU: the calls of a driver that torch, Inductor and Triton use. Modules and kernels have
// only names, no code.
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "null_gpu.h"

#define HANDLE ((void *)8)  // for all objects that need a handle

// The card and the counters belong to the preloaded library, which may be missing.
static const struct card *the_card(void) {
  static const struct card *(*card_of_runtime)(void);
  static const struct card none = {.n_devices = 0};
  if (!card_of_runtime) card_of_runtime = dlsym(RTLD_DEFAULT, "null_gpu_card");
  return card_of_runtime ? card_of_runtime() : &none;
}

static CUresult launched(CUfunction function, unsigned n_blocks, unsigned n_threads) {
  static void (*count)(enum counter, long long);
  static void (*write_log)(const char *, ...);
  if (!count) count = dlsym(RTLD_DEFAULT, "null_gpu_count"), write_log = dlsym(RTLD_DEFAULT, "null_gpu_log");
  count(COUNT_triton_kernel, 1);
  write_log("triton_kernel %ux%u %s", n_blocks, n_threads, (const char *)function);
  return CUDA_SUCCESS;
}

API CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult error, const char **text) { return *text = "null GPU", CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult error, const char **text) { return *text = "null GPU", CUDA_SUCCESS; }

// --- Devices and contexts --------------------------------------------------------------------------------------------

API CUresult cuDeviceGet(CUdevice *device, int number) { return *device = number, CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *n) { return *n = the_card()->n_devices, CUDA_SUCCESS; }

API CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
  snprintf(name, size, "%s", the_card()->name);
  return CUDA_SUCCESS;
}

API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = the_card()->capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = the_card()->capability % 10; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = the_card()->multiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = the_card()->shared_memory; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = the_card()->shared_memory + 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
    default: *value = 1;
  }
  return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *is_active) {
  if (flags) *flags = 0;
  if (is_active) *is_active = 1;
  return CUDA_SUCCESS;
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  return *context = HANDLE, CUDA_SUCCESS;
}

API CUresult cuCtxGetCurrent(CUcontext *context) { return *context = HANDLE, CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }

API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return *(CUdeviceptr *)value = pointer, CUDA_SUCCESS;
  return *(int *)value = 0, CUDA_SUCCESS;
}

// --- Modules and launches --------------------------------------------------------------------------------------------

API CUresult cuModuleLoad(CUmodule *module, const char *path) { return *module = HANDLE, CUDA_SUCCESS; }
API CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = HANDLE, CUDA_SUCCESS; }

API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned n, CUjit_option *options, void **values) {
  return *module = HANDLE, CUDA_SUCCESS;
}

API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  return *function = (CUfunction)strdup(name), CUDA_SUCCESS;
}

API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 32
           : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                  : 0;
  return CUDA_SUCCESS;
}

API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared_memory, CUstream stream,
                            void **arguments, void **extra) {
  return launched(function, grid_x * grid_y * grid_z, block_x * block_y * block_z);
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig *how, CUfunction function, void **arguments, void **extra) {
  return launched(function, how->gridDimX * how->gridDimY * how->gridDimZ,
                  how->blockDimX * how->blockDimY * how->blockDimZ);
}

API CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction function, const CUlaunchConfig *how) {
  return *n = 1, CUDA_SUCCESS;
}

API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction function, int block, size_t memory) {
  return *n = 2, CUDA_SUCCESS;
}
