// cuBLAS and cuBLASLt of the null GPU: matrix products are counted and logged, but not computed.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdlib.h>

#include "null_gpu.h"

#define OK CUBLAS_STATUS_SUCCESS
#define HANDLE_BYTES 1024  // no opaque type is larger

static cublasStatus_t multiplied(const char *call, long m, long n, long k, long batch) {
  null_gpu_count(COUNT_matmul, 1);
  null_gpu_log("matmul %s %ldx%ldx%ld, batch of %ld", call, m, n, k, batch);
  return OK;
}

// --- cuBLAS ----------------------------------------------------------------------------------------------------------

API cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) { return *handle = calloc(1, HANDLE_BYTES), OK; }
API cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { return OK; }
API cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) { return OK; }
API cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t size) { return OK; }
API cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) { return OK; }
API cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) { return *mode = 0, OK; }
API cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) { return OK; }
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) { return *mode = 0, OK; }

API cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                int k, const void *alpha, const void *a, cudaDataType type_a, int lda, const void *b,
                                cudaDataType type_b, int ldb, const void *beta, void *c, cudaDataType type_c, int ldc,
                                cublasComputeType_t type, cublasGemmAlgo_t algorithm) {
  return multiplied("GemmEx", m, n, k, 1);
}

API cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                              int m, int n, int k, const void *alpha, const void *a,
                                              cudaDataType type_a, int lda, long long stride_a, const void *b,
                                              cudaDataType type_b, int ldb, long long stride_b, const void *beta,
                                              void *c, cudaDataType type_c, int ldc, long long stride_c, int batch,
                                              cublasComputeType_t type, cublasGemmAlgo_t algorithm) {
  return multiplied("GemmStridedBatchedEx", m, n, k, batch);
}

API cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                  int k, const float *alpha, const float *a, int lda, const float *b, int ldb,
                                  const float *beta, float *c, int ldc) {
  return multiplied("Sgemm", m, n, k, 1);
}

API cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                             int m, int n, int k, const float *alpha, const float *a, int lda,
                                             long long stride_a, const float *b, int ldb, long long stride_b,
                                             const float *beta, float *c, int ldc, long long stride_c, int batch) {
  return multiplied("SgemmStridedBatched", m, n, k, batch);
}

API cublasStatus_t cublasSgemv_v2(cublasHandle_t handle, cublasOperation_t op, int m, int n, const float *alpha,
                                  const float *a, int lda, const float *x, int step_x, const float *beta, float *y,
                                  int step_y) {
  return multiplied("Sgemv", m, n, 1, 1);
}

API cublasStatus_t cublasSdot_v2(cublasHandle_t handle, int n, const float *x, int step_x, const float *y, int step_y,
                                 float *result) {
  return multiplied("Sdot", 1, 1, n, 1);
}

// --- cuBLASLt --------------------------------------------------------------------------------------------------------

struct layout {
  long rows, columns;
};

API cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                              uint64_t columns, int64_t leading) {
  *layout = calloc(1, HANDLE_BYTES);
  *(struct layout *)*layout = (struct layout){(long)rows, (long)columns};
  return OK;
}

API cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return free(layout), OK; }

API cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                    cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                    size_t size) {
  return OK;
}

API cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t compute,
                                            cudaDataType_t scale) {
  return *description = calloc(1, HANDLE_BYTES), OK;
}

API cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) { return free(description), OK; }

API cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                                  cublasLtMatmulDescAttributes_t attribute, const void *value,
                                                  size_t size) {
  return OK;
}

API cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  return *preference = calloc(1, HANDLE_BYTES), OK;
}

API cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return free(preference), OK;
}

API cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                        cublasLtMatmulPreferenceAttributes_t attribute,
                                                        const void *value, size_t size) {
  return OK;
}

API size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }

API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                                  cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                  cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                  cublasLtMatmulPreference_t preference, int n_wanted,
                                                  cublasLtMatmulHeuristicResult_t *results, int *n_found) {
  results[0] = (cublasLtMatmulHeuristicResult_t){.state = OK};
  return *n_found = 1, OK;
}

API cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,
                                  const void *a, cublasLtMatrixLayout_t layout_a, const void *b,
                                  cublasLtMatrixLayout_t layout_b, const void *beta, const void *c,
                                  cublasLtMatrixLayout_t layout_c, void *d, cublasLtMatrixLayout_t layout_d,
                                  const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t size,
                                  cudaStream_t stream) {
  const struct layout *in = (const struct layout *)layout_a, *out = (const struct layout *)layout_d;
  return multiplied("LtMatmul", out->rows, out->columns, in->rows * in->columns / out->rows, 1);
}
