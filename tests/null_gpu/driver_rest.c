// Driver calls that succeed without doing anything, and calls that our code should not make. Uses no headers, because
// the arguments do not matter.
#include "null_gpu.h"

#define SUCCEEDS(name)                                                                                                 \
  API int name(void) { return 0; }
#define NOT_SUPPORTED(name)                                                                                            \
  API int name(void) { return 801; }

SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxPushCurrent_v2)
SUCCEEDS(cuCtxPopCurrent_v2)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cuTensorMapEncodeIm2col)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetLimit)
NOT_SUPPORTED(cuStreamSynchronize)
NOT_SUPPORTED(cuMemAlloc_v2)
NOT_SUPPORTED(cuMemFree_v2)
NOT_SUPPORTED(cuMemcpyHtoD_v2)
NOT_SUPPORTED(cuMemcpyDtoH_v2)
