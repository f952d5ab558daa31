/* Kernels for decoding: few rows at a time, so that reading the weights is what costs.
 *
 * Every result is independent of the number of threads. Callers pass the thread count and all scratch memory.
 */
#include "common.h"

/* ---- One position of gated short convolution ---- */

/* One row; `taps` is a constant after inlining. */
INLINE void step_taps(const long taps, long width, const number *restrict bcx, const number *restrict weight,
                      number *restrict past, number *restrict out) {
    const number *restrict gate = bcx + width, *restrict x = bcx + 2 * width;
    SIMD for (long i = 0; i < width; i++) {
        const float now = widen(bcx[i]) * widen(x[i]);
        float total = widen(weight[i * taps + taps - 1]) * now;
        for (long tap = 0; tap < taps - 1; tap++) total += widen(weight[i * taps + tap]) * widen(past[tap * width + i]);
        for (long tap = 0; tap < taps - 2; tap++) past[tap * width + i] = past[(tap + 1) * width + i];
        if (taps > 1) past[(taps - 2) * width + i] = narrow(now);
        out[i] = narrow(widen(gate[i]) * total);
    }
}

/* bcx: [batch, 3 * width] = input gate, output gate, x. inputs: [batch, taps - 1, width], oldest first; they move on by
 * one. weight: [width, taps], the last tap for the current token. */
void short_conv_step(int threads, long batch, long width, long taps, const number *restrict bcx,
                     const number *restrict weight, number *restrict inputs, number *restrict out) {
    PARALLEL_FOR for (long row = 0; row < batch; row++) {
        const number *in = bcx + row * 3 * width;
        number *past = inputs + row * (taps - 1) * width, *to = out + row * width;
        switch (taps) {
            case 3: step_taps(3, width, in, weight, past, to); break;
            case 4: step_taps(4, width, in, weight, past, to); break;
            default: step_taps(taps, width, in, weight, past, to);
        }
    }
}

/* ---- One position of attention over a cache ---- */

/* A norm's weight in either precision; both are NULL where there is no norm. */
typedef struct {
    const float *wide;
    const number *narrow;
} Weight;

/* Norm and rotation of the first `turn` dimensions of one head. */
INLINE void turn_head(long dim, long turn, const number *restrict x, Weight weight, float eps,
                      const float *restrict cosines, const float *restrict sines, float *restrict out) {
    SIMD for (long i = 0; i < dim; i++) out[i] = widen(x[i]);
    if (weight.wide || weight.narrow) {
        float squares = 0.0f;
        SIMD_SUM(squares) for (long i = 0; i < dim; i++) squares += out[i] * out[i];
        const float scale = 1.0f / sqrtf(squares / (float)dim + eps);
        if (weight.wide) {
            SIMD for (long i = 0; i < dim; i++) out[i] *= scale * weight.wide[i];
        } else {
            SIMD for (long i = 0; i < dim; i++) out[i] *= scale * widen(weight.narrow[i]);
        }
    }
    const long half = turn / 2;
    SIMD for (long i = 0; i < half; i++) {
        const float low = out[i], high = out[half + i];
        out[i] = low * cosines[i] - high * sines[i];
        out[half + i] = high * cosines[half + i] + low * sines[half + i];
    }
}

#ifdef __AVX512F__
#include <immintrin.h>

INLINE __m512 sixteen(const number *x) {
#ifdef SINGLE
    return _mm512_loadu_ps(x);
#else
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
#endif
}

/* The sum of each of 16 vectors. Adding up one after the other would wait for 15 additions a vector. */
INLINE __m512 sixteen_sums(const __m512 *x) {
    __m512 two[8], four[4], eight[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        two[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512d a = _mm512_castps_pd(two[2 * i]), b = _mm512_castps_pd(two[2 * i + 1]);
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0x88),
                                 _mm512_shuffle_f32x4(four[2 * i], four[2 * i + 1], 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(eight[0], eight[1], 0x88), _mm512_shuffle_f32x4(eight[0], eight[1], 0xdd));
}

/* For each of `count` queries, 1, 2 or 4: scores = scale * query keys' for the positions before `seen`, and up to a multiple
 * of 16 what is no score; the highest. The values are asked for on the way. */
INLINE void score_heads(const int count, const long dim, long seen, float scale, const float *restrict query,
                        const number *restrict keys, const number *restrict values, float *restrict scores, long room,
                        float *restrict highest) {
    const int some = 16 / count; /* positions at a time */
    __m512 high = _mm512_set1_ps(-INFINITY);
    _Alignas(64) float line[16];
    for (long first = 0; first < seen; first += some) {
        __m512 product[16];
#pragma GCC unroll 16
        for (int s = 0; s < some; s++) {
            const number *key = keys + at_most(first + s, seen - 1) * dim;
#pragma GCC unroll 4
            for (long i = 0; i < dim; i += 32) __builtin_prefetch(values + (first + s) * dim + i);
#pragma GCC unroll 4
            for (int c = 0; c < count; c++) product[c * some + s] = _mm512_setzero_ps();
#pragma GCC unroll 8
            for (long i = 0; i < dim; i += 16) {
                const __m512 wide = sixteen(key + i);
#pragma GCC unroll 4
                for (int c = 0; c < count; c++) {
                    __m512 *sum = product + c * some + s;
                    *sum = _mm512_fmadd_ps(_mm512_loadu_ps(query + c * dim + i), wide, *sum);
                }
            }
        }
        const __m512 score = _mm512_mul_ps(sixteen_sums(product), _mm512_set1_ps(scale));
        high = _mm512_max_ps(high, score); /* beyond the last position its score comes again */
        _mm512_store_ps(line, score);
#pragma GCC unroll 4
        for (int c = 0; c < count; c++) memcpy(scores + c * room + first, line + c * some, (size_t)some * sizeof(float));
    }
    _mm512_store_ps(line, high);
    for (int c = 0; c < count; c++) {
        highest[c] = -INFINITY;
        for (int s = 0; s < some; s++) highest[c] = line[c * some + s] > highest[c] ? line[c * some + s] : highest[c];
    }
}

/* For each of `count` rows of scores: out = scores values / total; count * dim is at most 256. */
INLINE void mix_values(const int count, const long dim, long seen, const float *restrict scores, long room,
                       const float *restrict total, const number *restrict values, number *restrict out) {
    __m512 sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < count * dim / 16; i++) sum[i] = _mm512_setzero_ps();
    for (long s = 0; s < seen; s++) {
#pragma GCC unroll 8
        for (int i = 0; i < dim / 16; i++) {
            const __m512 value = sixteen(values + s * dim + 16 * i);
#pragma GCC unroll 4
            for (int c = 0; c < count; c++) {
                __m512 *to = sum + c * (dim / 16) + i;
                *to = _mm512_fmadd_ps(_mm512_set1_ps(scores[c * room + s]), value, *to);
            }
        }
    }
    float plain[256];
#pragma GCC unroll 16
    for (int i = 0; i < count * dim / 16; i++) _mm512_storeu_ps(plain + 16 * i, sum[i]);
    for (int c = 0; c < count; c++) {
        SIMD for (long i = 0; i < dim; i++) out[c * dim + i] = narrow(plain[c * dim + i] / total[c]);
    }
}
#else
INLINE void score_heads(const int count, const long dim, long seen, float scale, const float *restrict query,
                        const number *restrict keys, const number *restrict values, float *restrict scores, long room,
                        float *restrict highest) {
    for (int c = 0; c < count; c++) {
        highest[c] = -INFINITY;
        for (long s = 0; s < seen; s++) {
            float score = 0.0f;
            SIMD_SUM(score) for (long i = 0; i < dim; i++) score += query[c * dim + i] * widen(keys[s * dim + i]);
            scores[c * room + s] = score * scale;
            highest[c] = scores[c * room + s] > highest[c] ? scores[c * room + s] : highest[c];
        }
    }
}

INLINE void mix_values(const int count, const long dim, long seen, const float *restrict scores, long room,
                       const float *restrict total, const number *restrict values, number *restrict out) {
    for (int c = 0; c < count; c++) {
        float sum[128] = {0};
        for (long s = 0; s < seen; s++) {
            const float weight = scores[c * room + s];
            SIMD for (long i = 0; i < dim; i++) sum[i] += weight * widen(values[s * dim + i]);
        }
        SIMD for (long i = 0; i < dim; i++) out[c * dim + i] = narrow(sum[i] / total[c]);
    }
}
#endif

/* out = softmax(scale * query keys') values over `seen` positions for `count` queries [count, dim], which share the keys and
 * values that are read; `count` and `dim`, at most 128, are constants after inlining. scores: [count, room]. */
INLINE void attend_heads(const int count, const long dim, long seen, float scale, const float *restrict query,
                         const number *restrict keys, const number *restrict values, float *restrict scores, long room,
                         number *restrict out) {
    float highest[4], total[4];
    score_heads(count, dim, seen, scale, query, keys, values, scores, room, highest);
    for (int c = 0; c < count; c++) {
        float *restrict row = scores + c * room, sum = 0.0f;
        SIMD_SUM(sum) for (long s = 0; s < seen; s++) {
            row[s] = exponential(row[s] - highest[c]);
            sum += row[s];
        }
        total[c] = sum;
    }
    mix_values(count, dim, seen, scores, room, total, values, out);
}

#define AT_ONCE 4 /* queries of a group that are answered together, at most */

/* Floats per thread. */
long attention_step_scratch(long dim, long capacity) { return AT_ONCE * (dim + round_up(capacity, 16)); }

/* qkv: rows of `stride` elements that begin with heads * dim queries, groups * dim keys and as many values.
 * lengths: positions that a row holds already; its key and value go to length % capacity of keys, values
 * [batch, groups, capacity, dim], and its queries see min(length + 1, capacity) positions.
 * cosines, sines: [batch, turn]. out: [batch, heads * dim]. dim is 32, 64 or 128. */
void attention_step(int threads, long batch, long heads, long groups, long dim, long turn, long capacity, long stride,
                    const number *restrict qkv, const float *restrict q_norm, const float *restrict k_norm,
                    const number *restrict narrow_q_norm, const number *restrict narrow_k_norm, float eps,
                    const float *restrict cosines, const float *restrict sines, const int64_t *restrict lengths,
                    float scale, number *restrict keys, number *restrict values, number *restrict out,
                    float *restrict scratch) {
    const Weight q_weight = {q_norm, narrow_q_norm}, k_weight = {k_norm, narrow_k_norm};
    const long sharing = heads / groups, room = round_up(capacity, 16);
    const int count = sharing % 4 == 0 && dim < 128 ? 4 : sharing % 2 == 0 ? 2 : 1;
    PARALLEL_FOR for (long task = 0; task < batch * groups; task++) {
        const long row = task / groups, group = task % groups, place = lengths[row] % capacity;
        const long seen = at_most(lengths[row] + 1, capacity);
        const number *in = qkv + row * stride;
        const float *cosine = cosines + row * turn, *sine = sines + row * turn;
        number *restrict k = keys + task * capacity * dim, *restrict v = values + task * capacity * dim;
        float *restrict query = scratch + THREAD * attention_step_scratch(dim, capacity);
        float *restrict scores = query + AT_ONCE * dim;
        turn_head(dim, turn, in + (heads + group) * dim, k_weight, eps, cosine, sine, query);
        for (long i = 0; i < dim; i++) k[place * dim + i] = narrow(query[i]);
        memcpy(v + place * dim, in + (heads + groups + group) * dim, (size_t)dim * sizeof(number));
        for (long h = group * sharing; h < (group + 1) * sharing; h += count) {
            for (int c = 0; c < count; c++) {
                turn_head(dim, turn, in + (h + c) * dim, q_weight, eps, cosine, sine, query + c * dim);
            }
            number *to = out + (row * heads + h) * dim;
#define CASE(n, width) \
    case 256 * n + width: attend_heads(n, width, seen, scale, query, k, v, scores, room, to); break;
            switch (256 * count + dim) {
                CASE(1, 32) CASE(1, 64) CASE(1, 128) CASE(2, 32) CASE(2, 64) CASE(2, 128) CASE(4, 32) CASE(4, 64)
            }
#undef CASE
        }
    }
}

/* ---- The likeliest token ---- */

/* For each row of logits [rows, width] the place of the highest of the first `among`, and log(sum(exp(row))). */
void highest(int threads, long rows, long width, long among, const float *restrict logits, int64_t *restrict place,
             float *restrict log_total) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const float *restrict xs = logits + row * width;
        float most = -INFINITY, most_among = -INFINITY, total = 0.0f;
        SIMD_MOST(most_among) for (long i = 0; i < among; i++) most_among = xs[i] > most_among ? xs[i] : most_among;
        SIMD_MOST(most) for (long i = among; i < width; i++) most = xs[i] > most ? xs[i] : most;
        most = most_among > most ? most_among : most;
        long found = 0;
        while (found < among - 1 && xs[found] != most_among) found++;
        place[row] = found;
        SIMD_SUM(total) for (long i = 0; i < width; i++) total += exponential(xs[i] - most);
        log_total[row] = most + logf(total);
    }
}
