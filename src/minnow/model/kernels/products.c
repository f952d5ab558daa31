/* Products of a linear map and its gradients over packed operands; every result is independent of the number of
 * threads. */
#include "tiles.h"

static int tiles_on = 0; /* whether linear_packed uses tiles */

#ifdef TILES
#include <sys/syscall.h>

long syscall(long number, ...); /* <unistd.h> hides it under -std=c11 */

/* Use tiles from now on if `wanted` and Linux lets this process (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); whether they
 * are used. */
int use_tiles(int wanted) { return tiles_on = wanted && syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#else
int use_tiles(int wanted) { return wanted && tiles_on; }
#endif

#ifdef PACKED

int can_pack(void) { return 1; }

/* weight [outputs, inputs] for products with rows of inputs, a multiple of WORD. */
void pack(int threads, long outputs, long inputs, const number *restrict weight, number *restrict packed) {
    PARALLEL_FOR for (long first = 0; first < round_up(outputs, BLOCK); first += 16) {
        pack_across(at_most(16, outputs - first), inputs, weight + first * inputs, inputs,
                    packed + first / BLOCK * BLOCK * inputs + first % BLOCK * WORD);
    }
}

/* Rows whose inputs stay in the second-level cache while all blocks pass. */
INLINE long chunk_rows(long inputs, long step, long least) {
    const long fit = 98304 * WORD / (inputs + 1) / step * step;
    return fit > 192 ? 192 : fit > least ? fit : least;
}

/* out[rows, outputs] = x[rows, inputs] times packed [inputs, outputs], or in float where `wide` is given instead. The
 * number of inputs is a multiple of WORD. */
void linear_packed(int threads, long rows, long outputs, long inputs, const number *restrict x,
                   const number *restrict packed, number *restrict out, float *restrict wide) {
    const long chunk = tiles_on ? chunk_rows(inputs, 32, 64) : chunk_rows(inputs, ROWS, 48);
    const long blocks = (outputs + BLOCK - 1) / BLOCK, chunks = (rows + chunk - 1) / chunk;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < chunks * blocks; task++) {
        const long first = task / blocks * chunk, last = at_most(rows, first + chunk);
        const long begin = task % blocks * BLOCK, width = at_most(BLOCK, outputs - begin);
        long row = first;
#ifdef TILES
        for (long configured = 0; tiles_on && row < last; row += SQUARE) {
            const long place = row * outputs + begin, n = at_most(SQUARE, last - row);
            if (n != configured) configure_tiles(configured = n);
            product_tiles(n, inputs / 2, x + row * inputs, inputs, packed + begin * inputs, width,
                          wide ? NULL : out + place, wide ? wide + place : NULL, outputs);
        }
        if (tiles_on) _tile_release();
#endif
        for (; row < last; row += ROWS) {
            const long place = row * outputs + begin;
            product(4, at_most(ROWS, last - row), inputs / WORD, x + row * inputs, inputs, WORD, packed + begin * inputs,
                    width, wide ? NULL : out + place, wide ? wide + place : NULL, outputs, 0);
        }
    }
}

#ifdef PAIRS

#define DEEP 512 /* positions that a weight's gradient sums before it adds to what is in memory */

/* x [rows, columns] for sums over its rows; a row of zeros follows an odd number. */
void pack_down(int threads, long rows, long columns, const bf16 *restrict x, bf16 *restrict packed) {
    const long pairs = (rows + 1) / 2, some = 8;
    PARALLEL_FOR for (long first = 0; first < rows; first += some) {
        for (long begin = 0; begin < columns; begin += BLOCK) {
            pack_rows(BLOCK, first, at_most(rows, first + some), columns - begin, x + begin, columns,
                      packed + (begin * pairs + first / 2 * BLOCK) * 2);
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
                    product(4, mr, deep, a, 2, 2 * BLOCK, b, width, NULL, wide + place, inputs, 1);
                } else if (whole) {
                    product(4, mr, deep, a, 2, 2 * BLOCK, b, width, out + place, NULL, inputs, 0);
                } else {
                    product(4, mr, deep, a, 2, 2 * BLOCK, b, BLOCK, NULL, sums + i * BLOCK, BLOCK, pair > 0);
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

#endif

#else

int can_pack(void) { return 0; }

#endif
