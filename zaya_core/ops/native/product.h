// Products with packed bfloat16 weights, and the few vector functions that the rest of the forward needs.
//
// A weight [out, in] is packed in panels of 64 outputs: [panel][in / 2][64][2], so that one load holds two inputs of 16 outputs, which
// is what vdpbf16ps multiplies. The last panel is as wide as its outputs need, in vectors of 16. One row reads a panel as a stream;
// six rows share every load. Each output is one chain of sums over its inputs in order, whatever the number of rows beside it.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum { LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS, TOGETHER = 6, TILE = 48 };

typedef struct {
    const bf16 *weight;
    const float *bias;  // [out] or NULL
    int64_t in, out;    // `in` is even
} Product;

#define INLINED static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t packed_size(const Product *p) { return p->in * over(p->out, LANES) * LANES; }
static int64_t panels_of(const Product *p) { return over(p->out, PANEL); }

// y [TILE, PANEL] = x [rows, in] times a panel of `vectors` vectors, for at most six rows. Rows of x are where `x` says.
INLINED void multiply(const int rows, const int vectors, const bf16 *const *x, const bf16 *panel, int64_t pairs, float *y, int adds) {
    __m512 sum[TOGETHER][VECTORS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++)
            sum[r][v] = adds ? _mm512_loadu_ps(y + r * PANEL + v * LANES) : _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh weight[VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++)
            weight[v] = (__m512bh)_mm512_loadu_si512(panel + (k * vectors + v) * 2 * LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, x[r] + 2 * k, sizeof pair);
            UNROLLED for (int v = 0; v < vectors; v++)
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], weight[v], (__m512bh)_mm512_set1_epi32(pair));
        }
    }
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(y + r * PANEL + v * LANES, sum[r][v]);
}

#define FOR_ROWS(vectors)                                                                                   \
    switch (rows) {                                                                                         \
        case 1: multiply(1, vectors, x, panel, pairs, y, adds); return;                                     \
        case 2: multiply(2, vectors, x, panel, pairs, y, adds); return;                                     \
        case 3: multiply(3, vectors, x, panel, pairs, y, adds); return;                                     \
        case 4: multiply(4, vectors, x, panel, pairs, y, adds); return;                                     \
        case 5: multiply(5, vectors, x, panel, pairs, y, adds); return;                                     \
        default: multiply(6, vectors, x, panel, pairs, y, adds); return;                                    \
    }

static void multiply_few(int rows, int vectors, const bf16 *const *x, const bf16 *panel, int64_t pairs, float *y, int adds) {
    switch (vectors) {
        case 1: FOR_ROWS(1)
        case 2: FOR_ROWS(2)
        case 3: FOR_ROWS(3)
        default: FOR_ROWS(4)
    }
}

// Some rows of a matrix, `stride` apart: the first ones, or those that `order` names.
typedef struct {
    const bf16 *begin;
    int64_t stride;
    const int32_t *order;
} Rows;

// y [rows, PANEL] = x W^T over one panel, for at most TILE rows; with `adds`, y += that.
static void multiply_panel(Rows x, int64_t rows, const bf16 *panel, int vectors, int64_t in, float *y, int adds) {
    for (int64_t begin = 0; begin < rows; begin += TOGETHER) {
        const bf16 *at[TOGETHER];
        int count = (int)least(TOGETHER, rows - begin);
        for (int r = 0; r < count; r++) at[r] = x.begin + (x.order ? x.order[begin + r] : begin + r) * x.stride;
        multiply_few(count, vectors, at, panel, in / 2, y + begin * PANEL, adds);
    }
}

// One panel of a product with its bias, for at most TILE rows: y [rows, PANEL]. Returns how many of the outputs there are.
static int64_t product_panel(const Product *p, int64_t number, Rows x, int64_t rows, float *y) {
    int64_t outputs = least(PANEL, p->out - number * PANEL);
    multiply_panel(x, rows, p->weight + number * PANEL * p->in, (int)over(outputs, LANES), p->in, y, 0);
    if (p->bias)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = 0; o < outputs; o++) y[r * PANEL + o] += p->bias[number * PANEL + o];
    return outputs;
}

// The first `count` of 16 lanes.
INLINED __mmask16 first_lanes(int64_t count) { return (__mmask16)(count >= LANES ? 0xFFFF : (1u << most(count, 0)) - 1); }

INLINED void store_rounded(bf16 *to, __mmask16 lanes, __m512 x) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINED __m512 widened(__m256i x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }

#define LOG2_E 1.44269504088896341f

// 2^x, as 2^floor(x) times a polynomial of the rest, whose largest relative error is 8e-8 and which is 1 at 0. Of nan it is nan.
INLINED __m512 exp2_of(__m512 x) {
    __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    const float terms[] = {0.009017029777169228f, 0.05579991266131401f, 0.24016444385051727f, 0.6931512951850891f, 1};
    __m512 sum = _mm512_set1_ps(0.0018671301659196615f);
    UNROLLED for (int i = 0; i < 5; i++) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(sum, x);
}

// To a relative error of 1e-7 (1 + |x|), for x log2(e) is rounded.
INLINED __m512 exp_of(__m512 x) { return exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E))); }

INLINED __m512 silu_of(__m512 x) {
    __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(x, _mm512_add_ps(one, exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// x Phi(x), by Abramowitz and Stegun 7.1.26: erf to 1.5e-7.
INLINED __m512 gelu_of(__m512 x) {
    __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118654752f));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    const float terms[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    __m512 sum = _mm512_set1_ps(1.061405429f);
    UNROLLED for (int i = 0; i < 4; i++) sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(terms[i]));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(sum, t), exp_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
    // Phi(|x|) = 1 - tail / 2; Phi(-|x|) = tail / 2, which loses nothing to cancellation.
    __m512 upper = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f));
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, upper), negative, upper));
}
