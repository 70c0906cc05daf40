/* Samples of the inputs: kernels of resampling, weights, saturated pixels, shares of noise, masks. */

/* A saturated pixel is a NaN that remembers its value. */
INLINE int is_hidden(float pixel) { return IS_NAN(pixel) && BITS_OF_FLOAT(pixel) != 0x7fc00000u; }

INLINE float shown(float pixel, float level)
{
    if (!is_hidden(pixel))
        return pixel;
    unsigned bits = BITS_OF_FLOAT(pixel);
    unsigned code = (bits & 0x003fffffu) | (bits >> 31) << 22;
    unsigned above = code < FINE ? code - 1 : FINE - 1 + ((code - FINE) << 11) + (1u << 10);
    unsigned value = BITS_OF_FLOAT(level) + above;
    return FLOAT_OF_BITS(value < 0x7f7fffffu ? value : 0x7f7fffffu);
}

#define STORED(pixel, level) (pixel)
#define SHOWN(pixel, level) shown(pixel, level)

/* The pixel that a position falls into. */
#define DEFINE_NEAREST(NAME, AT)                                                             \
    INLINE float NAME(const float *plane, whole stride, Position p, float level)             \
    {                                                                                        \
        return AT(plane[p.index + (p.fx >= 0.5f) + (p.fy >= 0.5f) * stride], level);         \
    }

/* Mixed along the rows, then between them; where that is invalid, only taps that have weight. */
#define DEFINE_BILINEAR(NAME, AT)                                                            \
    INLINE float NAME(const float *plane, whole stride, Position p, float level)             \
    {                                                                                        \
        const float *at = plane + p.index;                                                   \
        float a = AT(at[0], level), b = AT(at[1], level);                                    \
        float c = AT(at[stride], level), d = AT(at[stride + 1], level);                      \
        float top = a + p.fx * (b - a), bottom = c + p.fx * (d - c);                         \
        float value = top + p.fy * (bottom - top);                                           \
        if (IS_NAN(value)) {                                                                 \
            float taps[4] = {(1.0f - p.fx) * (1.0f - p.fy), p.fx * (1.0f - p.fy),            \
                             (1.0f - p.fx) * p.fy, p.fx * p.fy};                             \
            float corners[4] = {a, b, c, d}, sum = 0.0f, total = 0.0f;                       \
            for (int k = 0; k < 4; k++)                                                      \
                if (taps[k] > LEAST_TAP) {                                                   \
                    sum += taps[k] * corners[k];                                             \
                    total += taps[k];                                                        \
                }                                                                            \
            value = sum / total;                                                             \
        }                                                                                    \
        return value;                                                                        \
    }

DEFINE_NEAREST(nearest_stored, STORED)
DEFINE_BILINEAR(bilinear_stored, STORED)

#if TAPS > 2
#define DEGREE 9

/* Taps at a fraction: polynomials, exactly 1 and 0 at the centre of a pixel. */
INLINE void taps_at(const float *table, float fraction, float taps[TAPS])
{
    float t = 2.0f * fraction - 1.0f;
    for (int k = 0; k < TAPS; k++) {
        const float *c = table + k * (DEGREE + 2);
        float quotient = c[DEGREE + 1];
        for (int power = DEGREE - 1; power >= 0; power--)
            quotient = quotient * t + c[power + 1];
        taps[k] = c[0] + fraction * quotient;
    }
}

/* Rows weighted and added, then columns; where that is invalid, without the invalid outer taps. */
#define DEFINE_SEPARABLE(NAME, AT)                                                           \
    INLINE float NAME(const float *plane, whole stride, Position p, const float *table,      \
                      float level)                                                           \
    {                                                                                        \
        float across[TAPS], down[TAPS], wide = 0.0f, high = 0.0f;                            \
        taps_at(table, p.fx, across);                                                        \
        taps_at(table, p.fy, down);                                                          \
        for (int k = 0; k < TAPS; k++) {                                                     \
            wide += across[k];                                                               \
            high += down[k];                                                                 \
        }                                                                                    \
        const float *first = plane + p.index - (TAPS / 2 - 1) * (stride + 1);                \
        float value = 0.0f;                                                                  \
        for (int k = 0; k < TAPS; k++) {                                                     \
            float column = 0.0f;                                                             \
            for (int row = 0; row < TAPS; row++)                                             \
                column += down[row] * AT(first[row * stride + k], level);                    \
            value += across[k] * column;                                                     \
        }                                                                                    \
        value /= wide * high;                                                                \
        if (!IS_NAN(value))                                                                  \
            return value;                                                                    \
        float sum = 0.0f, total = 0.0f;                                                      \
        for (int row = 0; row < TAPS; row++)                                                 \
            for (int k = 0; k < TAPS; k++) {                                                 \
                float tap = across[k] * down[row];                                           \
                float pixel = AT(first[row * stride + k], level);                            \
                int is_inner = row >= TAPS / 2 - 1 && row <= TAPS / 2                        \
                               && k >= TAPS / 2 - 1 && k <= TAPS / 2;                        \
                if (!IS_NAN(pixel)) {                                                        \
                    sum += tap * pixel;                                                      \
                    total += tap;                                                            \
                } else if (is_inner && (tap > LEAST_TAP || tap < -LEAST_TAP))                \
                    return NOTHING;                                                          \
            }                                                                                \
        return total > 0.1f ? sum / total : NOTHING;                                         \
    }

DEFINE_SEPARABLE(stored_at, STORED)
#define SAMPLE(plane, stride, p, s) stored_at(plane, stride, p, (s)->taps, 0.0f)
#if SATURATES
DEFINE_SEPARABLE(shown_at, SHOWN)
#define SAMPLE_SHOWN(plane, stride, p, s, level) shown_at(plane, stride, p, (s)->taps, level)
#endif
#elif TAPS == 2
#define SAMPLE(plane, stride, p, s) bilinear_stored(plane, stride, p, 0.0f)
#if SATURATES
DEFINE_BILINEAR(shown_at, SHOWN)
#define SAMPLE_SHOWN(plane, stride, p, s, level) shown_at(plane, stride, p, level)
#endif
#else
#define SAMPLE(plane, stride, p, s) nearest_stored(plane, stride, p, 0.0f)
#if SATURATES
DEFINE_NEAREST(shown_at, SHOWN)
#define SAMPLE_SHOWN(plane, stride, p, s, level) shown_at(plane, stride, p, level)
#endif
#endif

/* Weights are never negative, so they are never sampled with a kernel that overshoots. */
#if TAPS == 1
#define SAMPLE_WEIGHTS nearest_stored
#else
#define SAMPLE_WEIGHTS bilinear_stored
#endif

/* The ramp from the edge of what the border leaves of a frame. */
INLINE double ramp(const Window *w, const Input *in, double px, Position p)
{
    double width = (double)(in->border_x1 - in->border_x0);
    double height = (double)(in->border_y1 - in->border_y0);
    whole row = p.index / w->width;
    double x = ((double)(w->x0 - in->border_x0) + 0.5) + (double)(p.index - row * w->width)
               + (double)p.fx;
    double y = ((double)(w->y0 - in->border_y0) + 0.5) + (double)row + (double)p.fy;
    double per_px = 1.0 / px;
    double wide = x < width - x ? x : width - x, high = y < height - y ? y : height - y;
    double nearest = wide < high ? wide : high;
    double u = nearest * per_px < 1.0 ? nearest * per_px : 1.0;
    return u * u * (3.0 - 2.0 * u);
}

#if SATURATES
/* Find samples again that saturated pixels have made invalid; their weight is then negative. What is
 * not found is invalid in all channels. */
INLINE void recover(const Scene *s, const Window *w, float level, Position p,
                    float values[CHANNELS], double *weight)
{
    whole area = w->width * w->height;
    const float *planes = s->pixels + w->pixels;
    int lost = 0, found = 0;
    for (int c = 0; c < CHANNELS; c++)
        lost |= IS_NAN(values[c]);
    if (!lost)
        return;
    for (int c = 0; c < CHANNELS && !IS_NAN(*weight); c++) {
        const float *at = planes + c * area + p.index;
        found |= is_hidden(at[0]) | is_hidden(at[1]) | is_hidden(at[w->width])
                 | is_hidden(at[w->width + 1]);
    }
    for (int c = 0; c < CHANNELS && found; c++) {
        values[c] = SAMPLE_SHOWN(planes + c * area, w->width, p, s, level);
        found = !IS_NAN(values[c]);
    }
    if (found)
        *weight = -*weight;
    else
        for (int c = 0; c < CHANNELS; c++)
            values[c] = NOTHING;
}
#endif

#if VARIANCE
/* How much of its pixels' noise a sample has: the sum of tap^2 times variance over that of tap, squared.
 * `map` has inverse variances, or is 0 where all are alike. */
INLINE float share_of(const Scene *s, const float *map, whole stride, Position p)
{
#if TAPS == 1
    return map ? 1.0f / nearest_stored(map, stride, p, 0.0f) : 1.0f;
#elif TAPS == 2
    float fx = p.fx, fy = p.fy, sum = 0.0f, total = 0.0f;
    if (!map)
        return ((1.0f - fx) * (1.0f - fx) + fx * fx) * ((1.0f - fy) * (1.0f - fy) + fy * fy);
    float taps[4] = {(1.0f - fx) * (1.0f - fy), fx * (1.0f - fy), (1.0f - fx) * fy, fx * fy};
    whole at[4] = {p.index, p.index + 1, p.index + stride, p.index + stride + 1};
    for (int k = 0; k < 4; k++) {
        int counts = taps[k] > LEAST_TAP;
        sum += counts ? taps[k] * taps[k] / map[at[k]] : 0.0f;
        total += counts ? taps[k] : 0.0f;
    }
    return sum / (total * total);
#else
    float across[TAPS], down[TAPS], total_x = 0.0f, total_y = 0.0f;
    taps_at(s->taps, p.fx, across);
    taps_at(s->taps, p.fy, down);
    for (int k = 0; k < TAPS; k++) {
        total_x += across[k];
        total_y += down[k];
    }
    float share = 0.0f, total = total_x * total_y;
    if (!map) {
        float squares_x = 0.0f, squares_y = 0.0f;
        for (int k = 0; k < TAPS; k++) {
            squares_x += across[k] * across[k];
            squares_y += down[k] * down[k];
        }
        share = squares_x * squares_y;
    } else {
        const float *first = map + p.index - (TAPS / 2 - 1) * (stride + 1);
        for (int k = 0; k < TAPS; k++) {
            float column = 0.0f;
            for (int row = 0; row < TAPS; row++)
                column += down[row] * down[row] / first[row * stride + k];
            share = share + across[k] * across[k] * column;
        }
    }
    return share / (total * total);
#endif
}

#if TAPS > 2
/* The same for a valid sample of which the kernel may have dropped taps, since pixels are invalid. */
INLINE float share_without(const Scene *s, const float *plane, const float *map, whole stride,
                           Position p, int is_saturated, float of_all)
{
    whole corner = p.index - (TAPS / 2 - 1) * (stride + 1);
    float across[TAPS], down[TAPS], sum = 0.0f, total = 0.0f;
    for (int row = 0; row < TAPS; row++)
        for (int k = 0; k < TAPS; k++)
            sum += plane[corner + row * stride + k];
    if (!IS_NAN(sum))
        return of_all;
    taps_at(s->taps, p.fx, across);
    taps_at(s->taps, p.fy, down);
    sum = 0.0f;
    for (int row = 0; row < TAPS; row++)
        for (int k = 0; k < TAPS; k++) {
            whole at = corner + row * stride + k;
            float tap = across[k] * down[row];
            if (!IS_NAN(plane[at]) || (is_saturated && is_hidden(plane[at]))) {
                sum += tap * tap * (map ? 1.0f / map[at] : 1.0f);
                total += tap;
            }
        }
    return sum / (total * total);
}
#endif

/* Shares of noise of the samples of a window in every channel. */
INLINE void find_shares(const Scene *s, whole number, Position p, const float values[CHANNELS],
                        double weight, float shares[CHANNELS])
{
    const Window *w = &s->windows[number];
    whole area = w->width * w->height;
    const float *planes = s->pixels + w->pixels;
    const float *map = s->inputs[w->input].has_map == 2 ? planes + CHANNELS * area : 0;
    float of_all = share_of(s, map, w->width, p);
    for (int c = 0; c < CHANNELS; c++) {
        shares[c] = of_all;
#if TAPS > 2
        if (!IS_NAN(values[c]))
            shares[c] = share_without(s, planes + c * area, map, w->width, p, weight < 0.0, of_all);
#endif
    }
}
#endif

/* The samples of a window at a position and their weight, which is negative where they are of
 * saturated pixels. Values that are not valid are NaN. */
INLINE void take(const Scene *s, whole number, Position p, float values[CHANNELS], double *weight)
{
    const Window *w = &s->windows[number];
    const Input *in = &s->inputs[w->input];
    const Weighting *how = &s->weightings[w->input];
    whole area = w->width * w->height;
    const float *planes = s->pixels + w->pixels;
    for (int c = 0; c < CHANNELS; c++)
        values[c] = SAMPLE(planes + c * area, w->width, p, s);
    *weight = how->weight;
    if (in->has_map) {
        float map = SAMPLE_WEIGHTS(planes + CHANNELS * area, w->width, p, 0.0f);
        *weight *= (double)map;
        if (IS_NAN(map))
            for (int c = 0; c < CHANNELS; c++)
                values[c] = NOTHING;
    }
    if (how->feather > 0.0)
        *weight *= ramp(w, in, how->feather, p);
#if SATURATES
    if (how->saturation > 0.0)
        recover(s, w, (float)how->saturation, p, values, weight);
#endif
}

INLINE double affine(const Scene *s, whole input, int channel, float value)
{
    whole at = input * CHANNELS + channel;
    return s->gains[at] * (double)value + s->offsets[at];
}

/* A value that is held in single precision, or against such: within its range. */
#define GREATEST 3.4028234663852886e38

INLINE double as_it_counts(double v)
{
    v = v < -GREATEST ? -GREATEST : v;
    return v > GREATEST ? GREATEST : v;
}

/* What every kernel gets. */
#define SCENE                                                                                     \
    const Window *windows, const Input *inputs, const Weighting *weightings, const double *gains, \
        const double *offsets, const double *variances, const unsigned char *cells,               \
        const double *cubics,                                                                     \
        const double *exact, const int *records, const float *pixels, const float *taps,          \
        const int *listed, const int *strips, whole x0, whole y0, whole width, whole rows,        \
        whole columns
#define OPEN_SCENE                                                                                \
    Scene scene = {windows, inputs, weightings, gains,  offsets, variances, cells, cubics, exact,  \
                   records, pixels, taps,       listed, strips,  x0,        y0,    width,  rows,   \
                   columns};                                                                       \
    const Scene *s = &scene

/* Where the mask of one input covers the pixels of a step: its valid pixels, interpolated. */
#define LEAST_MASK 1e-3f

KERNEL cover(whole count, whole number, SCENE, whole from_x, whole from_y, whole across,
             unsigned char *covered)
{
    OPEN_SCENE;
    EACH(i, count)
    {
        Position p;
        covered[i] = 0;
        if (!find(s, number, from_x + i % across, from_y + i / across, &p))
            continue;
        float values[CHANNELS];
        double weight;
        take(s, number, p, values, &weight);
        if (!IS_NAN(values[0])) {
            covered[i] = 1;
            continue;
        }
        const Window *w = &windows[number];
        const float *at = pixels + w->pixels + p.index;
        float corners[4] = {at[0], at[1], at[w->width], at[w->width + 1]}, share = 0.0f;
        float parts[4] = {(1.0f - p.fx) * (1.0f - p.fy), p.fx * (1.0f - p.fy),
                          (1.0f - p.fx) * p.fy, p.fx * p.fy};
        for (int k = 0; k < 4; k++)
            if (parts[k] > 0.0f && !IS_NAN(corners[k]))
                share += parts[k];
        covered[i] = share > LEAST_MASK;
    }
}
