/* The tail-biting Viterbi search of exltune/exl3/viterbi.py in C with AVX2: what benchmarks/encoder.py measures
 * numba against. The same recurrence, passes and tie rule; compiled at run time, never shipped.
 *
 *   cost_out[a, j] = min over k of cost_in[k, a] + (value[k, a, j] - w)^2
 *   state = (k, a, j): k of the next position's bits, j of this position's bits, a of what is left of 16
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define TILE 256
#define STATES 65536

INLINE __m256 branch(__m256 best, __m256 cost, __m256 value, __m256 w)
{
    const __m256 error = _mm256_sub_ps(value, w);
    return _mm256_min_ps(best, _mm256_fmadd_ps(error, error, cost));
}

/* j >= 8: 64 results at a time stay in registers while k runs. Values in the order (k, a, j). */
INLINE void step_wide(const float *cost_in, float *cost_out, const float *value, float weight, int k_size, int a_size, int j_size)
{
    const __m256 w = _mm256_set1_ps(weight);
    for (int f = 0; f < a_size * j_size; f += 64)
    {
        __m256 best[8];
        for (int u = 0; u < 8; ++u) best[u] = _mm256_set1_ps(INFINITY);
        for (int k = 0; k < k_size; ++k)
            for (int u = 0; u < 8; ++u)
            {
                const __m256 cost = _mm256_broadcast_ss(cost_in + k * a_size + (f + 8 * u) / j_size);
                best[u] = branch(best[u], cost, _mm256_loadu_ps(value + k * a_size * j_size + f + 8 * u), w);
            }
        for (int u = 0; u < 8; ++u) _mm256_storeu_ps(cost_out + f + 8 * u, best[u]);
    }
}

/* j = 2 or 4: vectors along a, interleaved on the way out. Values in the order (j, k, a). */
INLINE void step_narrow(const float *cost_in, float *cost_out, const float *value, float weight, int k_size, int a_size, int j_size)
{
    const __m256 w = _mm256_set1_ps(weight);
    for (int a = 0; a < a_size; a += 8)
    {
        __m256 best[4];
        for (int j = 0; j < j_size; ++j)
        {
            best[j] = _mm256_set1_ps(INFINITY);
            for (int k = 0; k < k_size; ++k)
                best[j] = branch(best[j], _mm256_loadu_ps(cost_in + k * a_size + a), _mm256_loadu_ps(value + (j * k_size + k) * a_size + a), w);
        }
        float *out = cost_out + a * j_size;
        const __m256 low = _mm256_unpacklo_ps(best[0], best[1]), high = _mm256_unpackhi_ps(best[0], best[1]);
        if (j_size == 2)
        {
            _mm256_storeu_ps(out, _mm256_permute2f128_ps(low, high, 0x20));
            _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(low, high, 0x31));
            continue;
        }
        const __m256 low2 = _mm256_unpacklo_ps(best[2], best[3]), high2 = _mm256_unpackhi_ps(best[2], best[3]);
        const __m256 r0 = _mm256_shuffle_ps(low, low2, 0x44), r1 = _mm256_shuffle_ps(low, low2, 0xee);
        const __m256 r2 = _mm256_shuffle_ps(high, high2, 0x44), r3 = _mm256_shuffle_ps(high, high2, 0xee);
        _mm256_storeu_ps(out, _mm256_permute2f128_ps(r0, r1, 0x20));
        _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(r2, r3, 0x20));
        _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(r0, r1, 0x31));
        _mm256_storeu_ps(out + 24, _mm256_permute2f128_ps(r2, r3, 0x31));
    }
}

INLINE void step(const float *cost_in, float *cost_out, const float *value, float weight, int in, int out)
{
    const int k_size = 1 << out, a_size = 1 << (16 - in - out), j_size = 1 << in;
    if (j_size < 8) step_narrow(cost_in, cost_out, value, weight, k_size, a_size, j_size);
    else step_wide(cost_in, cost_out, value, weight, k_size, a_size, j_size);
}

INLINE int backward(const float *tile, const float *table, const float *rows, int nodes, int node, int last, int first, int even, int odd, uint16_t *states)
{
    for (int i = last; i >= 0; --i)
    {
        const int in = i % 2 ? odd : even, out = i % 2 ? even : odd;
        const float *cost_in = rows + (long) (i ? i - 1 : first) * nodes;
        float best = INFINITY;
        int found = node;
        for (int k = 0; k < 1 << out; ++k)
        {
            const int state = k << (16 - out) | node;
            const float error = table[state] - tile[i], cost = cost_in[state >> in] + error * error;
            if (cost < best) best = cost, found = state;
        }
        states[i] = found;
        node = found >> in;
    }
    return node;
}

INLINE void forward(const float *tile, const float *at_even, const float *at_odd, float *rows, int nodes, int start, int keep, int even, int odd)
{
    int source = TILE;
    for (int n = 0; n < TILE; ++n)
    {
        const int i = (start + n) % TILE, target = n >= keep ? i : source == TILE ? TILE + 1 : TILE;
        if (i % 2) step(rows + (long) source * nodes, rows + (long) target * nodes, at_odd, tile[i], odd, even);
        else step(rows + (long) source * nodes, rows + (long) target * nodes, at_even, tile[i], even, odd);
        source = target;
    }
}

INLINE void encode(const float *tiles, long count, const float *at_even, const float *at_odd, const float *table, float *rows, uint16_t *states, int even, int odd)
{
    const int nodes = STATES >> even;
    float *first = rows + (long) TILE * nodes;
    for (long n = 0; n < count; ++n, tiles += TILE, states += TILE)
    {
        for (int i = 0; i < nodes; ++i) first[i] = 0.0f;
        forward(tiles, at_even, at_odd, rows, nodes, TILE / 2, TILE / 2 - 1, even, odd);
        const float *costs = rows + (long) (TILE / 2 - 1) * nodes;
        int node = 0;
        for (int i = 1; i < nodes; ++i) if (costs[i] < costs[node]) node = i;
        const int seam = backward(tiles, table, rows, nodes, node, TILE / 2 - 1, TILE - 1, even, odd, states);
        for (int i = 0; i < nodes; ++i) first[i] = INFINITY;
        first[seam] = 0.0f;
        forward(tiles, at_even, at_odd, rows, nodes, 0, 0, even, odd);
        for (int i = 0; i < nodes; ++i) first[i] = INFINITY;  /* row 256 alternates as scratch */
        first[seam] = 0.0f;
        backward(tiles, table, rows, nodes, seam, TILE - 1, TILE, even, odd, states);
    }
}

#define RATE(even, odd) \
    void encode_##even##_##odd(const float *tiles, long count, const float *at_even, const float *at_odd, const float *table, float *rows, uint16_t *states) \
    { encode(tiles, count, at_even, at_odd, table, rows, states, even, odd); }

RATE(1, 1) RATE(2, 2) RATE(3, 3) RATE(4, 4) RATE(5, 5) RATE(6, 6) RATE(7, 7) RATE(8, 8)
RATE(1, 2) RATE(2, 3) RATE(3, 4)
