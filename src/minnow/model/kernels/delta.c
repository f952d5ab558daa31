/* The gated delta rule on bfloat16 for the CPU, in chunks of CHUNK positions that stay in cache.
 *
 * With keys k and queries q of unit length, a chunk that meets the memory S of its past (g: decay since the chunk began,
 * D_ij: decay from position j to i, both 0 across documents) computes
 *     X = R - A X,   R = b (v - g k S),   A_ij = b_i (k_i . k_j) D_ij below the diagonal,
 *     out = g q S + P X,   P_ij = (q_i . k_j) D_ij up to the diagonal,   S <- decay S + (e k)' X,
 * where e is the decay from a position to the chunk's end. X by forward substitution, its gradient by backward
 * substitution. kernels/recurrences.py is the same in torch.
 */
#include "common.h"

#define CHUNK 64
#define BLOCK 16 /* rows that are handled together where matrices are triangular */

typedef struct {
    long kd, vd, n;                        /* widths of a key and a value; positions of this chunk */
    float *d, *kk, *qk, *a, *p;            /* [CHUNK, CHUNK] up to the diagonal's blocks: D, k.k, q.k, -A, P */
    float *q, *k, *qg, *kg, *ke, *across;  /* [CHUNK, kd]; across: keys [kd, CHUNK] */
    float *z, *x;                          /* [CHUNK, vd]: v - g k S, and X */
    float *c, *g, *e, *b, *q_unit, *k_unit; /* [CHUNK] */
    float decay;                           /* of the memory over the chunk */
} Chunk;

long delta_scratch(long kd, long vd) {
    return 7 * CHUNK * CHUNK + 11 * CHUNK * kd + 6 * CHUNK * vd + 2 * kd * vd + 8 * CHUNK;
}

static float *take(float **scratch, long count) {
    float *part = *scratch;
    *scratch += count;
    return part;
}

static Chunk chunk_memory(long kd, long vd, float **scratch) {
    Chunk w = {.kd = kd, .vd = vd};
    float **squares[] = {&w.d, &w.kk, &w.qk, &w.a, &w.p};
    float **keys[] = {&w.q, &w.k, &w.qg, &w.kg, &w.ke, &w.across};
    float **vectors[] = {&w.c, &w.g, &w.e, &w.b, &w.q_unit, &w.k_unit};
    for (int i = 0; i < 5; i++) *squares[i] = take(scratch, CHUNK * CHUNK);
    for (int i = 0; i < 6; i++) *keys[i] = take(scratch, CHUNK * kd);
    for (int i = 0; i < 6; i++) *vectors[i] = take(scratch, CHUNK);
    w.z = take(scratch, CHUNK * vd);
    w.x = take(scratch, CHUNK * vd);
    return w;
}

/* to[i] = factor / |from[i]| * from[i], and what that multiplied by without the factor; zeros from n on. */
static void load_unit(long n, long dim, const number *from, long stride, float factor, float *to, float *unit) {
    for (long i = 0; i < n; i++) {
        const number *restrict source = from + i * stride;
        float *restrict row = to + i * dim, squares = 0.0f;
        SIMD_SUM(squares) for (long d = 0; d < dim; d++) squares += widen(source[d]) * widen(source[d]);
        unit[i] = 1.0f / sqrtf(squares + 1e-6f);
        const float scale = factor * unit[i];
        SIMD for (long d = 0; d < dim; d++) row[d] = widen(source[d]) * scale;
    }
    memset(to + n * dim, 0, (size_t)((CHUNK - n) * dim) * sizeof(float));
}

static void load_plain(long n, long dim, const number *from, long stride, float *to) {
    for (long i = 0; i < n; i++) {
        const number *restrict source = from + i * stride;
        SIMD for (long d = 0; d < dim; d++) to[i * dim + d] = widen(source[d]);
    }
    memset(to + n * dim, 0, (size_t)((CHUNK - n) * dim) * sizeof(float));
}

static void scale_rows(long dim, const float *scale, const float *from, float *restrict to) {
    for (long i = 0; i < CHUNK; i++) {
        SIMD for (long d = 0; d < dim; d++) to[i * dim + d] = scale[i] * from[i * dim + d];
    }
}

static void transpose(long rows, long columns, const float *from, float *restrict to) {
    for (long i = 0; i < rows; i++) {
        for (long j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j];
    }
}

/* The end of the block of columns that the diagonal crosses in row i. */
INLINE long block_end(long i) { return (i / BLOCK + 1) * BLOCK; }

/* C = A B', up to the diagonal's blocks; B given as columns [depth, CHUNK]. */
static void triangle(long depth, const float *A, const float *B, float *C) {
    for (long r = 0; r < CHUNK; r += BLOCK) {
        multiply(BLOCK, r + BLOCK, depth, A + r * depth, depth, 1, B, CHUNK, C + r * CHUNK, CHUNK, 0);
    }
}

/* C (+)= L B for a lower triangle L. */
static void lower_times(long width, const float *L, const float *B, float *C, int add) {
    for (long r = 0; r < CHUNK; r += BLOCK) {
        multiply(BLOCK, width, r + BLOCK, L + r * CHUNK, CHUNK, 1, B, width, C + r * width, width, add);
    }
}

/* C (+)= L' B for a lower triangle L. */
static void upper_times(long width, const float *L, const float *B, float *C, int add) {
    for (long r = 0; r < CHUNK; r += BLOCK) {
        multiply(BLOCK, width, CHUNK - r, L + r * CHUNK + r, 1, CHUNK, B + r * width, width, C + r * width, width, add);
    }
}

/* Everything of the chunk at `begin` that the memory has no part in. log_decay, strength: `heads` apart. */
static void prepare(Chunk *w, long begin, long n, long heads, const number *q, long q_row, const number *k, long k_row,
                    const float *log_decay, const float *strength, const int32_t *starts) {
    const long kd = w->kd;
    w->n = n;
    load_unit(n, kd, q, q_row, 1.0f / sqrtf((float)kd), w->q, w->q_unit);
    load_unit(n, kd, k, k_row, 1.0f, w->k, w->k_unit);
    transpose(CHUNK, kd, w->k, w->across);
    float total = 0.0f;
    for (long i = 0; i < CHUNK; i++) {
        total += i < n ? log_decay[i * heads] : 0.0f;
        w->c[i] = total;
        w->b[i] = i < n ? strength[i * heads] : 0.0f;
    }
    for (long i = 0; i < CHUNK; i++) {
        const long own = at_most(i, n - 1);
        w->g[i] = !starts || starts[own] < begin ? exponential(w->c[i]) : 0.0f;
        w->e[i] = !starts || starts[own] == starts[n - 1] ? exponential(total - w->c[i]) : 0.0f;
    }
    w->decay = w->g[CHUNK - 1];
    scale_rows(kd, w->g, w->q, w->qg);
    scale_rows(kd, w->g, w->k, w->kg);
    scale_rows(kd, w->e, w->k, w->ke);
    triangle(kd, w->k, w->across, w->kk);
    triangle(kd, w->q, w->across, w->qk);
    for (long i = 0; i < CHUNK; i++) {
        const long row = i * CHUNK, first = starts && i < n && starts[i] > begin ? starts[i] - begin : 0;
        const float own = w->c[i], b = w->b[i];
        SIMD for (long j = 0; j < block_end(i); j++) {
            const float d = j <= i && j >= first ? exponential(fminf(own - w->c[j], 0.0f)) : 0.0f;
            w->d[row + j] = d;
            w->p[row + j] = w->qk[row + j] * d;
            w->a[row + j] = j < i ? -b * w->kk[row + j] * d : 0.0f;
        }
    }
}

/* z and x of the chunk; v: its values. */
static void write_values(Chunk *w, const number *v, long v_row, const float *memory) {
    const long vd = w->vd;
    load_plain(w->n, vd, v, v_row, w->z);
    multiply(CHUNK, vd, w->kd, w->kg, w->kd, 1, memory, vd, w->x, vd, 0);
    for (long i = 0; i < CHUNK; i++) {
        float *restrict z = w->z + i * vd, *restrict x = w->x + i * vd;
        SIMD for (long d = 0; d < vd; d++) {
            z[d] -= x[d];
            x[d] = w->b[i] * z[d];
        }
    }
    for (long r = 0; r < CHUNK; r += BLOCK) {
        if (r) multiply(BLOCK, vd, r, w->a + r * CHUNK, CHUNK, 1, w->x, vd, w->x + r * vd, vd, 1);
        for (long i = r + 1; i < r + BLOCK; i++) {
            float *restrict x = w->x + i * vd;
            for (long j = r; j < i; j++) {
                const float a = w->a[i * CHUNK + j], *restrict other = w->x + j * vd;
                SIMD for (long d = 0; d < vd; d++) x[d] += a * other[d];
            }
        }
    }
}

/* q: rows of positions q_row apart that hold heads / sharing heads of kd; k likewise, v with `heads` of vd.
 * log_decay, strength: [batch, length, heads]. out: [batch, length, heads, vd]. memory: [batch, heads, kd, vd], what the
 * last position leaves; memories: [batch, heads, chunks, kd, vd], what each chunk met, or NULL. */
void delta_forward(int threads, long batch, long length, long heads, long sharing, long kd, long vd, const number *q,
                   long q_row, const number *k, long k_row, const number *v, long v_row, const float *log_decay,
                   const float *strength, const int32_t *starts, number *out, float *memory, float *memories,
                   float *scratch) {
    const long each = delta_scratch(kd, vd), chunks = (length + CHUNK - 1) / CHUNK;
    PARALLEL_FOR for (long task = 0; task < batch * heads; task++) {
        const long b = task / heads, head = task % heads;
        float *free = scratch + THREAD * each, *S = memory + task * kd * vd;
        Chunk w = chunk_memory(kd, vd, &free);
        float *result = take(&free, CHUNK * vd);
        memset(S, 0, (size_t)(kd * vd) * sizeof(float));
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long begin = chunk * CHUNK, n = at_most(CHUNK, length - begin), at = b * length + begin;
            if (memories) memcpy(memories + (task * chunks + chunk) * kd * vd, S, (size_t)(kd * vd) * sizeof(float));
            prepare(&w, begin, n, heads, q + at * q_row + head / sharing * kd, q_row,
                    k + at * k_row + head / sharing * kd, k_row, log_decay + at * heads + head,
                    strength + at * heads + head, starts ? starts + at : NULL);
            write_values(&w, v + at * v_row + head * vd, v_row, S);
            multiply(CHUNK, vd, kd, w.qg, kd, 1, S, vd, result, vd, 0);
            lower_times(vd, w.p, w.x, result, 1);
            for (long i = 0; i < n; i++) {
                number *restrict row = out + ((at + i) * heads + head) * vd;
                SIMD for (long d = 0; d < vd; d++) row[d] = narrow(result[i * vd + d]);
            }
            SIMD for (long i = 0; i < kd * vd; i++) S[i] *= w.decay;
            multiply(kd, vd, CHUNK, w.ke, 1, kd, w.x, vd, S, vd, 1);
        }
    }
}

/* Gradient of load_unit, stored: unit * (factor * grad - row (row . grad) / factor). */
static void store_unit(long n, long dim, const float *row, const float *grad, const float *unit, float factor, number *to,
                       long stride) {
    for (long i = 0; i < n; i++) {
        const float *restrict y = row + i * dim, *restrict g = grad + i * dim;
        number *restrict target = to + i * stride;
        float dot = 0.0f;
        SIMD_SUM(dot) for (long d = 0; d < dim; d++) dot += y[d] * g[d];
        dot /= factor;
        SIMD for (long d = 0; d < dim; d++) target[d] = narrow(unit[i] * (factor * g[d] - y[d] * dot));
    }
}

INLINE float dot_product(long count, const float *restrict a, const float *restrict b) {
    float total = 0.0f;
    SIMD_SUM(total) for (long i = 0; i < count; i++) total += a[i] * b[i];
    return total;
}

/* d_q, d_k: [batch, length, heads, kd], one for each value head; d_v contiguous; d_log_decay, d_strength like the
 * originals. memories: as delta_forward left them. */
void delta_backward(int threads, long batch, long length, long heads, long sharing, long kd, long vd, const number *q,
                    long q_row, const number *k, long k_row, const number *v, long v_row, const float *log_decay,
                    const float *strength, const int32_t *starts, const float *memories, const number *d_out, number *d_q,
                    number *d_k, number *d_v, float *d_log_decay, float *d_strength, float *scratch) {
    const long each = delta_scratch(kd, vd), chunks = (length + CHUNK - 1) / CHUNK;
    const float factor = 1.0f / sqrtf((float)kd);
    PARALLEL_FOR for (long task = 0; task < batch * heads; task++) {
        const long b = task / heads, head = task % heads;
        float *free = scratch + THREAD * each;
        Chunk w = chunk_memory(kd, vd, &free);
        float *dp = take(&free, CHUNK * CHUNK), *da = take(&free, CHUNK * CHUNK);
        float *dq = take(&free, CHUNK * kd), *dk = take(&free, CHUNK * kd), *dqg = take(&free, CHUNK * kd);
        float *dkg = take(&free, CHUNK * kd), *dke = take(&free, CHUNK * kd);
        float *g = take(&free, CHUNK * vd), *dx = take(&free, CHUNK * vd), *y = take(&free, CHUNK * vd);
        float *x_across = take(&free, CHUNK * vd), *dS = take(&free, kd * vd), *across = take(&free, kd * vd);
        float *dc = take(&free, CHUNK), *db = take(&free, CHUNK);
        memset(dS, 0, (size_t)(kd * vd) * sizeof(float));
        for (long chunk = chunks - 1; chunk >= 0; chunk--) {
            const long begin = chunk * CHUNK, n = at_most(CHUNK, length - begin), at = b * length + begin;
            const float *S = memories + (task * chunks + chunk) * kd * vd;
            prepare(&w, begin, n, heads, q + at * q_row + head / sharing * kd, q_row,
                    k + at * k_row + head / sharing * kd, k_row, log_decay + at * heads + head,
                    strength + at * heads + head, starts ? starts + at : NULL);
            write_values(&w, v + at * v_row + head * vd, v_row, S);
            load_plain(n, vd, d_out + (at * heads + head) * vd, heads * vd, g);
            transpose(CHUNK, vd, w.x, x_across);
            upper_times(vd, w.p, g, dx, 0);
            multiply(CHUNK, vd, kd, w.ke, kd, 1, dS, vd, dx, vd, 1);
            triangle(vd, g, x_across, dp);
            transpose(kd, vd, dS, across);
            multiply(CHUNK, kd, vd, w.x, vd, 1, across, kd, dke, kd, 0);
            transpose(kd, vd, S, across);
            multiply(CHUNK, kd, vd, g, vd, 1, across, kd, dqg, kd, 0);
            const float d_decay = w.decay * dot_product(kd * vd, S, dS);
            for (long r = CHUNK - BLOCK; r >= 0; r -= BLOCK) { /* dx becomes the gradient of R */
                const long below = r + BLOCK;
                if (below < CHUNK) {
                    multiply(BLOCK, vd, CHUNK - below, w.a + below * CHUNK + r, 1, CHUNK, dx + below * vd, vd,
                             dx + r * vd, vd, 1);
                }
                for (long i = below - 2; i >= r; i--) {
                    float *restrict row = dx + i * vd;
                    for (long j = i + 1; j < below; j++) {
                        const float a = w.a[j * CHUNK + i], *restrict other = dx + j * vd;
                        SIMD for (long d = 0; d < vd; d++) row[d] += a * other[d];
                    }
                }
            }
            triangle(vd, dx, x_across, da); /* of -A */
            for (long i = 0; i < CHUNK; i++) {
                db[i] = dot_product(vd, dx + i * vd, w.z + i * vd);
                SIMD for (long d = 0; d < vd; d++) y[i * vd + d] = -w.b[i] * dx[i * vd + d];
            }
            for (long i = 0; i < n; i++) {
                number *restrict row = d_v + ((at + i) * heads + head) * vd;
                SIMD for (long d = 0; d < vd; d++) row[d] = narrow(-y[i * vd + d]);
            }
            multiply(CHUNK, kd, vd, y, vd, 1, across, kd, dkg, kd, 0);
            SIMD for (long i = 0; i < kd * vd; i++) dS[i] *= w.decay;
            multiply(kd, vd, CHUNK, w.qg, 1, kd, g, vd, dS, vd, 1);
            multiply(kd, vd, CHUNK, w.kg, 1, kd, y, vd, dS, vd, 1);
            memset(dc, 0, CHUNK * sizeof(float));
            for (long i = 0; i < CHUNK; i++) { /* dp becomes the gradient of q.k, da that of k.k */
                float *restrict ps = dp + i * CHUNK, *restrict as = da + i * CHUNK;
                const float *restrict ds = w.d + i * CHUNK, *restrict kk = w.kk + i * CHUNK, own = w.b[i];
                const float *restrict qk = w.qk + i * CHUNK;
                float sum_c = 0.0f, sum_b = 0.0f;
                PRAGMA(omp simd reduction(+ : sum_c, sum_b))
                for (long j = 0; j < block_end(i); j++) {
                    const float of_p = ps[j] * ds[j], of_a = j < i ? -as[j] * ds[j] : 0.0f;
                    const float slope = of_p * qk[j] + of_a * own * kk[j];
                    sum_c += slope;
                    sum_b += of_a * kk[j];
                    dc[j] -= slope;
                    ps[j] = of_p;
                    as[j] = of_a * own;
                }
                dc[i] += sum_c;
                db[i] += sum_b;
            }
            scale_rows(kd, w.g, dqg, dq);
            lower_times(kd, dp, w.k, dq, 1);
            for (long i = 0; i < CHUNK; i++) {
                const long row = i * kd;
                SIMD for (long d = 0; d < kd; d++) dk[row + d] = w.g[i] * dkg[row + d] + w.e[i] * dke[row + d];
                const float ending = dot_product(kd, w.ke + row, dke + row);
                dc[i] += dot_product(kd, w.qg + row, dqg + row) + dot_product(kd, w.kg + row, dkg + row) - ending;
                dc[CHUNK - 1] += ending;
            }
            dc[CHUNK - 1] += d_decay;
            upper_times(kd, dp, w.q, dk, 1);
            lower_times(kd, da, w.k, dk, 1);
            upper_times(kd, da, w.k, dk, 1);
            store_unit(n, kd, w.q, dq, w.q_unit, factor, d_q + (at * heads + head) * kd, heads * kd);
            store_unit(n, kd, w.k, dk, w.k_unit, 1.0f, d_k + (at * heads + head) * kd, heads * kd);
            float later = 0.0f;
            for (long i = CHUNK - 1; i >= 0; i--) {
                later += dc[i];
                if (i < n) {
                    d_log_decay[(at + i) * heads + head] = later;
                    d_strength[(at + i) * heads + head] = db[i];
                }
            }
        }
    }
}
