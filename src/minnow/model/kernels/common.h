/* What the kernels share: what tensors hold, and small products of matrices in float. */
#ifndef MINNOW_COMMON_H
#define MINNOW_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL_FOR PRAGMA(omp parallel for num_threads(threads) schedule(static))
#define PARALLEL_FOR_UNEVEN PRAGMA(omp parallel for num_threads(threads) schedule(dynamic, 1))
#define SIMD PRAGMA(omp simd)
#define SIMD_SUM(variable) PRAGMA(omp simd reduction(+ : variable))
#define SIMD_MOST(variable) PRAGMA(omp simd reduction(max : variable))

/* Tensors hold numbers: bfloat16, or float in the build for single precision. All is computed in float. */
#ifdef SINGLE
typedef float number;

INLINE float widen(number value) { return value; }
INLINE number narrow(float value) { return value; }
#else
typedef uint16_t bf16, number;

INLINE float widen(number value) {
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

/* Round to nearest even; a NaN stays a NaN because its quiet bit survives the addition. */
INLINE number narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (number)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#ifdef __AVX512BF16__
#define PAIRS /* products of pairs of bfloat16 */
#endif
#ifdef __AMX_BF16__
#define TILES /* products of tiles of it */
#endif
#endif

#if defined(PAIRS) || (defined(SINGLE) && defined(__AVX512F__))
#define PACKED /* products with packed operands */
#endif

/* e^x to about one unit in the last place (polynomial of Cephes' expf), 0 below -87.3, at most e^88; NaN in, NaN out. */
INLINE float exponential(float x) {
    const float clamped = x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const float n = (clamped * 1.44269504f + magic) - magic;
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.3f ? 0.0f : p * power;
}

INLINE long at_most(long a, long b) { return a < b ? a : b; }
INLINE long round_up(long value, long multiple) { return (value + multiple - 1) / multiple * multiple; }

/* ---- Products of float matrices that stay in cache ---- */

#ifdef __AVX512F__
#define LANES 16
#define TALL 8
#else
#define LANES 8
#define TALL 6 /* with two vectors in each row all sums stay in 16 registers */
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* C[mr, LANES * nr] (+)= A[mr, depth] B[depth, LANES * nr]; element (i, k) of A is at i * a_row + k * a_deep. */
INLINE void tile(const int mr, const int nr, long depth, const float *A, long a_row, long a_deep, const float *B,
                 long b_row, float *C, long c_row, int add) {
    lanes c[TALL][2];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < nr; j++) c[i][j] = add ? *(const lanes *)(C + i * c_row + j * LANES) : (lanes){0};
    }
    for (long k = 0; k < depth; k++) {
        lanes b[2];
#pragma GCC unroll 2
        for (int j = 0; j < nr; j++) b[j] = *(const lanes *)(B + k * b_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            const float a = A[i * a_row + k * a_deep];
#pragma GCC unroll 2
            for (int j = 0; j < nr; j++) c[i][j] += a * b[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < nr; j++) *(lanes *)(C + i * c_row + j * LANES) = c[i][j];
    }
}

INLINE void panel(const int nr, long rows, long depth, const float *A, long a_row, long a_deep, const float *B,
                  long b_row, float *C, long c_row, int add) {
    long i = 0;
    for (; i + TALL <= rows; i += TALL) {
        tile(TALL, nr, depth, A + i * a_row, a_row, a_deep, B, b_row, C + i * c_row, c_row, add);
    }
    for (; i + 2 <= rows; i += 2) tile(2, nr, depth, A + i * a_row, a_row, a_deep, B, b_row, C + i * c_row, c_row, add);
    if (i < rows) tile(1, nr, depth, A + i * a_row, a_row, a_deep, B, b_row, C + i * c_row, c_row, add);
}

/* C[rows, columns] (+)= A B with columns a multiple of LANES. */
static void multiply(long rows, long columns, long depth, const float *A, long a_row, long a_deep, const float *B,
                     long b_row, float *C, long c_row, int add) {
    long j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) {
        panel(2, rows, depth, A, a_row, a_deep, B + j, b_row, C + j, c_row, add);
    }
    if (j < columns) panel(1, rows, depth, A, a_row, a_deep, B + j, b_row, C + j, c_row, add);
}

#endif
