#include <cblas.h>

// LAPACK's compact WY form and its application, which OpenBLAS contains without a header of its
// own.
void slarft_(const char *direct, const char *storev, const int *n, const int *k, const float *v,
             const int *ldv, const float *tau, float *t, const int *ldt);
void slarfb_(const char *side, const char *trans, const char *direct, const char *storev,
             const int *m, const int *n, const int *k, const float *v, const int *ldv,
             const float *t, const int *ldt, float *c, const int *ldc, float *work,
             const int *ldwork);
