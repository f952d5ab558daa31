/* Matrix products on bfloat16 with instructions that multiply pairs and add in float (AVX512-BF16).
 *
 * All three products of a linear map are sums of dot products over pairs of neighbours: of inputs for its output, of
 * outputs for its input's gradient, of positions for its weight's gradient. The operand that a tile is wide in is
 * packed before: PAIRS side by side for BLOCK columns at a time, `pairs * 2 * BLOCK` elements each, the last block
 * padded with zeros. Every result is summed in an order that does not depend on the number of threads.
 */
#include "common.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#define BLOCK 64  /* columns of a tile */
#define ROWS 6    /* rows of a tile: with its columns all sums stay in registers */
#define DEEP 512  /* positions that a weight's gradient sums before it adds to what is in memory */

int can_pack(void) { return 1; }

/* ---- Packing ---- */

/* to[i][j] = from[j][i] for 16 by 16 pairs; rows of `from` from `filled` on count as zero. */
INLINE void transpose_pairs(long filled, const bf16 *from, long stride, bf16 *to) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = i < filled ? _mm512_loadu_si512(from + i * stride) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + (i + 0) * 2 * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 4) * 2 * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(to + (i + 8) * 2 * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(to + (i + 12) * 2 * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
}

/* Columns are the rows of weight [outputs, inputs], pairs neighbours in a row; the number of inputs is even. */
void pack(int threads, long outputs, long inputs, const bf16 *restrict weight, bf16 *restrict packed) {
    const long whole = inputs / 32 * 32;
    PARALLEL_FOR for (long group = 0; group < round_up(outputs, BLOCK) / 16; group++) {
        const long first = group * 16, filled = at_most(16, outputs - first);
        const bf16 *from = weight + first * inputs;
        bf16 *to = packed + first / BLOCK * BLOCK * inputs + first % BLOCK * 2;
        for (long k = 0; k < whole; k += 32) transpose_pairs(filled, from + k, inputs, to + k * BLOCK);
        for (long k = whole; k < inputs; k++) {
            for (long i = 0; i < 16; i++) {
                to[k / 2 * 2 * BLOCK + 2 * i + k % 2] = i < filled ? from[i * inputs + k] : 0;
            }
        }
    }
}

/* Columns are the columns of x [rows, columns], pairs rows below each other; a row of zeros follows an odd number. */
void pack_down(int threads, long rows, long columns, const bf16 *restrict x, bf16 *restrict packed) {
    const long pairs = (rows + 1) / 2, blocks = (columns + BLOCK - 1) / BLOCK, some = 4;
    short places[64];
    for (int i = 0; i < 64; i++) places[i] = (short)(i / 2 + i % 2 * 32);
    const __m512i low = _mm512_loadu_si512(places), high = _mm512_loadu_si512(places + 32);
    PARALLEL_FOR for (long first = 0; first < pairs; first += some) {
        for (long block = 0; block < blocks; block++) {
            bf16 *to = packed + (block * pairs + first) * 2 * BLOCK;
            for (long pair = first; pair < at_most(pairs, first + some); pair++, to += 2 * BLOCK) {
                const bf16 *from = x + 2 * pair * columns + block * BLOCK;
                for (long half = 0; half < 2; half++) {
                    const long left = columns - block * BLOCK - 32 * half;
                    const __mmask32 mask = left >= 32 ? 0xffffffffu : left > 0 ? (1u << left) - 1 : 0;
                    const __mmask32 second = 2 * pair + 1 < rows ? mask : 0;
                    const __m512i one = _mm512_maskz_loadu_epi16(mask, from + 32 * half);
                    const __m512i two = _mm512_maskz_loadu_epi16(second, from + columns + 32 * half);
                    _mm512_storeu_si512(to + 64 * half, _mm512_permutex2var_epi16(one, low, two));
                    _mm512_storeu_si512(to + 64 * half + 32, _mm512_permutex2var_epi16(one, high, two));
                }
            }
        }
    }
}

/* ---- Tiles ---- */

/* sum[i][0..64] = dot products of row i of a with a block; pair p of row i is at a + i * a_row + p * a_pair. */
INLINE void dot_rows(const int mr, long pairs, const bf16 *a, long a_row, const long a_pair, const bf16 *packed,
                     __m512 sum[ROWS][4]) {
#pragma GCC unroll 6
    for (int i = 0; i < mr; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
    }
    for (long p = 0; p < pairs; p++, a += a_pair, packed += 2 * BLOCK) {
        __m512bh w[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) w[j] = (__m512bh)_mm512_loadu_si512(packed + 32 * j);
#pragma GCC unroll 6
        for (int i = 0; i < mr; i++) {
            int32_t pair;
            memcpy(&pair, a + i * a_row, 4);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], w[j], x);
        }
    }
}

/* The first `width` columns of a row of sums to bfloat16, or to float, added to what is there if `add`. */
INLINE void put(const __m512 sum[4], long width, bf16 *narrow_to, float *wide_to, int add) {
    if (narrow_to) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(sum[2 * half + 1], sum[2 * half]);
            const long left = width - 32 * half;
            if (left >= 32) _mm512_storeu_si512(narrow_to + 32 * half, both);
            else if (left > 0) _mm512_mask_storeu_epi16(narrow_to + 32 * half, (1u << left) - 1, both);
        }
    } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const long left = width - 16 * j;
            if (left <= 0) break;
            const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
            const __m512 old = add ? _mm512_maskz_loadu_ps(mask, wide_to + 16 * j) : _mm512_setzero_ps();
            _mm512_mask_storeu_ps(wide_to + 16 * j, mask, _mm512_add_ps(old, sum[j]));
        }
    }
}

INLINE void product_tile(const int mr, long pairs, const bf16 *a, long a_row, const long a_pair, const bf16 *packed, long width,
                 bf16 *narrow_to, float *wide_to, long stride, int add) {
    __m512 sum[ROWS][4];
    dot_rows(mr, pairs, a, a_row, a_pair, packed, sum);
#pragma GCC unroll 6
    for (int i = 0; i < mr; i++) {
        put(sum[i], width, narrow_to ? narrow_to + i * stride : NULL, wide_to ? wide_to + i * stride : NULL, add);
    }
}

INLINE void some_rows(long mr, long pairs, const bf16 *a, long a_row, const long a_pair, const bf16 *packed, long width,
                      bf16 *narrow_to, float *wide_to, long stride, int add) {
    switch (mr) {
        case 1: product_tile(1, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add); break;
        case 2: product_tile(2, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add); break;
        case 3: product_tile(3, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add); break;
        case 4: product_tile(4, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add); break;
        case 5: product_tile(5, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add); break;
        default: product_tile(6, pairs, a, a_row, a_pair, packed, width, narrow_to, wide_to, stride, add);
    }
}

/* ---- Products ---- */

/* Rows whose inputs stay in the second-level cache while all blocks pass. */
INLINE long chunk_rows(long inputs) {
    const long fit = 196608 / (inputs + 1) / ROWS * ROWS;
    return fit > 192 ? 192 : fit > 48 ? fit : 48;
}

/* out[rows, outputs] = x[rows, inputs] times packed [inputs, outputs], in bfloat16, or in float where `wide` is given
 * instead. The number of inputs is even. */
void linear_packed(int threads, long rows, long outputs, long inputs, const bf16 *restrict x,
                   const bf16 *restrict packed, bf16 *restrict out, float *restrict wide) {
    const long chunk = chunk_rows(inputs), blocks = (outputs + BLOCK - 1) / BLOCK, chunks = (rows + chunk - 1) / chunk;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < chunks * blocks; task++) {
        const long first = task / blocks * chunk, last = at_most(rows, first + chunk);
        const long begin = task % blocks * BLOCK, width = at_most(BLOCK, outputs - begin);
        for (long row = first; row < last; row += ROWS) {
            const long place = row * outputs + begin;
            some_rows(at_most(ROWS, last - row), inputs / 2, x + row * inputs, inputs, 2, packed + begin * inputs, width,
                      wide ? NULL : out + place, wide ? wide + place : NULL, outputs, 0);
        }
    }
}

/* out[outputs, inputs] = g' x of g [count, outputs] and x [count, inputs], both packed down; added to `wide` where that
 * is given instead. */
void outer_packed(int threads, long count, long outputs, long inputs, const bf16 *restrict g, const bf16 *restrict x,
                  bf16 *restrict out, float *restrict wide) {
    const long pairs = (count + 1) / 2, across = (inputs + BLOCK - 1) / BLOCK, down = (outputs + BLOCK - 1) / BLOCK;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < down * across; task++) {
        const long top = task / across * BLOCK, left = task % across * BLOCK;
        const long height = at_most(BLOCK, outputs - top), width = at_most(BLOCK, inputs - left);
        const bf16 *rows = g + top * 2 * pairs, *columns = x + left * 2 * pairs;
        float sums[BLOCK * BLOCK];
        for (long pair = 0; pair < pairs; pair += DEEP / 2) {
            const long deep = at_most(DEEP / 2, pairs - pair);
            const int ends = pair + deep == pairs, whole = ends && pair == 0;
            for (long i = 0; i < height; i += ROWS) {
                const long place = (top + i) * inputs + left;
                const bf16 *a = rows + pair * 2 * BLOCK + 2 * i, *b = columns + pair * 2 * BLOCK;
                const long mr = at_most(ROWS, height - i);
                if (wide) {
                    some_rows(mr, deep, a, 2, 2 * BLOCK, b, width, NULL, wide + place, inputs, 1);
                } else if (whole) {
                    some_rows(mr, deep, a, 2, 2 * BLOCK, b, width, out + place, NULL, inputs, 0);
                } else {
                    some_rows(mr, deep, a, 2, 2 * BLOCK, b, BLOCK, NULL, sums + i * BLOCK, BLOCK, pair > 0);
                }
            }
            if (ends && !wide && !whole) {
                for (long i = 0; i < height; i++) {
                    SIMD for (long j = 0; j < width; j++) out[(top + i) * inputs + left + j] = narrow(sums[i * BLOCK + j]);
                }
            }
        }
    }
}

#else

int can_pack(void) { return 0; }

#endif
