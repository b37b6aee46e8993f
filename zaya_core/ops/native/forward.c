// The serving network's forward in bfloat16, one call for all layers: the same function as model/serving.py, which is its oracle.
//
// Threads walk through the phases of a layer together. Each owns a part of the slots: what goes slot by slot it does for those alone,
// so that a slot's rows stay in one core's cache and a barrier is needed only where slots look at each other. The products of few
// slots are shared by panels instead, for one core does not read weights as fast as several. Attention and experts are lists of
// jobs, each taken by whoever is free.
//
// The stream, the router's state and all sums are float32; what enters a product is rounded to bfloat16. No sum's order depends on
// the number of slots, of rows or of threads, so a slot's result is the same to the bit whatever rides along.
#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#include "product.h"

#include "attention.h"

typedef struct {
    const float *output_scale, *stream_scale, *bias;
} Merge;

// One layer's weights. `mix` is a product for each head, of its latents one step and no steps back; experts lie one after another.
typedef struct {
    const float *input_norm, *post_norm, *router_norm;
    Merge attention_merge, mlp_merge;
    Product into, mix, out;
    const float *depthwise;  // [3][channels]: older tap, newer tap, bias
    const float *length;     // [heads], of a normed query or key
    Product down, first, second, last;
    const float *carry;     // [router width], or NULL
    const float *balance;   // [experts + 1]
    Product gate, up, shrink;
    const float *turns;       // [positions][2][rotated / 2]: cosines, then sines
    int64_t rotated, window;  // dims of a head that turn; positions seen, 0 for all
} Layer;

typedef struct {
    int64_t layers, hidden, vocabulary, queries, groups, width, experts, passes;  // `passes`: a skipped token's output is its input
    float eps;
    const Layer *layer;
    const bf16 *embedding;  // packed as a product's weight, or [vocabulary][hidden]
    int64_t is_packed;
    const float *input_bias, *input_scale, *norm;
} Model;

// One forward: slots laid end to end, after `past` steps of history in `joined`.
typedef struct {
    int64_t slots, past, num_parts, threads;
    const Part *parts;
    const int64_t *tokens, *position, *start, *block, *prev;  // [slots]
    float *joined;  // [layers][.. joined_stride]: rows of queries, keys, delayed and current values
    int64_t joined_stride;
    bf16 *stored;  // [layers][2 groups][pool_slots][width]
    int64_t pool_slots;
    int64_t *choices;  // [layers][slots]
    bf16 *hidden;      // [slots][hidden], the result
} Forward;

// What a forward needs besides; all [slots] or [slots][..].
typedef struct {
    float *stream, *output, *state, *carried, *logits, *probability;
    bf16 *input, *queries, *attended, *router, *router_next, *inner;
    int32_t *older, *place, *order;  // `order`: slots by expert
    int64_t *first_of;               // [experts + 2] in `order`
    int64_t *next_job;               // [phases]
    int64_t *ended;                  // phases, by all threads
} Scratch;

typedef struct {
    int64_t begin, end;
} Span;

// A thread's view of all of it.
typedef struct {
    const Model *m;
    const Forward *f;
    Scratch *s;
    int64_t threads, phase, layer;
    Span own;  // slots
    // Its share of what has columns besides, a product's panels or the heads: of its own slots all, or of all slots every `step`th.
    Span rows;
    int64_t column, step;
} Walk;

// How many slots must each thread own, to share products by slots? As many as one multiplies while it reads the weights: of a small
// model from its caches, else from memory.
static int64_t enough_slots(const Model *m) { return packed_size(&m->layer->into) <= 1 << 18 ? 4 : TILE; }

static Walk walk_of(const Model *m, const Forward *f, Scratch *s, int64_t thread, int64_t threads) {
    Span all = {0, f->slots}, own = {f->slots * thread / threads, f->slots * (thread + 1) / threads};
    if (threads == 1 || f->slots >= enough_slots(m) * threads) return (Walk){m, f, s, threads, 0, 0, own, own, 0, 1};
    return (Walk){m, f, s, threads, 0, 0, own, all, thread, threads};
}

// A barrier. OpenMP's own asks the kernel each time to wake those who sleep, which takes as long as a phase of one slot.
static void end_phase(Walk *w) {
    int64_t all = ++w->phase * w->threads;
    __atomic_add_fetch(w->s->ended, 1, __ATOMIC_ACQ_REL);
    for (int64_t looks = 0; __atomic_load_n(w->s->ended, __ATOMIC_ACQUIRE) < all; looks++) {
        if (looks < 200) _mm_pause();
        else sched_yield();
    }
}

// Ends a phase whose results are for the slots' owner alone.
static void end_own(Walk *w) {
    if (w->step > 1) end_phase(w);
}

#define FOR_OWN(w, t) for (int64_t t = (w)->own.begin; t < (w)->own.end; t++)
#define FOR_COLUMNS(w, c, columns) for (int64_t c = (w)->column; c < (columns); c += (w)->step)
#define FOR_TILES(w, first, count) \
    for (int64_t first = (w)->rows.begin, count; count = least(TILE, (w)->rows.end - first), count > 0; first += TILE)

// The next job of this phase, or -1.
static int64_t take(const Walk *w, int64_t jobs) {
    int64_t job = __atomic_fetch_add(&w->s->next_job[w->phase], 1, __ATOMIC_RELAXED);
    return job < jobs ? job : -1;
}

#define FOR_JOBS(w, job, jobs) for (int64_t job; (job = take(w, jobs)) >= 0;)

static int64_t num_heads(const Model *m) { return m->queries + m->groups; }
static int64_t channels(const Model *m) { return num_heads(m) * m->width; }
static int64_t value_half(const Model *m) { return m->groups * m->width / 2; }
static int64_t joined_width(const Model *m) { return channels(m) + 2 * value_half(m); }
static int64_t router_width(const Model *m) { return m->layer->down.out; }

// --- products over all slots --------------------------------------------------------------------------------------------------

typedef enum { AS_IT_IS, GELU } Shape;

// Where a product's rows go: float32 or, rounded, bfloat16.
typedef struct {
    float *wide;
    bf16 *narrow;
    int64_t stride;
    Shape shape;
} Target;

static void put(const float *y, int64_t rows, int64_t outputs, Target to, int64_t row, int64_t column) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            __m512 x = _mm512_loadu_ps(y + r * PANEL + o);
            __mmask16 lanes = first_lanes(outputs - o);
            int64_t at = (row + r) * to.stride + column + o;
            if (to.shape == GELU) x = gelu_of(x);
            if (to.wide) _mm512_mask_storeu_ps(to.wide + at, lanes, x);
            else store_rounded(to.narrow + at, lanes, x);
        }
}

static int64_t jobs_of(const Product *p, int64_t rows) { return panels_of(p) * over(rows, TILE); }

static void product_tile(const Product *p, int64_t panel, const bf16 *x, int64_t first, int64_t count, Target to) {
    float y[TILE * PANEL];
    int64_t outputs = product_panel(p, panel, (Rows){x + first * p->in, p->in, NULL}, count, y);
    put(y, count, outputs, to, first, panel * PANEL);
}

static void product(const Walk *w, const Product *p, const bf16 *x, Target to) {
    FOR_COLUMNS(w, panel, panels_of(p))
    FOR_TILES(w, first, count) product_tile(p, panel, x, first, count, to);
}

// --- the stream ---------------------------------------------------------------------------------------------------------------

// x / rms(x) * weight, rounded.
static void norm_row(const float *x, const float *weight, int64_t width, float eps, bf16 *to) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 part = _mm512_maskz_loadu_ps(first_lanes(width - i), x + i);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)width + eps));
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 lanes = first_lanes(width - i);
        __m512 part = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), scale);
        store_rounded(to + i, lanes, _mm512_mul_ps(part, _mm512_maskz_loadu_ps(lanes, weight + i)));
    }
}

// stream = bias + stream * stream_scale + output * share * output_scale.
static void merge_row(Merge merge, const float *output, float share, float *stream, int64_t width) {
    for (int64_t i = 0; i < width; i++)
        stream[i] = merge.bias[i] + stream[i] * merge.stream_scale[i] + output[i] * share * merge.output_scale[i];
}

static void embed(const Model *m, int64_t token, float *stream) {
    const bf16 *row = m->embedding + token * m->hidden;
    int64_t step = 2;
    if (m->is_packed) {
        int64_t panel = token / PANEL, lanes = least(PANEL, over(m->vocabulary - panel * PANEL, LANES) * LANES);
        row = m->embedding + panel * PANEL * m->hidden + token % PANEL * 2, step = lanes * 2;
    }
    for (int64_t i = 0; i < m->hidden; i++) {
        uint32_t bits = (uint32_t)row[i / 2 * step + i % 2] << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        stream[i] = (x + m->input_bias[i]) * m->input_scale[i];
    }
}

// Merge what the layer below put out, if there is one, into the stream; then the norm before the next part.
static void enter(const Walk *w, const Merge *merge, const float *share, const float *norm, bf16 *to) {
    const Model *m = w->m;
    FOR_OWN(w, t) {
        float *stream = w->s->stream + t * m->hidden;
        if (merge) merge_row(*merge, w->s->output + t * m->hidden, share ? share[t] : 1, stream, m->hidden);
        else embed(m, w->f->tokens[t], stream);
        norm_row(stream, norm, m->hidden, m->eps, to + t * m->hidden);
    }
}

// --- compressed convolutional attention ---------------------------------------------------------------------------------------

static float *joined_of(const Walk *w) { return w->f->joined + w->layer * w->f->joined_stride; }

static bf16 *stored_of(const Walk *w, int64_t keys_or_values, int64_t group) {
    int64_t rows = (w->layer * 2 + keys_or_values) * w->m->groups + group;
    return w->f->stored + rows * w->f->pool_slots * w->m->width;
}

// Half of each value is this slot's, the other half its predecessor's.
static void values_of(const Walk *w, int64_t first, int64_t count) {
    const Model *m = w->m;
    int64_t half = value_half(m), row = joined_width(m);
    const float *joined = joined_of(w) + channels(m);
    for (int64_t group = 0, at = 0; group < m->groups; group++, at += m->width)
        for (int64_t t = first; t < first + count; t++) {
            const float *current = joined + (w->f->past + t) * row + half + at, *delayed = joined + w->f->prev[t] * row + at - half;
            bf16 *to = stored_of(w, 1, group) + w->s->place[t] * m->width;
            for (int64_t i = 0; i < m->width; i += LANES) {
                __mmask16 own = first_lanes(half - at - i);
                __m512 x = _mm512_mask_loadu_ps(_mm512_maskz_loadu_ps(own, current + i), ~own, delayed + i);
                store_rounded(to + i, 0xFFFF, x);
            }
        }
}

// The depthwise convolution's output for a predecessor and for a slot, side by side [2 width]: what the grouped one multiplies.
static void depthwise_row(const float *taps, int64_t all, const float *older, const float *prev, const float *own, int64_t width, bf16 *to) {
    for (int64_t i = 0; i < width; i += LANES) {
        __m512 first = _mm512_loadu_ps(taps + i), second = _mm512_loadu_ps(taps + all + i), bias = _mm512_loadu_ps(taps + 2 * all + i);
        __m512 middle = _mm512_loadu_ps(prev + i);
        __m512 before = _mm512_fmadd_ps(second, middle, _mm512_fmadd_ps(first, _mm512_loadu_ps(older + i), bias));
        __m512 now = _mm512_fmadd_ps(second, _mm512_loadu_ps(own + i), _mm512_fmadd_ps(first, middle, bias));
        store_rounded(to + i, 0xFFFF, before);
        store_rounded(to + width + i, 0xFFFF, now);
    }
}

// to = x + the mean residual (model.md A2.2): of a query with its group's key, or of a key with the mean of its queries. `query` and
// `key` are latents; the next ones of `averaged` queries follow.
static void add_mean(const float *x, const float *query, int64_t averaged, const float *key, int64_t width, int64_t dims, float *to) {
    __m512 half = _mm512_set1_ps(0.5f), share = _mm512_set1_ps(0.5f / (float)averaged);
    for (int64_t i = 0; i < dims; i += LANES) {
        __m512 sum = _mm512_loadu_ps(query + i);
        for (int64_t other = 1; other < averaged; other++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(query + other * width + i));
        sum = _mm512_fmadd_ps(sum, share, _mm512_mul_ps(half, _mm512_loadu_ps(key + i)));
        _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(x + i), sum));
    }
}

// To its length, and turned: the first dims with as many next ones, by their cosines and then sines. Rounded.
static void norm_and_turn(float *x, int64_t width, float length, const float *turn, int64_t half, bf16 *to) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) squares = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i), squares);
    __m512 scale = _mm512_set1_ps(length / fmaxf(sqrtf(_mm512_reduce_add_ps(squares)), 1.1920929e-7f));
    for (int64_t i = 0; i < half; i += LANES) {
        __mmask16 lanes = first_lanes(half - i);
        __m512 a = _mm512_maskz_loadu_ps(lanes, x + i), b = _mm512_maskz_loadu_ps(lanes, x + half + i);
        __m512 cosine = _mm512_maskz_loadu_ps(lanes, turn + i), sine = _mm512_maskz_loadu_ps(lanes, turn + half + i);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine)));
        _mm512_mask_storeu_ps(x + half + i, lanes, _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine)));
    }
    for (int64_t i = 0; i < width; i += LANES) store_rounded(to + i, 0xFFFF, _mm512_mul_ps(_mm512_loadu_ps(x + i), scale));
}

// One head of at most TILE slots: mixed over time, normed, turned. Queries go to scratch [group][slot][head in group], keys to the pool.
static void mix_head(const Walk *w, int64_t head, int64_t first, int64_t count) {
    const Model *m = w->m;
    const Layer *l = m->layer + w->layer;
    bf16 inputs[TILE * 2 * MOST_WIDTH];
    float mixed[TILE * PANEL], heads[TILE * MOST_WIDTH];
    int64_t width = m->width, row = joined_width(m), per_group = m->queries / m->groups;
    const float *joined = joined_of(w);
    for (int64_t r = 0; r < count; r++) {
        int64_t t = first + r, at = head * width;
        depthwise_row(l->depthwise + at, channels(m), joined + w->s->older[t] * row + at, joined + w->f->prev[t] * row + at,
                      joined + (w->f->past + t) * row + at, width, inputs + r * 2 * width);
    }
    Product mix = l->mix;
    mix.weight += head * packed_size(&mix), mix.bias += head * width;
    int64_t is_key = head >= m->queries, group = is_key ? head - m->queries : head / per_group;
    for (int64_t panel = 0; panel < panels_of(&mix); panel++) {
        int64_t outputs = product_panel(&mix, panel, (Rows){inputs, 2 * width, NULL}, count, mixed), at = panel * PANEL;
        for (int64_t r = 0; r < count; r++) {
            const float *latents = joined + (w->f->past + first + r) * row + at;
            add_mean(mixed + r * PANEL, latents + (is_key ? group * per_group : head) * width, is_key ? per_group : 1,
                     latents + (m->queries + group) * width, width, outputs, heads + r * width + at);
        }
    }
    bf16 *queries = w->s->queries + (group * w->f->slots * per_group + head % per_group) * width, *keys = stored_of(w, 0, group);
    for (int64_t r = 0; r < count; r++) {
        int64_t t = first + r;
        bf16 *to = is_key ? keys + w->s->place[t] * width : queries + t * per_group * width;
        norm_and_turn(heads + r * width, width, l->length[head], l->turns + w->f->position[t] * l->rotated, l->rotated / 2, to);
    }
}

static void mix(const Walk *w) {
    int64_t heads = num_heads(w->m);
    FOR_COLUMNS(w, head, heads + 1)
    FOR_TILES(w, first, count) {
        if (head == heads) values_of(w, first, count);
        else mix_head(w, head, first, count);
    }
}

// The job's share of the attention: a part, a group, and at most TILE of its queries.
static void attend_job(const Walk *w, int64_t job) {
    const Model *m = w->m;
    int64_t per_group = m->queries / m->groups, number = 0;
    while (job >= over(w->f->parts[number].count * per_group, TILE) * m->groups)
        job -= over(w->f->parts[number++].count * per_group, TILE) * m->groups;
    const Part *part = w->f->parts + number;
    // The last queries first: they see most, and a thread that begins them last would be waited for.
    int64_t tiles = over(part->count * per_group, TILE), group = job % m->groups, first = (tiles - 1 - job / m->groups) * TILE;
    int64_t at = part->first, rows = least(TILE, part->count * per_group - first);
    Sight sight = {w->f->position + at, w->f->start + at, w->f->block + at, m->layer[w->layer].window};
    const bf16 *k = stored_of(w, 0, group) + part->begin * m->width, *v = stored_of(w, 1, group) + part->begin * m->width;
    const bf16 *q = w->s->queries + ((group * w->f->slots + at) * per_group + first) * m->width;
    bf16 *to = w->s->attended + (at * m->queries + group * per_group) * m->width;
    attend(q, first, rows, per_group, k, v, m->width, part, &sight, to, m->queries * m->width);
}

static void attention(const Walk *w) {
    int64_t jobs = 0;
    for (int64_t p = 0; p < w->f->num_parts; p++) jobs += over(w->f->parts[p].count * (w->m->queries / w->m->groups), TILE) * w->m->groups;
    FOR_JOBS(w, job, jobs) attend_job(w, job);
}

// --- the router and its experts -----------------------------------------------------------------------------------------------

// The state carried through depth, and its norm.
static void carry_state(const Walk *w, const Layer *l) {
    int64_t width = router_width(w->m);
    FOR_OWN(w, t) {
        float *state = w->s->state + t * width, *carried = w->s->carried + t * width;
        for (int64_t i = 0; i < width; i++) carried[i] = l->carry ? state[i] + carried[i] * l->carry[i] : state[i];
        norm_row(carried, l->router_norm, width, w->m->eps, w->s->router + t * width);
    }
}

static void softmax(float *x, int64_t count) {
    __m512 top = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES) top = _mm512_max_ps(top, _mm512_mask_loadu_ps(top, first_lanes(count - i), x + i));
    top = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (int64_t i = 0; i < count; i += LANES) {
        __mmask16 lanes = first_lanes(count - i);
        __m512 part = _mm512_maskz_mov_ps(lanes, exp_of(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), top)));
        _mm512_mask_storeu_ps(x + i, lanes, part);
        total = _mm512_add_ps(total, part);
    }
    float sum = _mm512_reduce_add_ps(total);
    for (int64_t i = 0; i < count; i++) x[i] /= sum;
}

// By probability plus balance; the first of equals.
static void choose(const Walk *w, const Layer *l) {
    int64_t classes = w->m->experts + 1;
    FOR_OWN(w, t) {
        float *chance = w->s->logits + t * classes, highest = -INFINITY;
        softmax(chance, classes);
        int64_t best = 0;
        for (int64_t i = 0; i < classes; i++)
            if (chance[i] + l->balance[i] > highest) highest = chance[i] + l->balance[i], best = i;
        w->f->choices[w->layer * w->f->slots + t] = best;
        w->s->probability[t] = chance[best];
    }
}

// Slots in the order of their experts.
static void sort_slots(const Walk *w) {
    const int64_t *choice = w->f->choices + w->layer * w->f->slots;
    int64_t *first = w->s->first_of, classes = w->m->experts + 1, done = 0;
    for (int64_t expert = 0; expert < classes; expert++) {
        first[expert] = done;
        for (int64_t t = 0; t < w->f->slots; t++)
            if (choice[t] == expert) w->s->order[done++] = (int32_t)t;
    }
    first[classes] = done;
}

// The expert that a job belongs to; `job` becomes its number among that expert's.
static int64_t expert_of(const Walk *w, const Product *p, int64_t *job) {
    for (int64_t expert = 0; expert < w->m->experts; expert++) {
        int64_t jobs = jobs_of(p, w->s->first_of[expert + 1] - w->s->first_of[expert]);
        if (*job < jobs) return expert;
        *job -= jobs;
    }
    return -1;
}

static Product expert_product(const Product *p, int64_t expert) {
    Product own = *p;
    own.weight += expert * packed_size(p);
    return own;
}

// silu(gate) * up for one panel of both, at most TILE of an expert's slots.
static void expert_in(const Walk *w, const Layer *l, int64_t expert, int64_t job) {
    float gates[TILE * PANEL], ups[TILE * PANEL];
    Product gate = expert_product(&l->gate, expert), up = expert_product(&l->up, expert);
    int64_t begin = w->s->first_of[expert], rows = w->s->first_of[expert + 1] - begin, tiles = over(rows, TILE);
    int64_t first = begin + job % tiles * TILE, count = least(TILE, begin + rows - first), panel = job / tiles;
    Rows x = {w->s->input, w->m->hidden, w->s->order + first};
    int64_t outputs = product_panel(&gate, panel, x, count, gates);
    product_panel(&up, panel, x, count, ups);
    for (int64_t r = 0; r < count; r++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            __m512 both = _mm512_mul_ps(silu_of(_mm512_loadu_ps(gates + r * PANEL + o)), _mm512_loadu_ps(ups + r * PANEL + o));
            store_rounded(w->s->inner + (first + r) * gate.out + panel * PANEL + o, first_lanes(outputs - o), both);
        }
}

static void expert_out(const Walk *w, const Layer *l, int64_t expert, int64_t job) {
    float y[TILE * PANEL];
    Product shrink = expert_product(&l->shrink, expert);
    int64_t begin = w->s->first_of[expert], rows = w->s->first_of[expert + 1] - begin, tiles = over(rows, TILE);
    int64_t first = begin + job % tiles * TILE, count = least(TILE, begin + rows - first), panel = job / tiles;
    int64_t outputs = product_panel(&shrink, panel, (Rows){w->s->inner + first * shrink.in, shrink.in, NULL}, count, y);
    for (int64_t r = 0; r < count; r++)
        put(y + r * PANEL, 1, outputs, (Target){w->s->output, NULL, shrink.out, AS_IT_IS}, w->s->order[first + r], panel * PANEL);
}

// Slots that skip the experts put out zeros, or what came in.
static void skip(const Walk *w) {
    const Model *m = w->m;
    for (int64_t i = w->s->first_of[m->experts]; i < w->s->first_of[m->experts + 1]; i++) {
        int64_t t = w->s->order[i];
        for (int64_t d = 0; d < m->hidden; d += LANES) {
            __mmask16 lanes = first_lanes(m->hidden - d);
            __m512 x = widened(_mm256_maskz_loadu_epi16(lanes, w->s->input + t * m->hidden + d));
            _mm512_mask_storeu_ps(w->s->output + t * m->hidden + d, lanes, m->passes ? x : _mm512_setzero_ps());
        }
    }
}

static void experts(Walk *w, const Layer *l) {
    int64_t most_jobs = 0, jobs = 0;
    for (int64_t e = 0; e < w->m->experts; e++) {
        int64_t rows = w->s->first_of[e + 1] - w->s->first_of[e];
        most_jobs += jobs_of(&l->gate, rows), jobs += jobs_of(&l->shrink, rows);
    }
    FOR_JOBS(w, job, most_jobs) {
        int64_t own = job, expert = expert_of(w, &l->gate, &own);
        expert_in(w, l, expert, own);
    }
#pragma omp master
    skip(w);
    end_phase(w);
    FOR_JOBS(w, job, jobs) {
        int64_t own = job, expert = expert_of(w, &l->shrink, &own);
        expert_out(w, l, expert, own);
    }
}

// --- the whole ----------------------------------------------------------------------------------------------------------------

static void walk_layer(Walk *w) {
    const Model *m = w->m;
    const Layer *l = m->layer + w->layer;
    Scratch *s = w->s;
    const Merge *below = w->layer ? &m->layer[w->layer - 1].mlp_merge : NULL;
    enter(w, below, s->probability, l->input_norm, s->input);
    end_own(w);
    product(w, &l->into, s->input, (Target){joined_of(w) + w->f->past * joined_width(m), NULL, joined_width(m), AS_IT_IS});
    end_phase(w);
    mix(w);
    end_phase(w);
    attention(w);
    end_phase(w);
    product(w, &l->out, s->attended, (Target){s->output, NULL, m->hidden, AS_IT_IS});
    end_own(w);
    enter(w, &l->attention_merge, NULL, l->post_norm, s->input);
    end_own(w);
    product(w, &l->down, s->input, (Target){s->state, NULL, router_width(m), AS_IT_IS});
    end_own(w);
    carry_state(w, l);
    end_own(w);
    product(w, &l->first, s->router, (Target){NULL, s->router_next, router_width(m), GELU});
    end_own(w);
    product(w, &l->second, s->router_next, (Target){NULL, s->router, router_width(m), GELU});
    end_own(w);
    product(w, &l->last, s->router, (Target){s->logits, NULL, m->experts + 1, AS_IT_IS});
    end_own(w);
    choose(w, l);
    end_phase(w);
#pragma omp master
    sort_slots(w);
    end_phase(w);
    experts(w, l);
    end_phase(w);
}

enum { PHASES = 16 };  // of a layer, at most

static void *carve(uintptr_t *at, int64_t count, int64_t size) {
    uintptr_t begin = *at;
    *at += (uintptr_t)(over(count * size, 64) * 64);
    return (void *)begin;
}

// All scratch in one piece from `at` on; returns its end. From 0 on that is its size.
static uintptr_t lay_out(Scratch *s, const Model *m, const Forward *f, uintptr_t at) {
    int64_t n = f->slots, router = router_width(m);
    s->stream = carve(&at, n * m->hidden, 4), s->output = carve(&at, n * m->hidden, 4);
    s->state = carve(&at, n * router, 4), s->carried = carve(&at, n * router, 4);
    s->logits = carve(&at, n * (m->experts + 1), 4), s->probability = carve(&at, n, 4);
    s->input = carve(&at, n * m->hidden, 2), s->inner = carve(&at, n * m->layer->gate.out, 2);
    s->queries = carve(&at, n * m->queries * m->width, 2), s->attended = carve(&at, n * m->queries * m->width, 2);
    s->router = carve(&at, n * router, 2), s->router_next = carve(&at, n * router, 2);
    s->older = carve(&at, n, 4), s->place = carve(&at, n, 4), s->order = carve(&at, n, 4);
    s->first_of = carve(&at, m->experts + 2, 8), s->next_job = carve(&at, PHASES * m->layers + 1, 8);
    s->ended = carve(&at, 1, 8);
    return at;
}

static void prepare(Scratch *s, const Model *m, const Forward *f) {
    memset(s->next_job, 0, 8 * (PHASES * m->layers + 1));
    *s->ended = 0;
    for (int64_t p = 0; p < f->num_parts; p++)
        for (int64_t i = 0; i < f->parts[p].count; i++)
            s->place[f->parts[p].first + i] = (int32_t)(f->parts[p].begin + f->parts[p].length + i);
    for (int64_t t = 0; t < f->slots; t++) {
        int64_t prev = f->prev[t];
        s->older[t] = (int32_t)(prev >= f->past ? f->prev[prev - f->past] : prev - 1);
    }
}

// Runs a forward; 0, or 1 where there was no memory for it.
int zaya_forward(const Model *m, const Forward *f) {
    Scratch s;
    uintptr_t size = lay_out(&s, m, f, 0);
    void *memory = aligned_alloc(64, size);
    if (!memory) return 1;
    lay_out(&s, m, f, (uintptr_t)memory);
    prepare(&s, m, f);
#pragma omp parallel num_threads((int)f->threads)
    {
        Walk w = walk_of(m, f, &s, omp_get_thread_num(), omp_get_num_threads());
        for (; w.layer < m->layers; w.layer++) walk_layer(&w);
        enter(&w, &m->layer[m->layers - 1].mlp_merge, s.probability, m->norm, f->hidden);
    }
    free(memory);
    return 0;
}

// y [rows][out] = x [rows][in] W^T + bias.
void zaya_product(const Product *p, const bf16 *x, int64_t rows, float *y, int64_t threads) {
    Target to = {y, NULL, p->out, AS_IT_IS};
    int64_t tiles = over(rows, TILE);
#pragma omp parallel for schedule(dynamic) num_threads((int)threads)
    for (int64_t job = 0; job < jobs_of(p, rows); job++) {
        int64_t first = job % tiles * TILE;
        product_tile(p, job / tiles, x, first, least(TILE, rows - first), to);
    }
}

// The sizes that the caller's descriptions of these structures must have.
void zaya_sizes(int64_t sizes[5]) {
    const int64_t own[] = {sizeof(Product), sizeof(Part), sizeof(Layer), sizeof(Model), sizeof(Forward)};
    memcpy(sizes, own, sizeof own);
}
