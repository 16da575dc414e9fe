// lmk_householder.h: products of Householder-like factors, and their application to a matrix.
//
//     P = H_1 H_2 ... H_n,    H_i = I - beta_i k_i k_i^T,    k_i [dim]
//
// With beta_i = 2 / |k_i|^2 a factor is a reflection and P is orthogonal; nothing here needs that.
// Where |1 - beta_i |k_i|^2| > 1 a factor stretches, and products of many grow without bound: that
// is the caller's to know.
//
// Compact WY form: with K [n, dim] the rows k_i,
//
//     P = I - K^T T K,    T [n, n] upper triangular,    T_ii = beta_i
//     T_ij = -beta_i sum_{i < l <= j} <k_i, k_l> T_lj,  j > i
//
// which is the T of LAPACK's larft with direct 'F' (forward) and storev 'C', whose V is K^T and tau
// is beta. LAPACK wants k_i to begin with i - 1 zeros and a one; here it is any row.
//
// float32 results have the same bits for any number of threads and on AVX2, AVX-512 and NEON.
#ifndef LMK_HOUSEHOLDER_H
#define LMK_HOUSEHOLDER_H

#include "lmk_core.h"

#ifdef __cplusplus
extern "C" {
#endif

LMK_NONNULL_BEGIN

/// A batch of products.
typedef struct lmk_householder {
    /// Storage of k, x, y and their gradients; everything else is float32, and so is all
    /// arithmetic, with one rounding at the end.
    lmk_dtype dtype;
    /// `factors` is n: any number, also above dim.
    size_t batch, factors, dim;
    /// [batch, factors, dim]; a batch stride of 0 gives all the same.
    const void *LMK_NULLABLE k;
    size_t k_stride, k_batch_stride;
    /// [batch, factors]
    const float *LMK_NULLABLE beta;
    size_t beta_batch_stride;
    /// 0: the runtime's default.
    unsigned threads;
} lmk_householder;

// MARK: Compact WY form

/// Bytes of workspace. 0 when an argument is wrong: the call says which.
size_t lmk_householder_wy_workspace_size(const lmk_householder *product);

/// t [batch, factors, factors], zero below the diagonal.
///
/// Cost: about n^2 dim + n^3 / 3 multiply-adds for each of the batch.
///
/// Schreiber and Van Loan, "A Storage-Efficient WY Representation for Products of Householder
/// Transformations", 1989.
lmk_status lmk_householder_wy(const lmk_householder *product, float *LMK_NULLABLE t,
                              size_t t_stride, size_t t_batch_stride, void *LMK_NULLABLE workspace,
                              size_t workspace_size, lmk_error *LMK_NULLABLE error);

// MARK: Application

/// What a matrix is multiplied with, and from where.
typedef enum LMK_CLOSED_ENUM lmk_householder_side {
    /// y = P x, with vectors in the columns of x [dim, vectors].
    LMK_HOUSEHOLDER_LEFT = 0,
    /// y = x P, with vectors in the rows of x [vectors, dim].
    LMK_HOUSEHOLDER_RIGHT = 1,
} lmk_householder_side;

/// Application of each product of a batch to a matrix of its own.
typedef struct lmk_householder_application {
    lmk_householder product;
    lmk_householder_side side;
    /// Nonzero: P^T takes the place of P.
    int is_transposed;
    /// Columns of x on the left, rows of x on the right.
    size_t vectors;
    /// [batch, dim, vectors] or [batch, vectors, dim]
    const void *LMK_NULLABLE x;
    size_t x_stride, x_batch_stride;
} lmk_householder_application;

/// Bytes of workspace for lmk_householder_apply. 0 when an argument is wrong: the call says which.
size_t lmk_householder_apply_workspace_size(const lmk_householder_application *application);

/// y, in the shape of x; may be x itself, with the same strides.
///
/// P is never formed. Factors are taken in blocks, whose compact WY form is applied as matrix
/// products: for block B of b factors  y = x - K_B^T (T_B (K_B x)).  Blocks have 16 factors where
/// dim <= 64 and 32 elsewhere, which is a matter of sizes alone.
///
/// Leading and trailing dimensions in which a whole block of factors is 0, as in the reflections of
/// a QR decomposition, are passed over: they cost nothing, and an infinity there stays one.
///
/// Cost: n dim + n b / 2 multiply-adds twice for each vector, and n dim b for the forms.
lmk_status lmk_householder_apply(const lmk_householder_application *application,
                                 void *LMK_NULLABLE y, size_t y_stride, size_t y_batch_stride,
                                 void *LMK_NULLABLE workspace, size_t workspace_size,
                                 lmk_error *LMK_NULLABLE error);

/// Gradients of  <dy, y>; what is null is not computed. None may overlap an input, but dx may be
/// dy itself, with the same strides.
typedef struct lmk_householder_gradients {
    /// In the shape of x.
    const void *LMK_NULLABLE dy;
    size_t dy_stride, dy_batch_stride;
    /// [batch, factors, dim]
    void *LMK_NULLABLE dk;
    size_t dk_stride, dk_batch_stride;
    /// [batch, factors]
    float *LMK_NULLABLE dbeta;
    size_t dbeta_batch_stride;
    void *LMK_NULLABLE dx;
    size_t dx_stride, dx_batch_stride;
} lmk_householder_gradients;

/// Bytes of workspace for lmk_householder_backward. 0 when an argument is wrong.
size_t lmk_householder_backward_workspace_size(const lmk_householder_application *application);

/// With z_i what factor i is applied to and e_i the gradient of what it makes of that, vector by
/// vector:
///
///     dbeta_i = -sum <k_i, z_i> <k_i, e_i>
///     dk_i = -beta_i sum (<k_i, z_i> e_i + <k_i, e_i> z_i)        dx = P^T dy, or P dy
///
/// Blocks as in lmk_householder_apply. What each block is applied to is kept in the workspace, and
/// nothing is divided by 1 - beta |k|^2, which may be 0. Sums over vectors are taken in at most 16
/// groups, which are added in order.
///
/// Cost: three times lmk_householder_apply.
lmk_status lmk_householder_backward(const lmk_householder_application *application,
                                    const lmk_householder_gradients *gradients,
                                    void *LMK_NULLABLE workspace, size_t workspace_size,
                                    lmk_error *LMK_NULLABLE error);

LMK_NONNULL_END

#ifdef __cplusplus
}
#endif

#endif
