/* Products of matrices by words of four bytes: pairs of bfloat16, multiplied and added up in float by one instruction
 * (AVX512-BF16), or one float.
 *
 * A tile's rows are read as they are or at any strides; the operand it is wide in is packed before: words of the summed
 * dimension side by side for `block` columns at a time, `words * WORD * block` numbers each, the last block padded with
 * zeros.
 */
#ifndef MINNOW_PACKED_H
#define MINNOW_PACKED_H

#include "common.h"

#ifdef PACKED
#include <immintrin.h>

#define WORD ((long)(4 / sizeof(number))) /* numbers in a word */

#define BLOCK 64 /* columns of a tile */
#define HALF 32  /* columns of a tile for matrices that are no wider */
#define ROWS 6   /* rows of a tile: with its columns all sums stay in registers */

/* ---- Packing ---- */

/* to[i][j] = from[j][i] for 16 by 16 words; rows of `from` from `filled` on count as zero. */
INLINE void transpose_words(long filled, const number *from, long stride, number *to) {
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
        _mm512_storeu_si512(to + (i + 0) * WORD * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (i + 4) * WORD * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(to + (i + 8) * WORD * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(to + (i + 12) * WORD * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
}

/* Columns, 16 of one block, are the rows of x, those from `filled` on zero; words are neighbours in a row of `inputs`, a
 * multiple of WORD. */
INLINE void pack_across(long filled, long inputs, const number *x, long stride, number *to) {
    const long square = 16 * WORD, whole = inputs / square * square;
    for (long k = 0; k < whole; k += square) transpose_words(filled, x + k, stride, to + k * BLOCK);
    for (long k = whole; k < inputs; k++) {
        number *column = to + k / WORD * WORD * BLOCK + k % WORD;
        for (long i = 0; i < 16; i++) column[WORD * i] = i < filled ? x[i * stride + k] : 0;
    }
}

#ifdef PAIRS

/* Two rows of up to 32 columns as pairs; the second is zero where it is not there. */
INLINE void pack_two_rows(long columns, const bf16 *x, long stride, int second, bf16 *to) {
    static const short places[64] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
                                     16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
                                     24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    const __mmask32 mask = columns >= 32 ? 0xffffffffu : columns > 0 ? (1u << columns) - 1 : 0;
    const __m512i one = _mm512_maskz_loadu_epi16(mask, x);
    const __m512i two = _mm512_maskz_loadu_epi16(second ? mask : 0, x + stride);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(one, _mm512_loadu_si512(places), two));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(one, _mm512_loadu_si512(places + 32), two));
}

/* One block of `block` columns: pairs are the rows first and first + 1, and so on to last, of x. */
INLINE void pack_rows(const long block, long first, long last, long columns, const bf16 *x, long stride, bf16 *to) {
    for (long row = first; row < last; row += 2, to += 2 * block) {
        for (long part = 0; part < block; part += 32) {
            pack_two_rows(columns - part, x + row * stride + part, stride, row + 1 < last, to + 2 * part);
        }
    }
}

#endif

/* ---- Tiles ---- */

#ifdef SINGLE
INLINE __m512 multiplied(__m512 sum, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
}
#else
INLINE __m512 multiplied(__m512 sum, __m512i w, __m512i x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
#endif

/* The first `width` columns of a row of sums as numbers, or to float, there added to what is there if `add`. */
INLINE void put(const int vectors, const __m512 *sum, long width, number *narrow_to, float *wide_to, int add) {
#ifndef SINGLE
    if (narrow_to) {
#pragma GCC unroll 2
        for (int half = 0; half < vectors / 2; half++) {
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(sum[2 * half + 1], sum[2 * half]);
            const long left = width - 32 * half;
            if (left >= 32) _mm512_storeu_si512(narrow_to + 32 * half, both);
            else if (left > 0) _mm512_mask_storeu_epi16(narrow_to + 32 * half, (1u << left) - 1, both);
        }
        return;
    }
#endif
    float *to = wide_to ? wide_to : (float *)narrow_to;
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        const long left = width - 16 * j;
        if (left <= 0) break;
        const __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        const __m512 old = add ? _mm512_maskz_loadu_ps(mask, to + 16 * j) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(to + 16 * j, mask, _mm512_add_ps(old, sum[j]));
    }
}

INLINE void product_tile(const int rows, const int vectors, long words, const number *a, long a_row, long a_word,
                         const number *packed, long width, number *narrow_to, float *wide_to, long stride, int add) {
    __m512 sum[ROWS][4];
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_ps();
    }
    for (long k = 0; k < words; k++, a += a_word, packed += 16 * WORD * vectors) {
        __m512i w[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) w[j] = _mm512_loadu_si512(packed + 16 * WORD * j);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            int32_t word;
            memcpy(&word, a + i * a_row, 4);
            const __m512i x = _mm512_set1_epi32(word);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[i][j] = multiplied(sum[i][j], w[j], x);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
        put(vectors, sum[i], width, narrow_to ? narrow_to + i * stride : NULL, wide_to ? wide_to + i * stride : NULL,
            add);
    }
}

/* Up to ROWS rows times one block; word k of row i is at a + i * a_row + k * a_word. The first `width` columns go to
 * rows of `stride` elements, as numbers or in float, there added to what is there if `add`. */
INLINE void product(const int vectors, long rows, long words, const number *a, long a_row, long a_word,
                    const number *packed, long width, number *narrow_to, float *wide_to, long stride, int add) {
#define CASE(n) \
    case n: product_tile(n, vectors, words, a, a_row, a_word, packed, width, narrow_to, wide_to, stride, add); break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

#endif
#endif
