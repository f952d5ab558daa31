/* Fused training kernels for the CPU: everything of a step that is not a large matrix product.
 *
 * Loops are written so that gcc and clang vectorise them.
 * Every result is independent of the number of threads: work that is summed is cut into blocks whose number depends on
 * the shapes alone, and the blocks are added in order. Callers pass the thread count and all scratch memory.
 */
#include "common.h"
#ifdef __GLIBC__
#include <malloc.h>
#endif

/* Memory that a step frees serves the next one. Otherwise the C library gives large blocks back to the kernel, and a
 * twentieth of a small model's step is page faults. At most 1 GiB stays at the heap's end. */
void keep_memory(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 28);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

/* total[i] = sum of partial[block][i] over blocks, in order. */
static void sum_blocks(long blocks, long width, const float *partial, float *total) {
    memcpy(total, partial, (size_t)width * sizeof(float));
    for (long block = 1; block < blocks; block++) {
        SIMD for (long i = 0; i < width; i++) total[i] += partial[block * width + i];
    }
}

/* ---- RMS norm, with the residual sum before it ---- */

/* The weight is given in either precision, the other is NULL; residual with sum, and rstd, may be NULL. */
void rms_norm_forward(int threads, long rows, long width, const number *restrict x, const number *restrict residual,
                      number *restrict sum, const float *restrict weight, const number *restrict narrow_weight, float eps,
                      number *restrict out, float *restrict rstd) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *restrict xs = x + row * width;
        number *restrict outs = out + row * width;
        float squares = 0.0f;
        if (residual) {
            const number *restrict rs = residual + row * width;
            number *restrict sums = sum + row * width;
            SIMD_SUM(squares) for (long i = 0; i < width; i++) {
                const number total = narrow(widen(xs[i]) + widen(rs[i]));
                sums[i] = total;
                squares += widen(total) * widen(total);
            }
            xs = sums;
        } else {
            SIMD_SUM(squares) for (long i = 0; i < width; i++) squares += widen(xs[i]) * widen(xs[i]);
        }
        const float scale = 1.0f / sqrtf(squares / (float)width + eps);
        if (rstd) rstd[row] = scale;
        if (weight) {
            SIMD for (long i = 0; i < width; i++) outs[i] = narrow(widen(xs[i]) * scale * weight[i]);
        } else {
            SIMD for (long i = 0; i < width; i++) outs[i] = narrow(widen(xs[i]) * scale * widen(narrow_weight[i]));
        }
    }
}

/* d_x = d_sum (gradient that reaches the sum directly, may be NULL) + the norm's gradient. partial: [blocks, width]. */
void rms_norm_backward(int threads, long rows, long width, long blocks, const number *restrict x,
                       const float *restrict weight, const float *restrict rstd, const number *restrict d_out,
                       const number *restrict d_sum, number *restrict d_x, float *restrict d_weight,
                       float *restrict partial) {
    const long per_block = (rows + blocks - 1) / blocks;
    PARALLEL_FOR for (long block = 0; block < blocks; block++) {
        float *restrict dw = partial + block * width;
        memset(dw, 0, (size_t)width * sizeof(float));
        for (long row = block * per_block; row < at_most(rows, (block + 1) * per_block); row++) {
            const number *restrict xs = x + row * width, *restrict gs = d_out + row * width;
            number *restrict dx = d_x + row * width;
            const float scale = rstd[row];
            float dot = 0.0f;
            SIMD_SUM(dot) for (long i = 0; i < width; i++) {
                const float product = widen(gs[i]) * widen(xs[i]) * scale;
                dw[i] += product;
                dot += product * weight[i];
            }
            const float shift = dot / (float)width * scale;
            if (d_sum) {
                const number *restrict ds = d_sum + row * width;
                SIMD for (long i = 0; i < width; i++) {
                    dx[i] = narrow(widen(ds[i]) + scale * (widen(gs[i]) * weight[i] - widen(xs[i]) * shift));
                }
            } else {
                SIMD for (long i = 0; i < width; i++) {
                    dx[i] = narrow(scale * (widen(gs[i]) * weight[i] - widen(xs[i]) * shift));
                }
            }
        }
    }
    sum_blocks(blocks, width, partial, d_weight);
}

/* ---- SwiGLU: silu(gate) * up of rows [gate, up] ---- */

void swiglu_forward(int threads, long rows, long width, const number *restrict gate_up, number *restrict out) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *restrict gates = gate_up + row * 2 * width, *restrict ups = gates + width;
        number *restrict outs = out + row * width;
        SIMD for (long i = 0; i < width; i++) {
            const float gate = widen(gates[i]);
            outs[i] = narrow(gate / (1.0f + exponential(-gate)) * widen(ups[i]));
        }
    }
}

void swiglu_backward(int threads, long rows, long width, const number *restrict gate_up, const number *restrict d_out,
                     number *restrict d_gate_up) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *restrict gates = gate_up + row * 2 * width, *restrict ups = gates + width;
        const number *restrict gs = d_out + row * width;
        number *restrict d_gate = d_gate_up + row * 2 * width, *restrict d_up = d_gate + width;
        SIMD for (long i = 0; i < width; i++) {
            const float gate = widen(gates[i]), g = widen(gs[i]);
            const float sigmoid = 1.0f / (1.0f + exponential(-gate));
            d_up[i] = narrow(g * gate * sigmoid);
            d_gate[i] = narrow(g * widen(ups[i]) * sigmoid * (1.0f + gate * (1.0f - sigmoid)));
        }
    }
}

/* ---- GeGLU: gelu(gate) * up of rows [gate, up], gelu in its tanh form: gate * sigmoid(w(gate)) ---- */

#define GELU_LINEAR 1.5957691216f /* 2 sqrt(2 / pi) */
#define GELU_CUBIC 0.0713548162726f /* 0.044715 times that */

void geglu_forward(int threads, long rows, long width, const number *restrict gate_up, number *restrict out) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *restrict gates = gate_up + row * 2 * width, *restrict ups = gates + width;
        number *restrict outs = out + row * width;
        SIMD for (long i = 0; i < width; i++) {
            const float gate = widen(gates[i]), w = gate * (GELU_LINEAR + GELU_CUBIC * gate * gate);
            outs[i] = narrow(gate / (1.0f + exponential(-w)) * widen(ups[i]));
        }
    }
}

void geglu_backward(int threads, long rows, long width, const number *restrict gate_up, const number *restrict d_out,
                    number *restrict d_gate_up) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *restrict gates = gate_up + row * 2 * width, *restrict ups = gates + width;
        const number *restrict gs = d_out + row * width;
        number *restrict d_gate = d_gate_up + row * 2 * width, *restrict d_up = d_gate + width;
        SIMD for (long i = 0; i < width; i++) {
            const float gate = widen(gates[i]), g = widen(gs[i]), square = gate * gate;
            const float sigmoid = 1.0f / (1.0f + exponential(-gate * (GELU_LINEAR + GELU_CUBIC * square)));
            const float slope = gate * (GELU_LINEAR + 3.0f * GELU_CUBIC * square);
            d_up[i] = narrow(g * gate * sigmoid);
            d_gate[i] = narrow(g * widen(ups[i]) * sigmoid * (1.0f + slope * (1.0f - sigmoid)));
        }
    }
}

/* ---- Gated short convolution ---- */

#define CONV_ROWS 64
#define CONV_MOST_TAPS 8

long short_conv_blocks(long batch, long length) { return batch * ((length + CONV_ROWS - 1) / CONV_ROWS); }
long short_conv_scratch(long width) { return (2 * (CONV_ROWS + CONV_MOST_TAPS) + 2) * width; } /* floats per thread */

/* acc[i] = sum over n taps of weight[tap][i] * rows[tap * stride + i]; n is a constant after inlining. */
INLINE void mix_taps(const long n, long width, const float *restrict weight, const float *rows, long stride,
                     float *restrict acc) {
    SIMD for (long i = 0; i < width; i++) {
        float total = weight[i] * rows[i];
        for (long tap = 1; tap < n; tap++) total += weight[tap * width + i] * rows[tap * stride + i];
        acc[i] = total;
    }
}

static void mix(long n, long width, const float *weight, const float *rows, long stride, float *acc) {
    switch (n) {
        case 1: mix_taps(1, width, weight, rows, stride, acc); break;
        case 2: mix_taps(2, width, weight, rows, stride, acc); break;
        case 3: mix_taps(3, width, weight, rows, stride, acc); break;
        case 4: mix_taps(4, width, weight, rows, stride, acc); break;
        default: mix_taps(n, width, weight, rows, stride, acc);
    }
}

/* How many taps reach back from position t without leaving its document. */
INLINE long taps_back(const int32_t *starts, long t, long taps) {
    return at_most(taps, t - (starts ? starts[t] : 0) + 1);
}

/* How many later positions (t itself included) take position t in. */
INLINE long taps_ahead(const int32_t *starts, long t, long length, long taps) {
    const long most = at_most(taps, length - t);
    long n = 1;
    while (n < most && (!starts || starts[t + n] <= t)) n++;
    return n;
}

/* bcx: [batch, length, 3 * width] = input gate, output gate, x. weight: [taps, width], tap 0 is the current token. */
void short_conv_forward(int threads, long batch, long length, long width, long taps, const number *restrict bcx,
                        const float *restrict weight, const int32_t *restrict starts, number *restrict out,
                        float *restrict scratch) {
    const long per_row = (length + CONV_ROWS - 1) / CONV_ROWS, each = short_conv_scratch(width);
    PARALLEL_FOR for (long block = 0; block < batch * per_row; block++) {
        const long b = block / per_row, begin = block % per_row * CONV_ROWS;
        const long end = at_most(length, begin + CONV_ROWS), first = begin < taps - 1 ? 0 : begin - taps + 1;
        const number *rows = bcx + b * length * 3 * width;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *mixed = scratch + THREAD * each, *y = mixed + width;
        for (long t = first; t < end; t++) {
            const number *restrict gate = rows + t * 3 * width, *restrict x = gate + 2 * width;
            float *restrict ys = y + (t - first) * width;
            SIMD for (long i = 0; i < width; i++) ys[i] = widen(gate[i]) * widen(x[i]);
        }
        for (long t = begin; t < end; t++) {
            const number *restrict gate = rows + t * 3 * width + width;
            number *restrict outs = out + (b * length + t) * width;
            mix(taps_back(row_starts, t, taps), width, weight, y + (t - first) * width, -width, mixed);
            SIMD for (long i = 0; i < width; i++) outs[i] = narrow(widen(gate[i]) * mixed[i]);
        }
    }
}

/* partial: [short_conv_blocks, taps, width]. */
void short_conv_backward(int threads, long batch, long length, long width, long taps, const number *restrict bcx,
                         const float *restrict weight, const int32_t *restrict starts, const number *restrict d_out,
                         number *restrict d_bcx, float *restrict d_weight, float *restrict partial,
                         float *restrict scratch) {
    const long per_row = (length + CONV_ROWS - 1) / CONV_ROWS, each = short_conv_scratch(width);
    PARALLEL_FOR for (long block = 0; block < batch * per_row; block++) {
        const long b = block / per_row, begin = block % per_row * CONV_ROWS;
        const long end = at_most(length, begin + CONV_ROWS), first = begin < taps - 1 ? 0 : begin - taps + 1;
        const long last = at_most(length, end + taps - 1);
        const number *rows = bcx + b * length * 3 * width, *g_rows = d_out + b * length * width;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *restrict mixed = scratch + THREAD * each, *y = mixed + 2 * width;
        float *d_mixed = y + (CONV_ROWS + CONV_MOST_TAPS) * width;
        float *restrict d_y = mixed + width;
        float *restrict dw = partial + block * taps * width;
        memset(dw, 0, (size_t)(taps * width) * sizeof(float));
        for (long t = first; t < end; t++) {
            const number *restrict gate = rows + t * 3 * width, *restrict x = gate + 2 * width;
            float *restrict ys = y + (t - first) * width;
            SIMD for (long i = 0; i < width; i++) ys[i] = widen(gate[i]) * widen(x[i]);
        }
        for (long t = begin; t < last; t++) {
            const number *restrict gate = rows + t * 3 * width + width, *restrict g = g_rows + t * width;
            float *restrict ds = d_mixed + (t - begin) * width;
            SIMD for (long i = 0; i < width; i++) ds[i] = widen(gate[i]) * widen(g[i]);
        }
        for (long t = begin; t < end; t++) {
            const long back = taps_back(row_starts, t, taps), ahead = taps_ahead(row_starts, t, length, taps);
            const number *restrict gate_in = rows + t * 3 * width, *restrict x = gate_in + 2 * width;
            const number *restrict g = g_rows + t * width;
            const float *ds = d_mixed + (t - begin) * width, *ys = y + (t - first) * width;
            number *restrict d_in = d_bcx + (b * length + t) * 3 * width;
            number *restrict d_gate = d_in + width, *restrict d_x = d_in + 2 * width;
            mix(back, width, weight, ys, -width, mixed);
            mix(ahead, width, weight, ds, width, d_y);
            SIMD for (long i = 0; i < width; i++) {
                d_gate[i] = narrow(widen(g[i]) * mixed[i]);
                d_in[i] = narrow(d_y[i] * widen(x[i]));
                d_x[i] = narrow(d_y[i] * widen(gate_in[i]));
            }
            for (long tap = 0; tap < back; tap++) {
                float *restrict dws = dw + tap * width;
                const float *past = ys - tap * width;
                SIMD for (long i = 0; i < width; i++) dws[i] += ds[i] * past[i];
            }
        }
    }
    sum_blocks(batch * per_row, taps * width, partial, d_weight);
}

/* ---- Causal depthwise convolution, then SiLU ---- */

long conv_silu_scratch(long width) { return (2 * CONV_ROWS + 3 * CONV_MOST_TAPS + 1) * width; } /* floats per thread */

INLINE void widen_rows(long rows, long width, const number *from, long stride, float *restrict to) {
    for (long t = 0; t < rows; t++) {
        const number *restrict source = from + t * stride;
        SIMD for (long i = 0; i < width; i++) to[t * width + i] = widen(source[i]);
    }
}

/* x: rows of `stride` elements whose first `width` are used. weight: [taps, width], tap 0 is the current token. */
void conv_silu_forward(int threads, long batch, long length, long width, long taps, long stride,
                       const number *restrict x, const float *restrict weight, const int32_t *restrict starts,
                       number *restrict out, float *restrict scratch) {
    const long per_row = (length + CONV_ROWS - 1) / CONV_ROWS, each = conv_silu_scratch(width);
    PARALLEL_FOR for (long block = 0; block < batch * per_row; block++) {
        const long b = block / per_row, begin = block % per_row * CONV_ROWS;
        const long end = at_most(length, begin + CONV_ROWS), first = begin < taps - 1 ? 0 : begin - taps + 1;
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *restrict mixed = scratch + THREAD * each, *y = mixed + width;
        widen_rows(end - first, width, x + (b * length + first) * stride, stride, y);
        for (long t = begin; t < end; t++) {
            number *restrict outs = out + (b * length + t) * width;
            mix(taps_back(row_starts, t, taps), width, weight, y + (t - first) * width, -width, mixed);
            SIMD for (long i = 0; i < width; i++) outs[i] = narrow(mixed[i] / (1.0f + exponential(-mixed[i])));
        }
    }
}

/* d_x contiguous; partial: [short_conv_blocks, taps, width]. */
void conv_silu_backward(int threads, long batch, long length, long width, long taps, long stride,
                        const number *restrict x, const float *restrict weight, const int32_t *restrict starts,
                        const number *restrict d_out, number *restrict d_x, float *restrict d_weight,
                        float *restrict partial, float *restrict scratch) {
    const long per_row = (length + CONV_ROWS - 1) / CONV_ROWS, each = conv_silu_scratch(width);
    PARALLEL_FOR for (long block = 0; block < batch * per_row; block++) {
        const long b = block / per_row, begin = block % per_row * CONV_ROWS;
        const long end = at_most(length, begin + CONV_ROWS), first = begin < taps - 1 ? 0 : begin - taps + 1;
        const long last = at_most(length, end + taps - 1);
        const int32_t *row_starts = starts ? starts + b * length : NULL;
        float *restrict mixed = scratch + THREAD * each, *y = mixed + width;
        float *d_mixed = y + (CONV_ROWS + 2 * CONV_MOST_TAPS) * width;
        float *restrict dw = partial + block * taps * width;
        memset(dw, 0, (size_t)(taps * width) * sizeof(float));
        widen_rows(last - first, width, x + (b * length + first) * stride, stride, y);
        for (long t = begin; t < last; t++) {
            const number *restrict g = d_out + (b * length + t) * width;
            float *restrict ds = d_mixed + (t - begin) * width;
            mix(taps_back(row_starts, t, taps), width, weight, y + (t - first) * width, -width, mixed);
            SIMD for (long i = 0; i < width; i++) {
                const float sigmoid = 1.0f / (1.0f + exponential(-mixed[i]));
                ds[i] = widen(g[i]) * sigmoid * (1.0f + mixed[i] * (1.0f - sigmoid));
            }
        }
        for (long t = begin; t < end; t++) {
            const long back = taps_back(row_starts, t, taps), ahead = taps_ahead(row_starts, t, length, taps);
            const float *ds = d_mixed + (t - begin) * width, *ys = y + (t - first) * width;
            number *restrict dx = d_x + (b * length + t) * width;
            mix(ahead, width, weight, ds, width, mixed);
            SIMD for (long i = 0; i < width; i++) dx[i] = narrow(mixed[i]);
            for (long tap = 0; tap < back; tap++) {
                float *restrict dws = dw + tap * width;
                const float *past = ys - tap * width;
                SIMD for (long i = 0; i < width; i++) dws[i] += ds[i] * past[i];
            }
        }
    }
    sum_blocks(batch * per_row, taps * width, partial, d_weight);
}

/* ---- Rotary embedding (rotate_half) of each head's first `turn` dimensions ---- */

/* x: rows of `stride` elements whose first heads * dim are used; row r is at position r % length. cos, sin:
 * [length, turn], their second half like the first: with -sin this is the gradient too. */
void rope(int threads, long rows, long length, long heads, long dim, long turn, long stride, const number *restrict x,
          const float *restrict cos, const float *restrict sin, number *restrict out) {
    const long half = turn / 2;
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const float *restrict c = cos + row % length * turn, *restrict s = sin + row % length * turn;
        for (long head = 0; head < heads; head++) {
            const number *restrict xs = x + row * stride + head * dim;
            number *restrict outs = out + (row * heads + head) * dim;
            SIMD for (long i = 0; i < half; i++) {
                const float a = widen(xs[i]), b = widen(xs[half + i]);
                outs[i] = narrow(a * c[i] - b * s[i]);
                outs[half + i] = narrow(b * c[i] + a * s[i]);
            }
            if (turn < dim) memcpy(outs + turn, xs + turn, (size_t)(dim - turn) * sizeof(number));
        }
    }
}

/* ---- RMS norm of each head, then rotary embedding (rotate_half) ---- */

INLINE void norm_rope_row(const long dim, long heads, const number *restrict x, const float *restrict weight,
                          const float *restrict cos, const float *restrict sin, float eps, number *restrict out) {
    const long half = dim / 2;
    for (long head = 0; head < heads; head++, x += dim, out += dim) {
        float squares = 0.0f;
        SIMD_SUM(squares) for (long i = 0; i < dim; i++) squares += widen(x[i]) * widen(x[i]);
        const float scale = 1.0f / sqrtf(squares / (float)dim + eps);
        SIMD for (long i = 0; i < half; i++) {
            const float a = widen(x[i]) * scale * weight[i], b = widen(x[half + i]) * scale * weight[half + i];
            out[i] = narrow(a * cos[i] - b * sin[i]);
            out[half + i] = narrow(b * cos[half + i] + a * sin[half + i]);
        }
    }
}

/* x: rows of `stride` elements whose first heads * dim are used; row r is at position r % length. cos, sin: [length, dim]. */
void norm_rope_forward(int threads, long rows, long length, long heads, long dim, long stride, const number *restrict x,
                       const float *restrict weight, const float *restrict cos, const float *restrict sin, float eps,
                       number *restrict out) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        const number *xs = x + row * stride;
        number *outs = out + row * heads * dim;
        const float *c = cos + row % length * dim, *s = sin + row % length * dim;
        switch (dim) {
            case 32: norm_rope_row(32, heads, xs, weight, c, s, eps, outs); break;
            case 64: norm_rope_row(64, heads, xs, weight, c, s, eps, outs); break;
            default: norm_rope_row(dim, heads, xs, weight, c, s, eps, outs);
        }
    }
}

INLINE void norm_rope_row_backward(const long dim, long heads, const number *restrict x, const float *restrict weight,
                                   const float *restrict cos, const float *restrict sin, float eps,
                                   const number *restrict g, number *restrict d_x, float *restrict dw) {
    const long half = dim / 2;
    for (long head = 0; head < heads; head++, x += dim, g += dim, d_x += dim) {
        float squares = 0.0f, dot = 0.0f;
        SIMD_SUM(squares) for (long i = 0; i < dim; i++) squares += widen(x[i]) * widen(x[i]);
        const float scale = 1.0f / sqrtf(squares / (float)dim + eps);
        SIMD_SUM(dot) for (long i = 0; i < half; i++) {
            const float ga = widen(g[i]), gb = widen(g[half + i]);
            const float da = ga * cos[i] + gb * sin[half + i], db = gb * cos[half + i] - ga * sin[i];
            const float pa = da * widen(x[i]) * scale, pb = db * widen(x[half + i]) * scale;
            dw[i] += pa;
            dw[half + i] += pb;
            dot += pa * weight[i] + pb * weight[half + i];
        }
        const float shift = dot / (float)dim * scale;
        SIMD for (long i = 0; i < half; i++) {
            const float ga = widen(g[i]), gb = widen(g[half + i]);
            const float da = ga * cos[i] + gb * sin[half + i], db = gb * cos[half + i] - ga * sin[i];
            d_x[i] = narrow(scale * (da * weight[i] - widen(x[i]) * shift));
            d_x[half + i] = narrow(scale * (db * weight[half + i] - widen(x[half + i]) * shift));
        }
    }
}

void norm_rope_backward(int threads, long rows, long length, long heads, long dim, long stride, long blocks,
                        const number *restrict x, const float *restrict weight, const float *restrict cos,
                        const float *restrict sin, float eps, const number *restrict d_out, number *restrict d_x,
                        float *restrict d_weight, float *restrict partial) {
    const long per_block = (rows + blocks - 1) / blocks;
    PARALLEL_FOR for (long block = 0; block < blocks; block++) {
        float *dw = partial + block * dim;
        memset(dw, 0, (size_t)dim * sizeof(float));
        for (long row = block * per_block; row < at_most(rows, (block + 1) * per_block); row++) {
            const number *xs = x + row * stride, *gs = d_out + row * heads * dim;
            number *dx = d_x + row * heads * dim;
            const float *c = cos + row % length * dim, *s = sin + row % length * dim;
            switch (dim) {
                case 32: norm_rope_row_backward(32, heads, xs, weight, c, s, eps, gs, dx, dw); break;
                case 64: norm_rope_row_backward(64, heads, xs, weight, c, s, eps, gs, dx, dw); break;
                default: norm_rope_row_backward(dim, heads, xs, weight, c, s, eps, gs, dx, dw);
            }
        }
    }
    sum_blocks(blocks, dim, partial, d_weight);
}

/* ---- Softmax cross-entropy over rows of logits ---- */

/* loss[row] = -log softmax(logits[row])[target]. With d_loss, the logits are overwritten by their gradient, times
 * d_loss[row]. scratch: `vocabulary` floats per thread. */
void cross_entropy(int threads, long rows, long vocabulary, number *restrict logits, const int64_t *restrict targets,
                   const float *restrict d_loss, float *restrict loss, float *restrict scratch) {
    PARALLEL_FOR for (long row = 0; row < rows; row++) {
        number *restrict l = logits + row * vocabulary;
        float *restrict e = scratch + THREAD * vocabulary, top = widen(l[0]), total = 0.0f;
        const float wanted = widen(l[targets[row]]);
        PRAGMA(omp simd reduction(max : top))
        for (long i = 0; i < vocabulary; i++) top = widen(l[i]) > top ? widen(l[i]) : top;
        SIMD_SUM(total) for (long i = 0; i < vocabulary; i++) {
            e[i] = exponential(widen(l[i]) - top);
            total += e[i];
        }
        loss[row] = top - wanted + logf(total);
        if (d_loss) {
            const float scale = d_loss[row] / total;
            e[targets[row]] -= total;
            SIMD for (long i = 0; i < vocabulary; i++) l[i] = narrow(e[i] * scale);
        }
    }
}

/* total += part */
void accumulate(int threads, long count, const number *restrict part, float *restrict total) {
    PRAGMA(omp parallel for simd num_threads(threads) schedule(static))
    for (long i = 0; i < count; i++) total[i] += widen(part[i]);
}

/* ---- Optimiser ---- */

INLINE float adamw_element(float grad, float *restrict master, float *restrict mean, float *restrict square,
                           float first_rate, float second_rate, float step_size, float root_correction, float eps,
                           float keep) {
    const float m = *mean + first_rate * (grad - *mean);
    const float s = *square + second_rate * (grad * grad - *square);
    const float updated = keep * *master - step_size * m / (sqrtf(s) * root_correction + eps);
    *mean = m;
    *square = s;
    *master = updated;
    return updated;
}

/* One AdamW update. Exactly one of grad and grad_wide is given; shadow, the bfloat16 copy, may be NULL.
 * first_rate and second_rate are 1 - beta, root_correction is 1 / sqrt(1 - second_beta^step), keep is
 * 1 - lr * weight_decay. */
void adamw(int threads, long count, float *restrict master, number *restrict shadow, const number *restrict grad,
           const float *restrict grad_wide, float *restrict mean, float *restrict square, float first_rate,
           float second_rate, float step_size, float root_correction, float eps, float keep, float clip_scale) {
#define UPDATE(value)                                                                                          \
    adamw_element((value) * clip_scale, master + i, mean + i, square + i, first_rate, second_rate, step_size, \
                  root_correction, eps, keep)
    if (grad && shadow) {
        PRAGMA(omp parallel for simd num_threads(threads) schedule(static))
        for (long i = 0; i < count; i++) shadow[i] = narrow(UPDATE(widen(grad[i])));
    } else if (grad) {
        PRAGMA(omp parallel for simd num_threads(threads) schedule(static))
        for (long i = 0; i < count; i++) UPDATE(widen(grad[i]));
    } else if (shadow) {
        PRAGMA(omp parallel for simd num_threads(threads) schedule(static))
        for (long i = 0; i < count; i++) shadow[i] = narrow(UPDATE(grad_wide[i]));
    } else {
        PRAGMA(omp parallel for simd num_threads(threads) schedule(static))
        for (long i = 0; i < count; i++) UPDATE(grad_wide[i]);
    }
#undef UPDATE
}

#define SQUARES_BLOCK 16384

/* Sum of squares of bfloat16 (grad) or float (grad_wide) values; partial: one double per SQUARES_BLOCK values. */
double sum_squares(int threads, long count, const number *restrict grad, const float *restrict grad_wide,
                   double *restrict partial) {
    const long blocks = (count + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
    PARALLEL_FOR for (long block = 0; block < blocks; block++) {
        const long begin = block * SQUARES_BLOCK, end = at_most(count, begin + SQUARES_BLOCK);
        float total = 0.0f;
        if (grad) {
            SIMD_SUM(total) for (long i = begin; i < end; i++) total += widen(grad[i]) * widen(grad[i]);
        } else {
            SIMD_SUM(total) for (long i = begin; i < end; i++) total += grad_wide[i] * grad_wide[i];
        }
        partial[block] = total;
    }
    double sum = 0.0;
    for (long block = 0; block < blocks; block++) sum += partial[block];
    return sum;
}

/* starts[b][t] = first position of the run of equal ids that t is in. */
void document_starts(long batch, long length, const int32_t *restrict documents, int32_t *restrict starts) {
    for (long b = 0; b < batch; b++) {
        for (long t = 0; t < length; t++) {
            const long i = b * length + t;
            starts[i] = t > 0 && documents[i] == documents[i - 1] ? starts[i - 1] : (int32_t)t;
        }
    }
}
