/* Causal grouped-query attention inside documents, forward and backward; results are independent of the number of
 * threads. */
#include "packed.h"

#define QUERIES 32 /* query rows handled together */

/* to[i][d] = scale * from[i][d] for `rows` rows of a head. */
INLINE void load_rows(long rows, long dim, const number *from, long stride, float scale, float *restrict to) {
    for (long i = 0; i < rows; i++) {
        const number *restrict source = from + i * stride;
        SIMD for (long d = 0; d < dim; d++) to[i * dim + d] = widen(source[d]) * scale;
    }
}

/* to[d][i] = from[i][d], zero from `rows` to `padded`. */
INLINE void load_transposed(long rows, long padded, long dim, const number *from, long stride, float *restrict to) {
    for (long i = 0; i < rows; i++) {
        for (long d = 0; d < dim; d++) to[d * padded + i] = widen(from[i * stride + d]);
    }
    for (long d = 0; d < dim; d++) {
        for (long i = rows; i < padded; i++) to[d * padded + i] = 0.0f;
    }
}

INLINE void store_rows(long rows, long dim, const float *restrict from, float scale, number *to, long stride) {
    for (long i = 0; i < rows; i++) {
        SIMD for (long d = 0; d < dim; d++) to[i * stride + d] = narrow(from[i * dim + d] * scale);
    }
}

INLINE long document_end(const int32_t *starts, long begin, long length) {
    long end = length;
    if (starts) {
        for (end = begin + 1; end < length && starts[end] == begin;) end++;
    }
    return end;
}

/* Scratch floats per thread. */
long attention_scratch(long length, long dim) {
    const long most = round_up(length, LANES);
    return 5 * most * dim + 3 * QUERIES * dim + 2 * QUERIES * most;
}

/* First position of a document, a multiple of LANES, that a block of queries from `first` on sees. */
INLINE long first_seen(long first, long window) {
    return window && first >= window ? (first - window + 1) / LANES * LANES : 0;
}

/* Scores of positions that query `own` (counted like the scores) does not see. */
INLINE void hide(float *restrict scores, long wide, long own, long window) {
    for (long j = own + 1; j < wide; j++) scores[j] = -INFINITY;
    if (window) {
        for (long j = 0; j <= own - window; j++) scores[j] = -INFINITY;
    }
}

/* q: [batch, length, heads, dim] with rows q_row apart; k, v likewise with `groups` heads; out contiguous, like q.
 * A query sees `window` positions, itself included, or all where that is 0; temper multiplies the scores.
 * log_sum: [batch, heads, length], log of the sum of exponentials of a query's scores. */
void attention_forward(int threads, long batch, long length, long heads, long groups, long dim, long window,
                       float temper, const number *q, long q_row, const number *k, long k_row, const number *v, long v_row,
                       const int32_t *starts, number *out, float *log_sum, float *scratch) {
    const long each = attention_scratch(length, dim), most = round_up(length, LANES), sharing = heads / groups;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < batch * groups; task++) {
        const long b = task / groups, group = task % groups;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *keys = scratch + THREAD * each, *values = keys + most * dim, *queries = values + most * dim;
        float *mixed = queries + QUERIES * dim, *scores = mixed + QUERIES * dim;
        for (long begin = 0, end; begin < length; begin = end) {
            end = document_end(row_starts, begin, length);
            const long count = end - begin, padded = round_up(count, LANES), origin = b * length + begin;
            load_transposed(count, padded, dim, k + origin * k_row + group * dim, k_row, keys);
            load_rows(count, dim, v + origin * v_row + group * dim, v_row, 1.0f, values);
            for (long head = group * sharing; head < (group + 1) * sharing; head++) {
                for (long first = 0; first < count; first += QUERIES) {
                    const long n = at_most(QUERIES, count - first), seen = first + n, low = first_seen(first, window);
                    const long wide = round_up(seen, LANES) - low;
                    load_rows(n, dim, q + (origin + first) * q_row + head * dim, q_row, temper, queries);
                    multiply(n, wide, dim, queries, dim, 1, keys + low, padded, scores, wide, 0);
                    float inverse[QUERIES];
                    for (long i = 0; i < n; i++) {
                        float *restrict s = scores + i * wide, top = s[0], total = 0.0f;
                        hide(s, wide, first + i - low, window);
                        PRAGMA(omp simd reduction(max : top))
                        for (long j = 0; j < wide; j++) top = s[j] > top ? s[j] : top;
                        SIMD_SUM(total) for (long j = 0; j < wide; j++) {
                            s[j] = exponential(s[j] - top);
                            total += s[j];
                        }
                        inverse[i] = 1.0f / total;
                        log_sum[(b * heads + head) * length + begin + first + i] = top + logf(total);
                    }
                    multiply(n, dim, seen - low, scores, wide, 1, values + low * dim, dim, mixed, dim, 0);
                    for (long i = 0; i < n; i++) {
                        store_rows(1, dim, mixed + i * dim, inverse[i],
                                   out + ((origin + first + i) * heads + head) * dim, 0);
                    }
                }
            }
        }
    }
}

/* d_q, d_k, d_v contiguous. */
void attention_backward(int threads, long batch, long length, long heads, long groups, long dim, long window,
                        float temper, const number *q, long q_row, const number *k, long k_row, const number *v, long v_row,
                        const int32_t *starts, const number *out, const float *log_sum, const number *d_out, number *d_q,
                        number *d_k, number *d_v, float *scratch) {
    const long each = attention_scratch(length, dim), most = round_up(length, LANES), sharing = heads / groups;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < batch * groups; task++) {
        const long b = task / groups, group = task % groups;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *keys = scratch + THREAD * each, *keys_across = keys + most * dim, *values_across = keys_across + most * dim;
        float *dk = values_across + most * dim, *dv = dk + most * dim, *queries = dv + most * dim;
        float *grads = queries + QUERIES * dim, *dq = grads + QUERIES * dim;
        float *scores = dq + QUERIES * dim, *d_scores = scores + QUERIES * most;
        for (long begin = 0, end; begin < length; begin = end) {
            end = document_end(row_starts, begin, length);
            const long count = end - begin, padded = round_up(count, LANES), origin = b * length + begin;
            load_rows(count, dim, k + origin * k_row + group * dim, k_row, 1.0f, keys);
            load_transposed(count, padded, dim, k + origin * k_row + group * dim, k_row, keys_across);
            load_transposed(count, padded, dim, v + origin * v_row + group * dim, v_row, values_across);
            memset(dk, 0, (size_t)(count * dim) * sizeof(float));
            memset(dv, 0, (size_t)(count * dim) * sizeof(float));
            for (long head = group * sharing; head < (group + 1) * sharing; head++) {
                for (long first = 0; first < count; first += QUERIES) {
                    const long n = at_most(QUERIES, count - first), seen = first + n, low = first_seen(first, window);
                    const long wide = round_up(seen, LANES) - low;
                    const long offset = ((origin + first) * heads + head) * dim;
                    load_rows(n, dim, q + (origin + first) * q_row + head * dim, q_row, temper, queries);
                    load_rows(n, dim, d_out + offset, heads * dim, 1.0f, grads);
                    multiply(n, wide, dim, queries, dim, 1, keys_across + low, padded, scores, wide, 0);
                    multiply(n, wide, dim, grads, dim, 1, values_across + low, padded, d_scores, wide, 0);
                    for (long i = 0; i < n; i++) {
                        float *restrict p = scores + i * wide, *restrict dp = d_scores + i * wide;
                        const float log_total = log_sum[(b * heads + head) * length + begin + first + i];
                        const number *restrict o = out + offset + i * heads * dim;
                        const float *restrict g = grads + i * dim;
                        float delta = 0.0f;
                        SIMD_SUM(delta) for (long d = 0; d < dim; d++) delta += g[d] * widen(o[d]);
                        hide(p, wide, first + i - low, window);
                        SIMD for (long j = 0; j < wide; j++) {
                            p[j] = exponential(p[j] - log_total);
                            dp[j] = p[j] * (dp[j] - delta);
                        }
                    }
                    multiply(n, dim, seen - low, d_scores, wide, 1, keys + low * dim, dim, dq, dim, 0);
                    multiply(seen - low, dim, n, scores, 1, wide, grads, dim, dv + low * dim, dim, 1);
                    multiply(seen - low, dim, n, d_scores, 1, wide, queries, dim, dk + low * dim, dim, 1);
                    store_rows(n, dim, dq, temper, d_q + offset, heads * dim);
                }
            }
            store_rows(count, dim, dk, 1.0f, d_k + (origin * groups + group) * dim, groups * dim);
            store_rows(count, dim, dv, 1.0f, d_v + (origin * groups + group) * dim, groups * dim);
        }
    }
}

/* ---- The same with products of pairs ---- */

#ifdef PAIRS

#define SUMMED 96 /* queries whose weights are summed over at a time for keys and values: a multiple of ROWS */

INLINE long down_block(long dim) { return dim <= HALF ? HALF : BLOCK; }
INLINE long packed_width(long dim) { return dim <= HALF ? HALF : round_up(dim, BLOCK); }

/* `rows` rows of a matrix times a packed one of up to `width` columns, which has rows of `pairs` pairs from its first. */
INLINE void rows_times(long rows, long pairs, const bf16 *a, long a_row, long a_pair, const bf16 *packed, long all_pairs,
                       long width, float *to, long stride, int add) {
    if (width <= HALF) {
        product(2, rows, pairs, a, a_row, a_pair, packed, width, NULL, to, stride, add);
        return;
    }
    for (long begin = 0; begin < width; begin += BLOCK) {
        product(4, rows, pairs, a, a_row, a_pair, packed + begin * 2 * all_pairs, at_most(BLOCK, width - begin), NULL,
                to + begin, stride, add);
    }
}

/* scores[i][j] = a[i] . b[low + j] for wide columns, a multiple of BLOCK, of a matrix packed across. */
INLINE void score_rows(long rows, long dim, const bf16 *a, long a_row, const bf16 *packed, long low, long wide,
                       float *scores) {
    for (long j = 0; j < wide; j += BLOCK) {
        product(4, rows, dim / 2, a, a_row, 2, packed + (low + j) * dim, BLOCK, NULL, scores + j, wide, 0);
    }
}

/* Positions as columns, for products with rows of a head. */
INLINE void pack_head(long count, long dim, const bf16 *x, long stride, bf16 *to) {
    for (long first = 0; first < round_up(count, BLOCK); first += 16) {
        pack_across(at_most(16, count - first), dim, x + first * stride, stride,
                    to + first / BLOCK * BLOCK * dim + first % BLOCK * 2);
    }
}

/* Positions as what is summed over. */
INLINE void pack_head_down(long count, long dim, const bf16 *x, long stride, bf16 *to) {
    if (dim <= HALF) {
        pack_rows(HALF, 0, count, dim, x, stride, to);
        return;
    }
    for (long begin = 0; begin < dim; begin += BLOCK) {
        pack_rows(BLOCK, 0, count, dim - begin, x + begin, stride, to + begin * round_up(count, 2));
    }
}

long attention_pairs_scratch(long length, long dim) { /* floats per thread */
    const long most = round_up(length, BLOCK), wide = packed_width(dim);
    return most * (dim + wide + 2 * dim) + SUMMED * (most + wide) + ROWS * (3 * most + 2 * dim) + 64;
}

INLINE long first_block(long first, long window) {
    return window && first >= window ? (first - window + 1) / BLOCK * BLOCK : 0;
}

/* Arguments as of attention_forward. */
void attention_pairs_forward(int threads, long batch, long length, long heads, long groups, long dim, long window,
                             float temper, const bf16 *q, long q_row, const bf16 *k, long k_row, const bf16 *v,
                             long v_row, const int32_t *starts, bf16 *out, float *log_sum, float *scratch) {
    const long each = attention_pairs_scratch(length, dim), most = round_up(length, BLOCK), sharing = heads / groups;
    PARALLEL_FOR_UNEVEN for (long task = 0; task < batch * groups; task++) {
        const long b = task / groups, group = task % groups;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *scores = scratch + THREAD * each, *mixed = scores + ROWS * most;
        bf16 *weights = (bf16 *)(mixed + ROWS * dim), *keys = weights + ROWS * most, *values = keys + most * dim;
        for (long begin = 0, end; begin < length; begin = end) {
            end = document_end(row_starts, begin, length);
            const long count = end - begin, origin = b * length + begin, pairs = (count + 1) / 2;
            pack_head(count, dim, k + origin * k_row + group * dim, k_row, keys);
            pack_head_down(count, dim, v + origin * v_row + group * dim, v_row, values);
            for (long head = group * sharing; head < (group + 1) * sharing; head++) {
                for (long first = 0; first < count; first += ROWS) {
                    const long n = at_most(ROWS, count - first), low = first_block(first, window);
                    const long seen = first + n - low, wide = round_up(seen, BLOCK);
                    score_rows(n, dim, q + (origin + first) * q_row + head * dim, q_row, keys, low, wide, scores);
                    float inverse[ROWS];
                    for (long i = 0; i < n; i++) {
                        float *restrict s = scores + i * wide, top = -INFINITY, total = 0.0f;
                        bf16 *restrict w = weights + i * wide;
                        hide(s, wide, first + i - low, window);
                        PRAGMA(omp simd reduction(max : top))
                        for (long j = 0; j < wide; j++) top = s[j] > top ? s[j] : top;
                        SIMD_SUM(total) for (long j = 0; j < wide; j++) {
                            const float weight = exponential((s[j] - top) * temper);
                            total += weight;
                            w[j] = narrow(weight);
                        }
                        inverse[i] = 1.0f / total;
                        log_sum[(b * heads + head) * length + begin + first + i] = top * temper + logf(total);
                    }
                    /* The values of a document's odd last position have a partner of zeros, the weights too. */
                    rows_times(n, (seen + 1) / 2, weights, wide, 2, values + low * down_block(dim), pairs, dim, mixed,
                               dim, 0);
                    for (long i = 0; i < n; i++) {
                        store_rows(1, dim, mixed + i * dim, inverse[i],
                                   out + ((origin + first + i) * heads + head) * dim, 0);
                    }
                }
            }
        }
    }
}

/* Arguments as of attention_backward. */
void attention_pairs_backward(int threads, long batch, long length, long heads, long groups, long dim, long window,
                              float temper, const bf16 *q, long q_row, const bf16 *k, long k_row, const bf16 *v,
                              long v_row, const int32_t *starts, const bf16 *out, const float *log_sum,
                              const bf16 *d_out, bf16 *d_q, bf16 *d_k, bf16 *d_v, float *scratch) {
    const long each = attention_pairs_scratch(length, dim), most = round_up(length, BLOCK), sharing = heads / groups;
    const long block = down_block(dim), padded = packed_width(dim);
    PARALLEL_FOR_UNEVEN for (long task = 0; task < batch * groups; task++) {
        const long b = task / groups, group = task % groups;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *dk = scratch + THREAD * each, *dv = dk + most * dim, *dq = dv + most * dim;
        float *scores = dq + ROWS * dim, *d_scores = scores + ROWS * most;
        bf16 *keys = (bf16 *)(d_scores + ROWS * most), *values = keys + most * dim, *keys_down = values + most * dim;
        bf16 *queries = keys_down + most * padded, *grads = queries + SUMMED * padded;
        bf16 *slopes = grads + SUMMED * padded, *weights = slopes + ROWS * most, *d_weights = weights + SUMMED * most;
        for (long begin = 0, end; begin < length; begin = end) {
            end = document_end(row_starts, begin, length);
            const long count = end - begin, origin = b * length + begin, pairs = (count + 1) / 2;
            pack_head(count, dim, k + origin * k_row + group * dim, k_row, keys);
            pack_head(count, dim, v + origin * v_row + group * dim, v_row, values);
            pack_head_down(count, dim, k + origin * k_row + group * dim, k_row, keys_down);
            memset(dk, 0, (size_t)(count * dim) * sizeof(float));
            memset(dv, 0, (size_t)(count * dim) * sizeof(float));
            for (long head = group * sharing; head < (group + 1) * sharing; head++) {
                for (long start = 0; start < count; start += SUMMED) {
                    const long summed = at_most(SUMMED, count - start), sum_pairs = (summed + 1) / 2;
                    const long bottom = first_block(start, window), across = round_up(start + summed, BLOCK) - bottom;
                    const bf16 *q_rows = q + (origin + start) * q_row + head * dim;
                    const long offset = ((origin + start) * heads + head) * dim;
                    pack_head_down(summed, dim, q_rows, q_row, queries);
                    pack_head_down(summed, dim, d_out + offset, heads * dim, grads);
                    for (long row = 0; row < summed; row += ROWS) {
                        const long n = at_most(ROWS, summed - row), first = start + row;
                        const long low = first_block(first, window), seen = first + n - low;
                        const long wide = round_up(seen, BLOCK);
                        const bf16 *g = d_out + offset + row * heads * dim, *o = out + offset + row * heads * dim;
                        score_rows(n, dim, q_rows + row * q_row, q_row, keys, low, wide, scores);
                        score_rows(n, dim, g, heads * dim, values, low, wide, d_scores);
                        for (long i = 0; i < n; i++) {
                            float *restrict p = scores + i * wide, *restrict dp = d_scores + i * wide;
                            const float log_total = log_sum[(b * heads + head) * length + begin + first + i];
                            float delta = 0.0f;
                            SIMD_SUM(delta) for (long d = 0; d < dim; d++) {
                                delta += widen(g[i * heads * dim + d]) * widen(o[i * heads * dim + d]);
                            }
                            hide(p, wide, first + i - low, window);
                            bf16 *restrict slope = slopes + i * wide;
                            SIMD for (long j = 0; j < wide; j++) {
                                p[j] = exponential(p[j] * temper - log_total);
                                dp[j] = p[j] * (dp[j] - delta);
                                slope[j] = narrow(dp[j]);
                            }
                        }
                        rows_times(n, (seen + 1) / 2, slopes, wide, 2, keys_down + low * block, pairs, dim, dq, dim, 0);
                        store_rows(n, dim, dq, temper, d_q + offset + row * heads * dim, heads * dim);
                        /* Two queries side by side for each position, zero before what they see and after. */
                        for (long i = 0; i < n; i += 2) {
                            const float *restrict p = scores + i * wide, *restrict dp = d_scores + i * wide;
                            const long other = i + 1 < n ? wide : 0;
                            const uint32_t keep = other ? 0xffffffffu : 0xffffu;
                            uint32_t *restrict w = (uint32_t *)weights + (row + i) / 2 * across;
                            uint32_t *restrict dw = (uint32_t *)d_weights + (row + i) / 2 * across;
                            const long skip = low - bottom;
                            memset(w, 0, (size_t)skip * 4);
                            memset(dw, 0, (size_t)skip * 4);
                            SIMD for (long j = 0; j < wide; j++) {
                                w[skip + j] = (narrow(p[j]) | (uint32_t)narrow(p[other + j]) << 16) & keep;
                                dw[skip + j] = (narrow(dp[j]) | (uint32_t)narrow(dp[other + j]) << 16) & keep;
                            }
                        }
                    }
                    /* Queries before a position do not see it, and tiles of positions and queries begin alike. */
                    for (long at = bottom / ROWS * ROWS; at < start + summed; at += ROWS) {
                        const long from = at < bottom ? bottom : at, n = at_most(at + ROWS, start + summed) - from;
                        const long skip = at > start ? (at - start) / 2 : 0;
                        const bf16 *w = weights + (skip * across + from - bottom) * 2;
                        const bf16 *dw = d_weights + (skip * across + from - bottom) * 2;
                        rows_times(n, sum_pairs - skip, w, 2, 2 * across, grads + skip * 2 * block, sum_pairs, dim,
                                   dv + from * dim, dim, 1);
                        rows_times(n, sum_pairs - skip, dw, 2, 2 * across, queries + skip * 2 * block, sum_pairs, dim,
                                   dk + from * dim, dim, 1);
                    }
                }
            }
            store_rows(count, dim, dk, temper, d_k + (origin * groups + group) * dim, groups * dim);
            store_rows(count, dim, dv, 1.0f, d_v + (origin * groups + group) * dim, groups * dim);
        }
    }
}

#endif
