/* The work on the coverage between the passes, on a device: blur, scale map, counts of scales.
 *
 * The arithmetic is the engine's, operation by operation; what is behind it is told there.  Down the
 * columns and across the rows a thread follows one recurrence, which begins afresh at the places
 * where the engine's does.  So the bits are the engine's.
 *
 * It follows the text of `common.cu` and expects
 *
 *   FORM     0 no blur, 1 by its weights, 2 by cosines
 *   WAVES    how many cosines
 *   SEGMENT  columns after which the recurrence across the rows begins afresh
 *   BINS     leading bins of scales, but for one, and trailing ones
 *   THREADS  threads that share a mark: each takes every so many-th pixel
 *
 * Source rows lie in a ring: row y of the endless plane, which begins `radius` + 2 rows above the
 * first one, at (y + radius + 2) % slots.  Values that are not valid are 0.
 */

#define LEAST_COVERAGE 1.19e-7f
#define LEAST_SCALE 0.5f
#define GREATEST_SCALE 2.0f
#define EMPTY 1e-11

/* The slot of a row, and the ones after and before a slot. */
#define SLOT(y) (((y) + radius + 2) % slots)
#define AFTER(slot) ((slot) + 1 == slots ? 0 : (slot) + 1)
#define BEFORE(slot) ((slot) == 0 ? slots - 1 : (slot) - 1)

/* The place in 0 to n - 1 that is repeated at i: d c b a | a b c d | d c b a. */
INLINE whole mirrored(whole i, whole n)
{
    if (i >= 0 && i < n)
        return i;
    i %= 2 * n;
    if (i < 0)
        i += 2 * n;
    return i < n ? i : 2 * n - 1 - i;
}

/* A value of the source, or whether it is valid. */
INLINE double sample(float value, int is_flag)
{
    return is_flag ? (value > 0.0f ? 1.0 : 0.0) : (double)value;
}

/* One pixel of the scale map.  The mean is rounded first: its last digits must not decide. */
INLINE float scale_of(float coverage, double mean, double threshold)
{
    double ratio = mean / (double)(coverage > LEAST_COVERAGE ? coverage : LEAST_COVERAGE);
    float clamped = (float)ratio;
    clamped = clamped > LEAST_SCALE ? clamped : LEAST_SCALE;
    clamped = clamped < GREATEST_SCALE ? clamped : GREATEST_SCALE;
    return coverage > 0.0f && (double)(float)mean >= threshold ? clamped : NOTHING;
}

/* Values over validity; nothing where that is rounding noise. */
INLINE double divided(double value, double validity)
{
    return validity < EMPTY ? 0.0 : value / validity;
}

#if FORM == 2

/* The table: of each cosine, in this order, what follows, and then for every distance from the
 * centre of a window its amplitude times cosine and sine there. */
#define TURN(k) table[k]
#define OUTER(k) table[WAVES + (k)]
#define INNER(k) table[2 * WAVES + (k)]
#define BACK_COSINE(k) table[3 * WAVES + (k)]
#define BACK_SINE(k) table[4 * WAVES + (k)]
#define AROUND(m) (table + 5 * WAVES + 2 * WAVES * (m))

/* The sums of a window under the cosines, at two places one step apart. */
typedef struct {
    double now[WAVES], before[WAVES];
} State;

INLINE void forget(State *state)
{
    for (int k = 0; k < WAVES; k++)
        state->now[k] = state->before[k] = 0.0;
}

/* Add the values at distance m on both sides of a centre: to sums under the cosines, and to sums
 * under the sines in the place of those before. */
INLINE void gather(State *state, const double *around, double lead, double trail)
{
    double even = lead + trail, odd = lead - trail;
    for (int k = 0; k < WAVES; k++) {
        state->now[k] = state->now[k] + even * around[k];
        state->before[k] = state->before[k] + odd * around[WAVES + k];
    }
}

/* Make what was gathered around n lead on from there: `last` is at n + radius, `next` one before
 * n - radius. */
INLINE void settle(State *state, const double *table, double last, double next)
{
    for (int k = 0; k < WAVES; k++) {
        double turned = state->now[k] * BACK_COSINE(k) - state->before[k] * BACK_SINE(k);
        state->before[k] = turned + (next * OUTER(k) - last * INNER(k));
    }
}

/* The next filtered value.  `lead` are the values at n + radius and after it, `trail` those before
 * n - radius and at it. */
INLINE double advance(State *state, const double *table, const double lead[2],
                      const double trail[2])
{
    double outer = lead[1] + trail[0], inner = lead[0] + trail[1], sum = 0.0;
    for (int k = 0; k < WAVES; k++) {
        double ends = outer * OUTER(k) - inner * INNER(k);
        double next = state->now[k] * TURN(k) + (ends - state->before[k]);
        sum = sum + next;
        state->before[k] = state->now[k];
        state->now[k] = next;
    }
    return sum;
}

/* States of the columns lie by what they are of (values, validity), by place, by cosine. */
INLINE void keep(const State *state, double *states, whole width, whole column, whole plane)
{
    for (int k = 0; k < WAVES; k++) {
        states[(2 * plane * WAVES + k) * width + column] = state->now[k];
        states[((2 * plane + 1) * WAVES + k) * width + column] = state->before[k];
    }
}

/* For each column, its values and then their validity: the state that leads on to row `top`. */
KERNEL columns_begin(whole count, const float *ring, whole slots, whole width, whole radius,
                     whole top, const double *table, double *states)
{
    EACH(i, count)
    {
        whole column = i % width, plane = i / width;
        whole after = SLOT(top - 1), before = after;
        double lead = 0.0;
        State state;
        forget(&state);
        for (whole m = 0; m <= radius; m++) {
            lead = sample(ring[after * width + column], (int)plane);
            double trail = m == 0 ? 0.0 : sample(ring[before * width + column], (int)plane);
            gather(&state, AROUND(m), lead, trail);
            after = AFTER(after);
            before = BEFORE(before);
        }
        settle(&state, table, lead, sample(ring[before * width + column], (int)plane));
        keep(&state, states, width, column, plane);
    }
}

/* For each column, its values and then their validity: `rows` filtered ones from row `top` on, by
 * column and then by row, as the threads of `rows_scale` lie. */
KERNEL columns_filter(whole count, const float *ring, whole slots, whole width, whole radius,
                      whole top, whole rows, const double *table, double *filtered, double *states)
{
    EACH(i, count)
    {
        whole column = i % width, plane = i / width;
        whole after = SLOT(top - 1 + radius), before = SLOT(top - 2 - radius);
        double lead[2], trail[2];
        State state;
        for (int k = 0; k < WAVES; k++) {
            state.now[k] = states[(2 * plane * WAVES + k) * width + column];
            state.before[k] = states[((2 * plane + 1) * WAVES + k) * width + column];
        }
        lead[0] = sample(ring[after * width + column], (int)plane);
        trail[0] = sample(ring[before * width + column], (int)plane);
        for (whole row = 0; row < rows; row++) {
            after = AFTER(after);
            before = AFTER(before);
            lead[1] = sample(ring[after * width + column], (int)plane);
            trail[1] = sample(ring[before * width + column], (int)plane);
            filtered[i * rows + row] = advance(&state, table, lead, trail);
            lead[0] = lead[1];
            trail[0] = trail[1];
        }
        keep(&state, states, width, column, plane);
    }
}

#define AT(x) (mirrored(x, width) * rows)

/* For each of `rows` rows and segment of columns: the scale map. */
KERNEL rows_scale(whole count, const float *ring, whole slots, whole width, whole radius, whole top,
                  whole rows, const double *table, const double *filtered, double threshold,
                  float *scales)
{
    EACH(i, count)
    {
        whole row = i % rows, first = i / rows * SEGMENT, past = least(first + SEGMENT, width);
        const double *values = filtered + row, *flags = values + width * rows;
        const float *coverage = ring + SLOT(top + row) * width;
        State value, flag;
        forget(&value);
        forget(&flag);
        for (whole m = 0; m <= radius; m++) {
            whole after = AT(first - 1 + m), before = AT(first - 1 - m);
            gather(&value, AROUND(m), values[after], m == 0 ? 0.0 : values[before]);
            gather(&flag, AROUND(m), flags[after], m == 0 ? 0.0 : flags[before]);
        }
        whole after = AT(first - 1 + radius), before = AT(first - 2 - radius);
        double value_lead[2] = {values[after], 0.0}, value_trail[2] = {values[before], 0.0};
        double flag_lead[2] = {flags[after], 0.0}, flag_trail[2] = {flags[before], 0.0};
        settle(&value, table, value_lead[0], value_trail[0]);
        settle(&flag, table, flag_lead[0], flag_trail[0]);
        for (whole x = first; x < past; x++) {
            after = AT(x + radius);
            before = AT(x - 1 - radius);
            value_lead[1] = values[after];
            value_trail[1] = values[before];
            flag_lead[1] = flags[after];
            flag_trail[1] = flags[before];
            double mean = advance(&value, table, value_lead, value_trail);
            mean = divided(mean, advance(&flag, table, flag_lead, flag_trail));
            scales[row * width + x] = scale_of(coverage[x], mean, threshold);
            value_lead[0] = value_lead[1];
            value_trail[0] = value_trail[1];
            flag_lead[0] = flag_lead[1];
            flag_trail[0] = flag_trail[1];
        }
    }
}

#elif FORM == 1

/* For each column and row, of the values and then of their validity: what the weights in the table
 * make of it, by column and then by row. */
KERNEL columns_filter(whole count, const float *ring, whole slots, whole width, whole radius,
                      whole top, whole rows, const double *table, double *filtered)
{
    EACH(i, count)
    {
        whole column = i % width, row = i / width % rows, plane = i / width / rows;
        whole after = SLOT(top + row), before = after;
        double sum = sample(ring[after * width + column], (int)plane) * table[0];
        for (whole m = 1; m <= radius; m++) {
            before = BEFORE(before);
            after = AFTER(after);
            double pair = sample(ring[before * width + column], (int)plane)
                          + sample(ring[after * width + column], (int)plane);
            sum = sum + pair * table[m];
        }
        filtered[(plane * width + column) * rows + row] = sum;
    }
}

/* For each of `rows` rows and column: the scale map. */
KERNEL rows_scale(whole count, const float *ring, whole slots, whole width, whole radius, whole top,
                  whole rows, const double *table, const double *filtered, double threshold,
                  float *scales)
{
    EACH(i, count)
    {
        whole row = i % rows, x = i / rows;
        const double *values = filtered + row, *flags = values + width * rows;
        double value = values[x * rows] * table[0], flag = flags[x * rows] * table[0];
        for (whole m = 1; m <= radius; m++) {
            whole before = mirrored(x - m, width) * rows, after = mirrored(x + m, width) * rows;
            value = value + (values[before] + values[after]) * table[m];
            flag = flag + (flags[before] + flags[after]) * table[m];
        }
        float coverage = ring[SLOT(top + row) * width + x];
        scales[row * width + x] = scale_of(coverage, divided(value, flag), threshold);
    }
}

#else

/* For each of some rows and column: the scale map. */
KERNEL rows_scale(whole count, const float *ring, whole slots, whole width, whole radius, whole top,
                  double threshold, float *scales)
{
    EACH(i, count)
    {
        float coverage = ring[SLOT(top + i / width) * width + i % width];
        scales[i] = scale_of(coverage, (double)coverage, threshold);
    }
}

#endif

/* ---------------------------------------------------------------------------- counts of the scales */

/* A run of pixels that the mask of an input covers. */
typedef struct {
    unsigned input, y, x0, x1;
} Mark;

/* Place of a scale among the floats from the least scale on. */
#define KEY(scale) (BITS_OF_FLOAT(scale) - BITS_OF_FLOAT(LEAST_SCALE))
#define NO_BIN 0xffffffffu

/* Scales of one bin in a row: neighbours are alike, and counted together. */
typedef struct {
    unsigned bin, length;
} Run;

/* Let a run go on with a scale of a bin, or count it and begin another one. */
INLINE void extend(Run *run, unsigned bin, unsigned *counts)
{
    if (bin != run->bin && run->bin != NO_BIN)
        COUNT32(counts[run->bin], run->length);
    run->length = bin == run->bin ? run->length + 1 : 1;
    run->bin = bin;
}

/* Fill a buffer. */
KERNEL set_all(whole count, unsigned *values, whole value)
{
    EACH(i, count)
    {
        values[i] = (unsigned)value;
    }
}

/* Count the scales under marks by input and leading bin.  `rows` are those of the map from y0 on;
 * marks of inputs that are not among `inputs` from `first` on do not count. */
KERNEL count_leading(whole count, const Mark *marks, const float *rows, whole y0, whole width,
                     whole first, whole inputs, unsigned *counts)
{
    EACH(i, count)
    {
        const Mark mark = marks[i / THREADS];
        whole input = (whole)mark.input - first;
        if (input < 0 || input >= inputs)
            continue;
        const float *line = rows + ((whole)mark.y - y0) * width;
        unsigned *mine = counts + input * (BINS + 1);
        Run run = {NO_BIN, 0};
        for (whole x = mark.x0 + i % THREADS; x < mark.x1; x += THREADS) {
            unsigned bin = IS_NAN(line[x]) ? NO_BIN : KEY(line[x]) / BINS;
            extend(&run, bin, mine);
        }
        extend(&run, NO_BIN, mine);
    }
}

/* Of each input, count the scales in the first of its two bins by their trailing bins, and find the
 * least key in the second, if that is another one. */
KERNEL count_within(whole count, const Mark *marks, const float *rows, whole y0, whole width,
                    whole first, whole inputs, unsigned *counts, const unsigned *bins,
                    unsigned *least_keys)
{
    EACH(i, count)
    {
        const Mark mark = marks[i / THREADS];
        whole input = (whole)mark.input - first;
        if (input < 0 || input >= inputs || bins[2 * input] == NO_BIN)
            continue;
        unsigned low = bins[2 * input], high = bins[2 * input + 1];
        const float *line = rows + ((whole)mark.y - y0) * width;
        unsigned *mine = counts + input * (BINS + 1), found = NO_BIN;
        Run run = {NO_BIN, 0};
        for (whole x = mark.x0 + i % THREADS; x < mark.x1; x += THREADS) {
            unsigned bin = NO_BIN;
            if (!IS_NAN(line[x])) {
                unsigned key = KEY(line[x]);
                if (key / BINS == low)
                    bin = key % BINS;
                else if (key / BINS == high && key < found)
                    found = key;
            }
            extend(&run, bin, mine);
        }
        extend(&run, NO_BIN, mine);
        if (found != NO_BIN)
            LEAST32(least_keys[input], found);
    }
}
