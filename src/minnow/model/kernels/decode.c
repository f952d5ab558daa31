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

/* scores = scale * query keys' for the positions before `seen`, and up to a multiple of 16 what is no score; the highest.
 * The values are asked for on the way. */
INLINE float score_head(const long dim, long seen, float scale, const float *restrict query, const number *restrict keys,
                        const number *restrict values, float *restrict scores) {
    __m512 highest = _mm512_set1_ps(-INFINITY);
    for (long first = 0; first < seen; first += 16) {
        __m512 product[16];
#pragma GCC unroll 16
        for (int s = 0; s < 16; s++) {
            const number *key = keys + at_most(first + s, seen - 1) * dim;
            product[s] = _mm512_setzero_ps();
#pragma GCC unroll 4
            for (long i = 0; i < dim; i += 32) __builtin_prefetch(values + (first + s) * dim + i);
#pragma GCC unroll 8
            for (long i = 0; i < dim; i += 16) {
                product[s] = _mm512_fmadd_ps(_mm512_loadu_ps(query + i), sixteen(key + i), product[s]);
            }
        }
        const __m512 score = _mm512_mul_ps(sixteen_sums(product), _mm512_set1_ps(scale));
        highest = _mm512_max_ps(highest, score); /* beyond the last position its score comes again */
        _mm512_storeu_ps(scores + first, score);
    }
    return _mm512_reduce_max_ps(highest);
}
#else
INLINE float score_head(const long dim, long seen, float scale, const float *restrict query, const number *restrict keys,
                        const number *restrict values, float *restrict scores) {
    float highest = -INFINITY;
    for (long s = 0; s < seen; s++) {
        float score = 0.0f;
        SIMD_SUM(score) for (long i = 0; i < dim; i++) score += query[i] * widen(keys[s * dim + i]);
        scores[s] = score * scale;
        highest = scores[s] > highest ? scores[s] : highest;
    }
    return highest;
}
#endif

/* out = softmax(scale * query keys') values over `seen` positions; `dim`, at most 128, is a constant after inlining. */
INLINE void attend_head(const long dim, long seen, float scale, const float *restrict query, const number *restrict keys,
                        const number *restrict values, float *restrict scores, number *restrict out) {
    const float highest = score_head(dim, seen, scale, query, keys, values, scores);
    float total = 0.0f, sum[128] = {0};
    SIMD_SUM(total) for (long s = 0; s < seen; s++) {
        scores[s] = exponential(scores[s] - highest);
        total += scores[s];
    }
    for (long s = 0; s < seen; s++) {
        const float weight = scores[s];
        SIMD for (long i = 0; i < dim; i++) sum[i] += weight * widen(values[s * dim + i]);
    }
    SIMD for (long i = 0; i < dim; i++) out[i] = narrow(sum[i] / total);
}

long attention_step_scratch(long dim, long capacity) { return dim + round_up(capacity, 16); } /* floats per thread */

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
    const long sharing = heads / groups;
    PARALLEL_FOR for (long task = 0; task < batch * groups; task++) {
        const long row = task / groups, group = task % groups, place = lengths[row] % capacity;
        const long seen = at_most(lengths[row] + 1, capacity);
        const number *in = qkv + row * stride;
        const float *cosine = cosines + row * turn, *sine = sines + row * turn;
        number *restrict k = keys + task * capacity * dim, *restrict v = values + task * capacity * dim;
        float *restrict query = scratch + THREAD * attention_step_scratch(dim, capacity);
        float *restrict scores = query + dim;
        turn_head(dim, turn, in + (heads + group) * dim, k_weight, eps, cosine, sine, query);
        for (long i = 0; i < dim; i++) k[place * dim + i] = narrow(query[i]);
        memcpy(v + place * dim, in + (heads + groups + group) * dim, (size_t)dim * sizeof(number));
        for (long h = group * sharing; h < (group + 1) * sharing; h++) {
            turn_head(dim, turn, in + h * dim, q_weight, eps, cosine, sine, query);
            number *to = out + (row * heads + h) * dim;
            switch (dim) {
                case 32: attend_head(32, seen, scale, query, k, v, scores, to); break;
                case 64: attend_head(64, seen, scale, query, k, v, scores, to); break;
                default: attend_head(128, seen, scale, query, k, v, scores, to);
            }
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
