// The calls of a driver that succeed without doing anything. Without the headers: their arguments do not matter here.
#include "null_gpu.h"

#define SUCCEEDS(name)                                                                                                 \
  API int name(void) { return 0; }

SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxPushCurrent_v2)
SUCCEEDS(cuCtxPopCurrent_v2)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuStreamSynchronize)
SUCCEEDS(cuMemcpyHtoD_v2)
SUCCEEDS(cuMemcpyDtoH_v2)
SUCCEEDS(cuMemFree_v2)
SUCCEEDS(cuMemAlloc_v2)
SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cuTensorMapEncodeIm2col)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetLimit)
