// Attention of a row's slots over its history and themselves, in blocks of 64 keys counted from the row's begin.
//
// A block's keys and values are packed like weights, and the scores and the weighted values are products with them, for six queries
// at a time, whose scores stay in the nearest cache. The softmax goes on from block to block, so a query's result depends on its own
// visible keys alone: a block that it does not see leaves it as it is.

enum { KEYS = PANEL, MOST_PANELS = 4, MOST_WIDTH = MOST_PANELS * PANEL };  // of a head
#define HIDDEN -1e30f

// One row's share of a forward: its slots in the forward, and its span of the pool.
typedef struct {
    int64_t first, count, clean;  // the first `clean` of its `count` slots are clean
    int64_t begin, length;        // where its history begins, and how many slots of it are committed
} Part;

// Who sees whom (layout.py): clean keys below `start` and masks of the own block, both inside the window. All [slots], this part's.
typedef struct {
    const int64_t *position, *start, *block;
    int64_t window;  // 0: none
} Sight;

typedef struct {
    _Alignas(64) bf16 keys[MOST_WIDTH * KEYS];
    bf16 copy[KEYS * MOST_WIDTH];
    bf16 values[MOST_PANELS][KEYS / 2][PANEL][2];
    float scores[TOGETHER][KEYS], weighted[MOST_PANELS][TILE][PANEL], total[TILE][LANES], top[TILE];
    bf16 weights[TOGETHER][KEYS];
} Softmax;

// Rows [count, width], with zeros after them up to a multiple of 16 rows: in `to`, where there are none yet.
static const bf16 *padded(const bf16 *rows, int64_t count, int64_t width, bf16 *to) {
    if (count % LANES == 0) return rows;
    memset(to + count * width, 0, sizeof(bf16) * (over(count, LANES) * LANES - count) * width);
    return memcpy(to, rows, sizeof(bf16) * count * width);
}

// Keys [count, width] as a panel [width / 2][count][2]; `count` is a multiple of 16.
static void pack_keys(const bf16 *keys, int64_t count, int64_t width, bf16 *to) {
    for (int64_t begin = 0; begin < count; begin += LANES)
        for (int64_t dim = 0; dim < width; dim += 8) {
            __m512i some[4];  // keys i, i + 4, i + 8, and i + 12: four pairs of dims of each
            UNROLLED for (int i = 0; i < 4; i++) {
                const bf16 *key = keys + (begin + i) * width + dim;
                some[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)key));
                UNROLLED for (int j = 1; j < 4; j++) {
                    __m128i later = _mm_loadu_si128((const __m128i *)(key + 4 * j * width));
                    some[i] = _mm512_mask_broadcast_i32x4(some[i], (__mmask16)(0xF << 4 * j), later);
                }
            }
            __m512i a = _mm512_unpacklo_epi32(some[0], some[1]), b = _mm512_unpacklo_epi32(some[2], some[3]);
            __m512i c = _mm512_unpackhi_epi32(some[0], some[1]), d = _mm512_unpackhi_epi32(some[2], some[3]);
            bf16 *pair = to + dim * count + begin * 2;
            _mm512_storeu_si512(pair, _mm512_unpacklo_epi64(a, b));
            _mm512_storeu_si512(pair + 2 * count, _mm512_unpackhi_epi64(a, b));
            _mm512_storeu_si512(pair + 4 * count, _mm512_unpacklo_epi64(c, d));
            _mm512_storeu_si512(pair + 6 * count, _mm512_unpackhi_epi64(c, d));
        }
}

// Values [count, width] as panels of 64 dims [panel][count / 2][dims][2].
static void pack_values(const bf16 *values, int64_t count, int64_t width, bf16 (*to)[KEYS / 2][PANEL][2]) {
    uint16_t place[2 * LANES];  // of the first dims of a value and of the next, in turn
    for (int i = 0; i < 2 * LANES; i++) place[i] = i % 2 * 2 * LANES + i / 2;
    __m512i lower = _mm512_loadu_si512(place), upper = _mm512_add_epi16(lower, _mm512_set1_epi16(LANES));
    for (int64_t dim = 0; dim < width; dim += 2 * LANES) {
        int64_t dims = least(PANEL, width - dim / PANEL * PANEL);
        __mmask32 lanes = width - dim > LANES ? 0xFFFFFFFF : 0xFFFF;
        for (int64_t key = 0; key < count; key += 2) {
            const bf16 *value = values + key * width + dim;
            bf16 *pair = to[dim / PANEL][0][0] + (key / 2 * dims + dim % PANEL) * 2;
            __m512i even = _mm512_maskz_loadu_epi16(lanes, value), odd = _mm512_maskz_loadu_epi16(lanes, value + width);
            _mm512_storeu_si512(pair, _mm512_permutex2var_epi16(even, lower, odd));
            if (width - dim > LANES) _mm512_storeu_si512(pair + 2 * LANES, _mm512_permutex2var_epi16(even, upper, odd));
        }
    }
}

// A block's first `count` keys.
static uint64_t first_keys(int64_t count) { return count >= KEYS ? ~0ull : (1ull << most(count, 0)) - 1; }

// Which of the 8 keys from `key` on, counted from the row's begin, are masks of a slot's own block, at `begin` or after it?
static uint64_t own_block(int64_t slot, int64_t key, int64_t begin, const Part *part, const Sight *sight) {
    int64_t other = key - part->length;
    __mmask8 masks = (__mmask8)(first_lanes(part->count - other) & ~first_lanes(part->clean - other));
    __m512i block = _mm512_maskz_loadu_epi64(masks, sight->block + other), position = _mm512_maskz_loadu_epi64(masks, sight->position + other);
    masks = _mm512_mask_cmpeq_epi64_mask(masks, block, _mm512_set1_epi64(sight->block[slot]));
    return _mm512_mask_cmpge_epi64_mask(masks, position, _mm512_set1_epi64(begin));
}

// Which of a block's keys, from `key` on, does a slot of the part see?
static uint64_t seen_by(int64_t slot, int64_t key, const Part *part, const Sight *sight) {
    int64_t num_clean = part->length + part->clean, end = least(sight->start[slot], num_clean);
    int64_t begin = sight->window ? most(sight->position[slot] - sight->window + 1, 0) : 0;
    uint64_t seen = first_keys(end - key) & ~first_keys(begin - key);
    if (slot >= part->clean && key + KEYS > num_clean)
        for (int64_t i = 0; i < KEYS; i += 8) seen |= own_block(slot, key + i, begin, part, sight) << i;
    return seen;
}

// A score of a row is higher than all before it: what was summed is scaled to it.
static void raise_top(Softmax *s, int64_t r, float top, float power, int64_t width) {
    __m512 kept = exp2_of(_mm512_set1_ps((s->top[r] - top) * power));
    s->top[r] = top;
    _mm512_storeu_ps(s->total[r], _mm512_mul_ps(_mm512_loadu_ps(s->total[r]), kept));
    for (int64_t dim = 0; dim < width; dim += LANES) {
        float *sum = s->weighted[dim / PANEL][r] + dim % PANEL;
        _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), kept));
    }
}

// One row's scores of a block become weights, those of hidden keys zero. The total is kept by lane, and the highest score of a block is
// sought only where it passes the top: both reductions would be waited for. `power` makes a score one of 2.
static void weigh(Softmax *s, int64_t r, const float *scores, bf16 *weights, uint64_t seen, float power, int64_t width) {
    __m512 score[VECTORS], peak = _mm512_set1_ps(s->top[r]), total = _mm512_loadu_ps(s->total[r]);
    UNROLLED for (int v = 0; v < VECTORS; v++) {
        score[v] = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(seen >> v * LANES), scores + v * LANES);
        peak = _mm512_max_ps(peak, score[v]);
    }
    if (_mm512_cmp_ps_mask(peak, _mm512_set1_ps(s->top[r]), _CMP_GT_OQ)) {
        raise_top(s, r, _mm512_reduce_max_ps(peak), power, width);
        total = _mm512_loadu_ps(s->total[r]);
    }
    __m512 scale = _mm512_set1_ps(power), shift = _mm512_set1_ps(-s->top[r] * power);
    UNROLLED for (int v = 0; v < VECTORS; v++) {
        __m512 weight = exp2_of(_mm512_fmadd_ps(score[v], scale, shift));
        total = _mm512_add_ps(total, weight);
        store_rounded(weights + v * LANES, 0xFFFF, weight);
    }
    _mm512_storeu_ps(s->total[r], total);
}

// One block of keys for `rows` queries [rows, width], which are `per_slot` heads of each slot from `first` on.
static void attend_block(Softmax *s, const bf16 *q, int64_t first, int64_t rows, int64_t per_slot, int64_t key, int64_t count,
                         const bf16 *k, const bf16 *v, int64_t width, const Part *part, const Sight *sight) {
    int used = (int)over(count, LANES);
    pack_keys(padded(k + key * width, count, width, s->copy), used * LANES, width, s->keys);
    pack_values(padded(v + key * width, count, width, s->copy), used * LANES, width, s->values);
    float power = LOG2_E / sqrtf((float)width);
    uint64_t seen = 0;
    int64_t slot = -1;
    for (int64_t begin = 0; begin < rows; begin += TOGETHER) {
        int64_t together = least(TOGETHER, rows - begin);
        multiply_panel((Rows){q + begin * width, width, NULL}, together, s->keys, used, width, s->scores[0], 0);
        for (int64_t r = 0; r < together; r++) {
            if ((first + begin + r) / per_slot != slot) {
                slot = (first + begin + r) / per_slot;
                seen = seen_by(slot, key, part, sight);
            }
            weigh(s, begin + r, s->scores[r], s->weights[r], seen, power, width);
        }
        for (int64_t dim = 0; dim < width; dim += PANEL) {
            int vectors = (int)(least(PANEL, width - dim) / LANES);
            float *sum = s->weighted[dim / PANEL][begin];
            multiply_panel((Rows){s->weights[0], KEYS, NULL}, together, s->values[dim / PANEL][0][0], vectors, used * LANES, sum, 1);
        }
    }
}

// At most TILE of a part's queries of one group [rows, width], numbered from `first` by slot and then head; k and v begin with the row.
// Results go to `to`: the heads of a slot side by side, slots `stride` apart.
static void attend(const bf16 *q, int64_t first, int64_t rows, int64_t per_slot, const bf16 *k, const bf16 *v, int64_t width,
                   const Part *part, const Sight *sight, bf16 *to, int64_t stride) {
    Softmax s;
    int64_t from = part->length + part->count, until = 0, all = part->length + part->count;
    for (int64_t slot = first / per_slot; slot <= (first + rows - 1) / per_slot; slot++) {
        from = least(from, sight->window ? most(sight->position[slot] - sight->window + 1, 0) : 0);
        until = most(until, slot < part->clean ? sight->start[slot] : all);
    }
    for (int64_t r = 0; r < rows; r++) s.top[r] = HIDDEN;
    memset(s.total, 0, sizeof s.total);
    memset(s.weighted, 0, over(width, PANEL) * sizeof s.weighted[0]);
    for (int64_t key = from / KEYS * KEYS; key < until; key += KEYS)
        attend_block(&s, q, first, rows, per_slot, key, least(KEYS, until - key), k, v, width, part, sight);
    for (int64_t r = 0; r < rows; r++) {
        bf16 *out = to + (first + r) / per_slot * stride + (first + r) % per_slot * width;
        float total = _mm512_reduce_add_ps(_mm512_loadu_ps(s.total[r]));
        __m512 share = _mm512_set1_ps(total > 0 ? 1 / total : 0);
        for (int64_t dim = 0; dim < width; dim += LANES)
            store_rounded(out + dim, 0xFFFF, _mm512_mul_ps(_mm512_loadu_ps(s.weighted[dim / PANEL][r] + dim % PANEL), share));
    }
}
