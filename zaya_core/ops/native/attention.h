// Attention of a row's slots over its history and themselves, in blocks of 64 keys counted from the row's begin.
//
// A block's keys and values are packed like weights, and the scores and the weighted values are products with them. The softmax goes
// on from block to block, so a query's result depends on its own visible keys alone: a block that it does not see leaves it as it is.

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
    bf16 keys[MOST_WIDTH * KEYS];
    bf16 values[MOST_PANELS][KEYS / 2][PANEL][2];
    float scores[TILE][KEYS], weighted[MOST_PANELS][TILE][PANEL], top[TILE], total[TILE];
    bf16 weights[TILE][KEYS];
} Softmax;

// 16 x 16 words of 32 bits, turned over.
INLINED void transpose(__m512i row[16]) {
    __m512i half[16];
    UNROLLED for (int i = 0; i < 8; i++) {
        half[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        half[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    UNROLLED for (int i = 0; i < 4; i++) {
        row[4 * i] = _mm512_unpacklo_epi64(half[4 * i], half[4 * i + 2]);
        row[4 * i + 1] = _mm512_unpackhi_epi64(half[4 * i], half[4 * i + 2]);
        row[4 * i + 2] = _mm512_unpacklo_epi64(half[4 * i + 1], half[4 * i + 3]);
        row[4 * i + 3] = _mm512_unpackhi_epi64(half[4 * i + 1], half[4 * i + 3]);
    }
    UNROLLED for (int i = 0; i < 4; i++) {
        half[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xDD);
        half[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xDD);
    }
    UNROLLED for (int i = 0; i < 8; i++) {
        row[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        row[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xDD);
    }
}

// Keys [count, width] as a panel [width / 2][count, a multiple of 16][2]; zeros for those that are missing.
static void pack_keys(const bf16 *keys, int64_t count, int64_t width, bf16 *to) {
    int64_t step = over(count, LANES) * LANES * 2;
    for (int64_t begin = 0; begin < count; begin += 16)
        for (int64_t dim = 0; dim < width; dim += 32) {
            __m512i row[16];
            __mmask32 dims = width - dim >= 32 ? 0xFFFFFFFF : 0xFFFF;
            for (int i = 0; i < 16; i++)
                row[i] = begin + i < count ? _mm512_maskz_loadu_epi16(dims, keys + (begin + i) * width + dim) : _mm512_setzero_si512();
            transpose(row);
            for (int64_t i = 0; i < least(16, (width - dim) / 2); i++) _mm512_storeu_si512(to + (dim / 2 + i) * step + begin * 2, row[i]);
        }
}

// Values [count, width] as panels of 64 dims [panel][KEYS / 2][dims][2]; zeros up to a multiple of 16 keys.
static void pack_values(const bf16 *values, int64_t count, int64_t width, bf16 (*to)[KEYS / 2][PANEL][2]) {
    for (int64_t dim = 0; dim < width; dim += LANES) {
        int64_t dims = least(PANEL, width - dim / PANEL * PANEL);
        bf16 *panel = to[dim / PANEL][0][0] + dim % PANEL * 2;
        for (int64_t key = 0; key < over(count, LANES) * LANES; key += 2) {
            __m256i zero = _mm256_setzero_si256();
            __m256i even = key < count ? _mm256_loadu_si256((const __m256i *)(values + key * width + dim)) : zero;
            __m256i odd = key + 1 < count ? _mm256_loadu_si256((const __m256i *)(values + (key + 1) * width + dim)) : zero;
            __m512i pair = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
            _mm512_storeu_si512(panel + key / 2 * dims * 2, pair);
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

// One row's scores of a block become weights; what was summed before is scaled to the new maximum. `power` makes a score one of 2.
static void weigh(Softmax *s, int64_t r, int vectors, uint64_t seen, float power, int64_t width) {
    __m512 top = _mm512_set1_ps(s->top[r]), total = _mm512_setzero_ps();
    for (int v = 0; v < vectors; v++)
        top = _mm512_mask_max_ps(top, (__mmask16)(seen >> v * LANES), top, _mm512_loadu_ps(s->scores[r] + v * LANES));
    float highest = _mm512_reduce_max_ps(top);
    __m512 scale = _mm512_set1_ps(power), shift = _mm512_set1_ps(-highest * power);
    for (int v = 0; v < vectors; v++) {
        __m512 score = _mm512_loadu_ps(s->scores[r] + v * LANES);
        __m512 weight = _mm512_maskz_mov_ps((__mmask16)(seen >> v * LANES), exp2_of(_mm512_fmadd_ps(score, scale, shift)));
        total = _mm512_add_ps(total, weight);
        store_rounded(s->weights[r] + v * LANES, 0xFFFF, weight);
    }
    float sum = _mm512_reduce_add_ps(total);
    if (highest == s->top[r]) {
        s->total[r] += sum;
        return;
    }
    __m512 kept = exp2_of(_mm512_set1_ps((s->top[r] - highest) * power));
    s->total[r] = s->total[r] * _mm512_cvtss_f32(kept) + sum;
    s->top[r] = highest;
    for (int64_t dim = 0; dim < width; dim += LANES) {
        float *sum = s->weighted[dim / PANEL][r] + dim % PANEL;
        _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), kept));
    }
}

// One block of keys for `rows` queries [rows, width], which are `per_slot` heads of each slot from `first` on.
static void attend_block(Softmax *s, const bf16 *q, int64_t first, int64_t rows, int64_t per_slot, int64_t key, int64_t count,
                         const bf16 *k, const bf16 *v, int64_t width, const Part *part, const Sight *sight) {
    pack_keys(k + key * width, count, width, s->keys);
    pack_values(v + key * width, count, width, s->values);
    int used = (int)over(count, LANES);
    multiply_panel((Rows){q, width, NULL}, rows, s->keys, used, width, s->scores[0], 0);
    float power = LOG2_E / sqrtf((float)width);
    uint64_t seen = 0;
    for (int64_t r = 0, slot = -1; r < rows; r++) {
        if ((first + r) / per_slot != slot) {
            slot = (first + r) / per_slot;
            seen = seen_by(slot, key, part, sight);
        }
        weigh(s, r, used, seen, power, width);
    }
    for (int64_t dim = 0; dim < width; dim += PANEL) {
        int vectors = (int)(least(PANEL, width - dim) / LANES);
        multiply_panel((Rows){s->weights[0], KEYS, NULL}, rows, s->values[dim / PANEL][0][0], vectors, used * LANES, s->weighted[dim / PANEL][0], 1);
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
    for (int64_t r = 0; r < rows; r++) s.top[r] = HIDDEN, s.total[r] = 0;
    memset(s.weighted, 0, over(width, PANEL) * sizeof s.weighted[0]);
    for (int64_t key = from / KEYS * KEYS; key < until; key += KEYS)
        attend_block(&s, q, first, rows, per_slot, key, least(KEYS, until - key), k, v, width, part, sight);
    for (int64_t r = 0; r < rows; r++) {
        bf16 *out = to + (first + r) / per_slot * stride + (first + r) % per_slot * width;
        __m512 share = _mm512_set1_ps(s.total[r] > 0 ? 1 / s.total[r] : 0);
        for (int64_t dim = 0; dim < width; dim += LANES)
            store_rounded(out + dim, 0xFFFF, _mm512_mul_ps(_mm512_loadu_ps(s.weighted[dim / PANEL][r] + dim % PANEL), share));
    }
}
