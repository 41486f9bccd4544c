// NCCL of the null GPU: communicators have a rank and a size, collectives are counted, and nothing is exchanged.
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

struct ncclComm {
  int rank, n_ranks, device;
};

static ncclResult_t collective(const char *name, size_t n) {
  null_gpu_count(COUNT_collective, 1);
  null_gpu_log("collective %s of %zu", name, n);
  return ncclSuccess;
}

API ncclResult_t ncclGetVersion(int *version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }
API const char *ncclGetErrorString(ncclResult_t result) { return "null GPU"; }
API const char *ncclGetLastError(ncclComm_t comm) { return ""; }
API ncclResult_t ncclGetUniqueId(ncclUniqueId *id) { return memset(id, 1, sizeof *id), ncclSuccess; }

API ncclResult_t ncclCommInitRank(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank) {
  *comm = malloc(sizeof **comm);
  **comm = (struct ncclComm){rank, n_ranks, 0};
  cudaGetDevice(&(*comm)->device);
  return ncclSuccess;
}

API ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank, ncclConfig_t *how) {
  return ncclCommInitRank(comm, n_ranks, id, rank);
}

API ncclResult_t ncclCommInitRankScalable(ncclComm_t *comm, int n_ranks, int rank, int n_ids, ncclUniqueId *ids,
                                          ncclConfig_t *how) {
  return ncclCommInitRank(comm, n_ranks, *ids, rank);
}

API ncclResult_t ncclCommCount(const ncclComm_t comm, int *n) { return *n = comm->n_ranks, ncclSuccess; }
API ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) { return *rank = comm->rank, ncclSuccess; }
API ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) { return *device = comm->device, ncclSuccess; }

API ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
  return *error = ncclSuccess, ncclSuccess;
}

API ncclResult_t ncclCommFinalize(ncclComm_t comm) { return ncclSuccess; }
API ncclResult_t ncclCommDestroy(ncclComm_t comm) { return free(comm), ncclSuccess; }
API ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclSuccess; }
API ncclResult_t ncclGroupStart(void) { return ncclSuccess; }
API ncclResult_t ncclGroupEnd(void) { return ncclSuccess; }

API ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t operation,
                               ncclComm_t comm, cudaStream_t stream) {
  return collective("all_reduce", n);
}

API ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t type, int root, ncclComm_t comm,
                               cudaStream_t stream) {
  return collective("broadcast", n);
}

API ncclResult_t ncclBcast(void *buffer, size_t n, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return collective("broadcast", n);
}

API ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t type, ncclComm_t comm,
                               cudaStream_t stream) {
  return collective("all_gather", n);
}
