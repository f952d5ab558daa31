/* Products of bfloat16 matrices with instructions that multiply tiles of 16 rows by 64 bytes and add in float (AMX).
 *
 * Operands are those of packed.h: 16 pairs of 16 columns of a packed block are a tile, and so are 32 numbers of 16 rows.
 */
#ifndef MINNOW_TILES_H
#define MINNOW_TILES_H

#include "packed.h"

#ifdef TILES

#define TILE 16
#define SQUARE 32 /* rows and columns of sums that are held in four tiles; also what a tile of rows is deep */

/* For up to SQUARE rows. Every thread does this before its products: torch's leave tiles as they need them. */
INLINE void configure_tiles(long rows) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } setting = {.palette = 1};
    const uint8_t upper = (uint8_t)at_most(TILE, rows), lower = (uint8_t)(rows > TILE ? rows - TILE : TILE);
    const uint8_t filled[8] = {upper, upper, lower, lower, upper, lower, TILE, TILE};
    for (int i = 0; i < 8; i++) {
        setting.bytes[i] = 64;
        setting.rows[i] = filled[i];
    }
    __asm__ volatile("" : : "r"(&setting) : "memory"); /* gcc 12 believes that only the first bytes are read */
    _tile_loadconfig(&setting);
}

/* sums[rows, SQUARE] = a b over `steps` of SQUARE numbers, for as many rows as tiles are configured for, more than TILE
 * if `both`; a's are a_row apart, and b is a packed block from the first of its columns on. */
INLINE void square(const int both, long steps, const bf16 *a, long a_row, const bf16 *b, float *sums, long stride) {
    _tile_zero(0);
    _tile_zero(1);
    if (both) _tile_zero(2);
    if (both) _tile_zero(3);
    for (long s = 0; s < steps; s++, a += SQUARE, b += SQUARE * BLOCK) {
        _tile_loadd(6, b, 4 * BLOCK);
        _tile_loadd(7, b + SQUARE, 4 * BLOCK);
        _tile_loadd(4, a, 2 * a_row);
        if (both) _tile_loadd(5, a + TILE * a_row, 2 * a_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (both) _tile_dpbf16ps(2, 5, 6);
        if (both) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * stride);
    _tile_stored(1, sums + TILE, 4 * stride);
    if (both) _tile_stored(2, sums + TILE * stride, 4 * stride);
    if (both) _tile_stored(3, sums + TILE * stride + TILE, 4 * stride);
}

/* As product() for up to SQUARE rows, for which tiles are configured, whose pairs are neighbours. */
INLINE void product_tiles(long rows, long pairs, const bf16 *a, long a_row, const bf16 *packed, long width,
                          bf16 *narrow_to, float *wide_to, long stride) {
    _Alignas(64) float sums[SQUARE * BLOCK];
    const long steps = pairs / TILE, rest = pairs % TILE, whole = pairs - rest;
    for (long j = 0; j < width; j += SQUARE) {
        if (rows > TILE) square(1, steps, a, a_row, packed + 2 * j, sums + j, BLOCK);
        else square(0, steps, a, a_row, packed + 2 * j, sums + j, BLOCK);
    }
    for (long i = 0; rest && i < rows; i += ROWS) {
        product(4, at_most(ROWS, rows - i), rest, a + i * a_row + 2 * whole, a_row, 2, packed + whole * 2 * BLOCK, width,
                NULL, sums + i * BLOCK, BLOCK, 1);
    }
    for (long i = 0; i < rows; i++) {
        __m512 row[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) row[j] = _mm512_load_ps(sums + i * BLOCK + 16 * j);
        put(4, row, width, narrow_to ? narrow_to + i * stride : NULL, wide_to ? wide_to + i * stride : NULL, 0);
    }
}

#endif
#endif
