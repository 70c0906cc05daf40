/* The pass on a device: positions, samples, combines.
 *
 * One thread computes one pixel of the output from all inputs that cover it, in job order, with the
 * arithmetic of the engine and in its order: doubles for coordinates, weights and sums, singles for
 * samples, no operation fused.  So the bits are those of the engine.
 *
 * It follows the text of `common.cu` and expects
 *
 *   CHANNELS   planes of an image
 *   TAPS       1 nearest, 2 bilinear, 4 bicubic or Lanczos-2, 6 Lanczos-3
 *   METHOD     one of the numbers below
 *   SATURATES  1 where samples of some inputs give way to those of others, else 0
 *   VARIANCE   1 where the variance of every pixel is wanted, else 0
 */

/* Methods. */
#define MEAN 0
#define SUM 1
#define MIN 2
#define MAX 3
#define FIRST 4
#define LAST 5
#define MEDIAN 6
#define KAPPA_SIGMA 7
#define WINSORIZED 8
#define WINSORIZED_REFERENCE 9
#define WINSOR_PERCENTILE 10
#define STREAM 11

/* A result: processors differ in the bits of what is no number. */
INLINE float clean(double v)
{
    float single = (float)v;
    return IS_NAN(single) ? NOTHING : single;
}

/* ------------------------------------------------------------------------------------ the tables
 *
 * Every field has eight bytes, so that the host writes them as two arrays, of wholes and of doubles.
 */

/* How samples are stored: FITS BITPIX, whether the first byte counts most, BLANK. */
typedef struct {
    whole bitpix, big_endian, blank;
} Storage;

/* Of an input: where its coordinates lie, its frame, its weights, its samples. */
typedef struct {
    whole origin_x, origin_y; /* first output pixel of the first cell */
    whole shift;              /* a cell is 2^shift pixels wide and high */
    whole across, down;       /* cells */
    whole nodes;              /* place of its first node among all nodes */
    whole cells;              /* place of its first cell among all cells */
    whole frame_w, frame_h;
    whole border_x0, border_y0, border_x1, border_y1; /* what the border leaves of the frame */
    whole has_map; /* 0 no weights of pixels, 1 some, 2 that say the variances of pixels */
    whole means;   /* what a weight is stored as, one of those below */
    whole zero_is_blank;
    Storage image, map;
} Input;

#define WEIGHT 0
#define INVERSE 1 /* a variance */
#define RMS 2
#define MASK 3
#define ALPHA 4

typedef struct {
    double weight;
    double feather;    /* width of the ramp in pixels; 0 for none */
    double saturation; /* from this on pixels are saturated; 0 for none */
    double scale, zero;         /* FITS BSCALE and BZERO */
    double map_scale, map_zero; /* those of its weights */
    double full;                /* an opaque pixel */
} Weighting;

/* Of a window of an input: which output columns it serves, which pixels of the frame it holds, and
 * where these begin among all pixels. */
typedef struct {
    whole input;
    whole out_x0, out_x1;
    whole x0, y0, width, height;
    whole pixels;
    whole exact; /* place of its first exact record, and that of the places of its cells; or -1 */
    whole records;
    whole begin;     /* number of its first pixel among those of all windows */
    whole loaded;    /* place of what was loaded of it */
    whole is_stored; /* whether that is samples as they are stored, up to the edge of the frame */
} Window;

/* ---------------------------------------------------------------------------------- the decoding */

INLINE float finite(float v) { return v < ENDLESS && v > -ENDLESS ? v : NOTHING; }

/* A stored sample as a value. */
INLINE float decoded(const unsigned *words, whole index, const Storage *how, double scale,
                     double zero)
{
    int stored;
    if (how->bitpix == 8) {
        stored = ((const unsigned char *)words)[index];
    } else if (how->bitpix == 16) {
        unsigned bits = ((const unsigned short *)words)[index];
        bits = how->big_endian ? (bits >> 8 | bits << 8) & 0xffffu : bits;
        stored = (short)bits;
    } else {
        unsigned bits = words[index];
        if (how->big_endian)
            bits = bits >> 24 | (bits >> 8 & 0xff00u) | (bits & 0xff00u) << 8 | bits << 24;
        if (how->bitpix < 0) {
            float v = FLOAT_OF_BITS(bits);
            return finite(scale == 1.0 && zero == 0.0 ? v : (float)(zero + scale * (double)v));
        }
        stored = (int)bits;
    }
    return stored == how->blank ? NOTHING : finite((float)(zero + scale * (double)stored));
}

/* What a value of a weight map weighs; NaN where that is nothing. */
INLINE float weight_of(float v, whole means, double full)
{
    float weight = v;
    if (means == INVERSE)
        weight = 1.0f / v;
    if (means == RMS)
        weight = v > 0.0f ? (float)(1.0 / ((double)v * (double)v)) : NOTHING;
    if (means == MASK)
        weight = v == 0.0f ? 1.0f : NOTHING;
    if (means == ALPHA)
        weight = v / (float)full > 1.0f ? 1.0f : v / (float)full;
    return weight > 0.0f && weight < ENDLESS ? weight : NOTHING;
}

/* Saturated pixels hide their value in a NaN: how far they lie above the level, in units of the last
 * place; what is far above is rounded. */
#define FINE ((1u << 23) - (1u << 20))

INLINE float hidden(float v, float level)
{
    if (!(level > 0.0f && v >= level))
        return v;
    unsigned above = BITS_OF_FLOAT(v) - BITS_OF_FLOAT(level);
    unsigned code = above < FINE - 1 ? above + 1 : FINE + ((above - (FINE - 1)) >> 11);
    return FLOAT_OF_BITS(0x7fc00000u | (code & 0x003fffffu) | (code & 0xffc00000u) << 9);
}

/* What was loaded of all windows, as planes of pixels and of their weights, as the engine makes them:
 * NaN beyond the frame and its border, and where a pixel is invalid in any plane. */
KERNEL decode(whole count, const Window *windows, whole n_windows, const Input *inputs,
              const Weighting *weightings, const unsigned *loaded, float *pixels)
{
    EACH(i, count)
    {
        whole first = 0, past = n_windows;
        while (past - first > 1) {
            whole middle = (first + past) / 2;
            if (windows[middle].begin <= i)
                first = middle;
            else
                past = middle;
        }
        const Window *w = &windows[first];
        const Input *in = &inputs[w->input];
        const Weighting *how = &weightings[w->input];
        const unsigned *words = loaded + w->loaded;
        whole at = i - w->begin, area = w->width * w->height;
        float *out = pixels + w->pixels + at;
        int planes = CHANNELS + (in->has_map != 0);
        if (!w->is_stored) {
            for (int k = 0; k < planes; k++)
                out[k * area] = FLOAT_OF_BITS(words[k * area + at]);
            continue;
        }
        whole x = w->x0 + at % w->width, y = w->y0 + at / w->width;
        whole x0 = most(w->x0, 0), x1 = least(w->x0 + w->width, in->frame_w);
        whole y0 = most(w->y0, 0), y1 = least(w->y0 + w->height, in->frame_h);
        int is_valid = x >= in->border_x0 && x < in->border_x1 && y >= in->border_y0
                       && y < in->border_y1;
        whole stored = (y1 - y0) * (x1 - x0), index = (y - y0) * (x1 - x0) + (x - x0);
        whole bits = in->image.bitpix < 0 ? 32 : in->image.bitpix, plane = (stored * bits + 31) / 32;
        int is_zero = 1;
        for (int k = 0; k < CHANNELS && is_valid; k++) {
            float v = decoded(words + k * plane, index, &in->image, how->scale, how->zero);
            out[k * area] = v;
            is_valid = !IS_NAN(v);
            is_zero &= v == 0.0f;
        }
        is_valid &= !(in->zero_is_blank && is_zero);
        if (in->has_map && is_valid) {
            const unsigned *of_map = words + CHANNELS * plane;
            float v = decoded(of_map, index, &in->map, how->map_scale, how->map_zero);
            float weight = weight_of(v, in->means, how->full);
            out[CHANNELS * area] = weight;
            is_valid = !IS_NAN(weight);
        }
        for (int k = 0; k < planes; k++) {
            float v = is_valid ? out[k * area] : NOTHING;
            out[k * area] = k < CHANNELS ? hidden(v, (float)how->saturation) : v;
        }
    }
}

/* -------------------------------------------------------------------------------- the coordinates */

/* Weights of the nodes at -1, 0, 1, 2 for a cubic through them. */
INLINE void lagrange(double u, double w[4])
{
    double a = u + 1.0, b = u - 1.0, c = u - 2.0;
    w[0] = -u * b * c / 6.0;
    w[1] = a * b * c / 2.0;
    w[2] = -a * u * c / 2.0;
    w[3] = a * u * b / 6.0;
}

/* The first column of cells that a window may touch. */
INLINE whole first_column(const Input *in, const Window *w, whole x0)
{
    whole from = most(most(w->out_x0, x0), in->origin_x) - in->origin_x;
    return from >> in->shift;
}

/* For each window, output row and column of cells: the cubics along x that give the coordinates,
 * lowest power first, those of x and then those of y. */
KERNEL place_rows(whole count, const Window *windows, const Input *inputs, const double *nodes,
                  whole x0, whole y0, whole rows, whole columns, double *cubics)
{
    EACH(i, count)
    {
        const Window *w = &windows[i / (rows * columns)];
        const Input *in = &inputs[w->input];
        whole y = y0 + i / columns % rows - in->origin_y;
        whole column = first_column(in, w, x0) + i % columns;
        if (y < 0 || y >> in->shift >= in->down || column >= in->across)
            continue;
        whole row = y >> in->shift, edge = (whole)1 << in->shift;
        double weights[4];
        lagrange((double)(y - (row << in->shift)) / (double)edge, weights);
        const double *first = nodes + 2 * (in->nodes + row * (in->across + 3) + column);
        for (int axis = 0; axis < 2; axis++) {
            double knots[4];
            for (int k = 0; k < 4; k++) {
                const double *node = first + 2 * k + axis;
                whole line = 2 * (in->across + 3);
                knots[k] = ((weights[0] * node[0] + weights[1] * node[line])
                            + weights[2] * node[2 * line]) + weights[3] * node[3 * line];
            }
            double a = knots[0], b = knots[1], c = knots[2], d = knots[3];
            double *out = cubics + 8 * i + 4 * axis;
            out[0] = b;
            out[1] = (c - b) - (a - 2.0 * b + c) / 3.0 - (b - 2.0 * c + d) / 6.0;
            out[2] = 0.5 * (a - 2.0 * b + c);
            out[3] = ((b - 2.0 * c + d) - (a - 2.0 * b + c)) / 6.0;
        }
    }
}

/* Coordinates are brought to whole multiples of 2^-23 px; what follows is exact. */
#define ONE ((whole)1 << 23)
#define FRACTION (ONE - 1)
#define SNAP ((whole)8)
#define ROUND 6755399441055744.0
#define FAR_PX 134217728.0
#define LEAST_TAP 1e-6f
#define REACH (TAPS == 1 ? 1 : TAPS / 2)

/* A position in a window: the pixel at or before it, as a place in the window's planes, and how far
 * past its centre it lies. */
typedef struct {
    whole index;
    float fx, fy;
} Position;

/* All that the kernels look at. */
typedef struct {
    const Window *windows;
    const Input *inputs;
    const Weighting *weightings;
    const double *gains, *offsets, *variances; /* by input, then by channel */
    const unsigned char *cells;    /* 0 empty, 1 smooth, 2 exact */
    const double *cubics, *exact;
    const int *records;
    const float *pixels;
    const float *taps;
    const int *listed; /* windows over each strip of columns */
    const int *strips; /* where those of each strip begin */
    whole x0, y0, width, rows, columns;
} Scene;

/* Columns of a strip. */
#define STRIP 256

/* Bring one coordinate into the frame and the window. Whether it was in the frame. */
INLINE int clip(double v, whole frame, whole first, whole past, whole *at)
{
    int inside = 0;
    whole fixed = -((whole)1 << 62);
    if (v < FAR_PX && v > -FAR_PX) {
        double nearest = v * (double)ONE + ROUND;
        fixed = BITS_OF_DOUBLE(nearest) - BITS_OF_DOUBLE(ROUND);
        whole beyond = fixed + SNAP;
        fixed = (beyond & FRACTION) <= 2 * SNAP ? beyond & ~FRACTION : fixed;
        inside = fixed >= -ONE / 2 - SNAP && fixed <= frame * ONE - ONE / 2 + SNAP;
    }
    whole low = most(first + REACH - 1, 0) * ONE;
    whole high = least((frame - 1) * ONE, (past - REACH) * ONE - 1);
    *at = least(most(fixed, low), high);
    return inside;
}

/* Where output pixel (x, y) falls in a window; 0 where it does not. */
INLINE int find(const Scene *s, whole number, whole x, whole y, Position *position)
{
    const Window *w = &s->windows[number];
    if (x < w->out_x0 || x >= w->out_x1)
        return 0;
    const Input *in = &s->inputs[w->input];
    whole across = x - in->origin_x, down = y - in->origin_y;
    if (across < 0 || down < 0)
        return 0;
    whole column = across >> in->shift, row = down >> in->shift;
    if (column >= in->across || row >= in->down)
        return 0;
    whole cell = row * in->across + column;
    int kind = s->cells[in->cells + cell];
    if (kind == 0)
        return 0;
    whole within = across - (column << in->shift);
    double px, py;
    if (kind == 1) {
        whole place = (number * s->rows + (y - s->y0)) * s->columns
                      + (column - first_column(in, w, s->x0));
        const double *a = s->cubics + 8 * place, *b = a + 4;
        double u = (double)within * (1.0 / (double)((whole)1 << in->shift));
        px = ((a[3] * u + a[2]) * u + a[1]) * u + a[0];
        py = ((b[3] * u + b[2]) * u + b[1]) * u + b[0];
    } else {
        whole edge = (whole)1 << in->shift;
        whole record = s->records[w->records + cell];
        const double *pair = s->exact + w->exact
                             + 2 * ((record * edge + (down - (row << in->shift))) * edge + within);
        px = pair[0];
        py = pair[1];
    }
    whole at_x, at_y;
    int inside = clip(px, in->frame_w, w->x0, w->x0 + w->width, &at_x)
                 & clip(py, in->frame_h, w->y0, w->y0 + w->height, &at_y);
    if (!inside)
        return 0;
    position->index = ((at_y >> 23) - w->y0) * w->width + ((at_x >> 23) - w->x0);
    position->fx = (float)(at_x & FRACTION) / (float)ONE;
    position->fy = (float)(at_y & FRACTION) / (float)ONE;
    return 1;
}

/* ------------------------------------------------------------------------------------ the samples */

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

#if METHOD <= LAST
/* ------------------------------------------------------------------------------ running combines
 *
 * `kept` has the running values of the block while inputs are still to come: channels, their
 * variances, the weight. `out` has the planes of the output: channels, coverage, variances.
 */
#define VALUES (CHANNELS * (1 + VARIANCE))

KERNEL run(whole count, SCENE, whole is_first, whole is_last, double *kept, float *out,
           counted *samples)
{
    OPEN_SCENE;
    EACH(i, count)
    {
        whole x = x0 + i % width, y = y0 + i / width, strip = i % width / STRIP;
        double state[VALUES], seen = 0.0;
        for (int c = 0; c < VALUES; c++)
            state[c] = is_first ? 0.0 : kept[c * count + i];
        if (!is_first)
            seen = kept[VALUES * count + i];
        for (int k = strips[strip]; k < strips[strip + 1]; k++) {
            whole number = listed[k], input = windows[number].input;
            Position p;
            if (!find(s, number, x, y, &p))
                continue;
            float values[CHANNELS];
            double weight;
            take(s, number, p, values, &weight);
#if SATURATES
            if (!IS_NAN(values[0])) {
                if (weight < 0.0 && seen > 0.0)
                    continue;
                if (weight > 0.0 && seen < 0.0) {
                    for (int c = 0; c < VALUES; c++)
                        state[c] = 0.0;
                    seen = 0.0;
                }
            }
#endif
#if VARIANCE
            float shares[CHANNELS];
            find_shares(s, number, p, values, weight, shares);
#endif
            for (int c = 0; c < CHANNELS; c++) {
                if (IS_NAN(values[c]))
                    continue;
                double v = affine(s, input, c, values[c]);
#if VARIANCE
                double noise = variances[input * CHANNELS + c] * (double)shares[c];
                double *spread = &state[CHANNELS + c];
#if METHOD == MEAN || METHOD == SUM
                *spread = *spread + weight * weight * noise;
#elif METHOD == MIN
                *spread = seen == 0.0 || v < state[c] ? noise : *spread;
#elif METHOD == MAX
                *spread = seen == 0.0 || v > state[c] ? noise : *spread;
#elif METHOD == FIRST
                *spread = seen == 0.0 ? noise : *spread;
#else
                *spread = noise;
#endif
#endif
#if METHOD == MEAN || METHOD == SUM
                state[c] = state[c] + weight * v;
#elif METHOD == MIN
                state[c] = seen == 0.0 || v < state[c] ? v : state[c];
#elif METHOD == MAX
                state[c] = seen == 0.0 || v > state[c] ? v : state[c];
#elif METHOD == FIRST
                state[c] = seen == 0.0 ? v : state[c];
#else
                state[c] = v;
#endif
            }
            if (!IS_NAN(values[0])) {
                seen += weight;
                COUNT(samples[input], 1);
            }
        }
        if (!is_last) {
            for (int c = 0; c < VALUES; c++)
                kept[c * count + i] = state[c];
            kept[VALUES * count + i] = seen;
            continue;
        }
        for (int c = 0; c < CHANNELS; c++) {
#if METHOD == MEAN
            double value = state[c] / seen;
#elif METHOD == SUM
            double value = seen < 0.0 ? -state[c] : state[c];
#else
            double value = state[c];
#endif
            out[c * count + i] = seen == 0.0 ? NOTHING : clean(value);
        }
        out[CHANNELS * count + i] = (float)(seen < 0.0 ? -seen : seen);
#if VARIANCE
        for (int c = 0; c < CHANNELS; c++) {
            double found = state[CHANNELS + c];
#if METHOD == MEAN
            found = found / (seen * seen);
#endif
            out[(CHANNELS + 1 + c) * count + i] = seen == 0.0 ? NOTHING : clean(found);
        }
#endif
    }
}
#elif METHOD == STREAM
/* ------------------------------------------------------------------------------ clipping in two sweeps
 *
 * The first finds bounds from mean and spread of the samples of each channel, the second the mean of
 * those within. Samples are compared in single precision, bounds are rounded outward to it.
 */
#define GREATEST 3.4028234663852886e38
#define ABOVE 67108864.0 /* 2^26: what a sample above the bounds adds to the numbers of rejected ones */

INLINE double as_it_counts(double v)
{
    v = v < -GREATEST ? -GREATEST : v;
    return v > GREATEST ? GREATEST : v;
}

/* The greatest single-precision number that is not above a double. */
INLINE float at_most(double value)
{
    float single = (float)value;
    if (!((double)single > value))
        return single;
    unsigned bits = BITS_OF_FLOAT(single);
    if ((bits & 0x7fffffffu) == 0)
        return FLOAT_OF_BITS(0x80000001u);
    return FLOAT_OF_BITS(bits >> 31 ? bits + 1 : bits - 1);
}

/* `kept` has mean and squares of each channel, and the number of samples, below 0 where all are
 * saturated. `out` has the lower and the upper bound of each channel. */
KERNEL moments(whole count, SCENE, double kappa_low, double kappa_high, whole is_first, whole is_last,
               double *kept, float *out)
{
    OPEN_SCENE;
    EACH(i, count)
    {
        whole x = x0 + i % width, y = y0 + i / width, strip = i % width / STRIP;
        double means[CHANNELS], squares[CHANNELS], number = 0.0;
        for (int c = 0; c < CHANNELS; c++) {
            means[c] = is_first ? 0.0 : kept[2 * c * count + i];
            squares[c] = is_first ? 0.0 : kept[(2 * c + 1) * count + i];
        }
        if (!is_first)
            number = kept[2 * CHANNELS * count + i];
        for (int k = strips[strip]; k < strips[strip + 1]; k++) {
            whole window = listed[k], input = windows[window].input;
            Position p;
            if (!find(s, window, x, y, &p))
                continue;
            float values[CHANNELS];
            double weight;
            take(s, window, p, values, &weight);
            int is_valid = !IS_NAN(values[0]);
            if (is_valid && weight < 0.0 && number > 0.0)
                continue;
            if (is_valid && weight > 0.0 && number < 0.0) {
                for (int c = 0; c < CHANNELS; c++)
                    means[c] = squares[c] = 0.0;
                number = 0.0;
            }
            double before = number < 0.0 ? -number : number;
            for (int c = 0; c < CHANNELS; c++) {
                if (IS_NAN(values[c]))
                    continue;
                double v = (double)(float)as_it_counts(affine(s, input, c, values[c]));
                double off = v - means[c];
                double mean = means[c] + off / (before + 1.0);
                squares[c] = squares[c] + off * (v - mean);
                means[c] = mean;
            }
            if (is_valid)
                number += weight < 0.0 ? -1.0 : 1.0;
        }
        if (!is_last) {
            for (int c = 0; c < CHANNELS; c++) {
                kept[2 * c * count + i] = means[c];
                kept[(2 * c + 1) * count + i] = squares[c];
            }
            kept[2 * CHANNELS * count + i] = number;
            continue;
        }
        for (int c = 0; c < CHANNELS; c++) {
            double sigma = sqrt(squares[c] / (number < 0.0 ? -number : number));
            float low = at_most(means[c] - kappa_low * sigma);
            float high = -at_most(-(means[c] + kappa_high * sigma));
            low = low > -(float)GREATEST ? low : -(float)GREATEST;
            high = high < (float)GREATEST ? high : (float)GREATEST;
            float without = number < 0.0 ? ENDLESS : NOTHING;
            out[2 * c * count + i] = number > 0.0 ? low : -without;
            out[(2 * c + 1) * count + i] = number > 0.0 ? high : without;
        }
    }
}

/* `bounds` are those of each channel, lower and upper. `kept` has sum, weight and numbers of rejected
 * samples of each channel, then variances. `out` has channels, coverage, numbers of samples below and
 * above, variances. */
#define KEPT (CHANNELS * (3 + VARIANCE))

KERNEL within(whole count, SCENE, const float *bounds, whole together, whole is_first, whole is_last,
              double *kept, float *out, counted *samples, counted *rejected)
{
    OPEN_SCENE;
    EACH(i, count)
    {
        whole x = x0 + i % width, y = y0 + i / width, strip = i % width / STRIP;
        double state[KEPT];
        for (int k = 0; k < KEPT; k++)
            state[k] = is_first ? 0.0 : kept[k * count + i];
        for (int k = strips[strip]; k < strips[strip + 1]; k++) {
            whole window = listed[k], input = windows[window].input;
            Position p;
            if (!find(s, window, x, y, &p))
                continue;
            float values[CHANNELS];
            double weight;
            take(s, window, p, values, &weight);
            /* Saturated samples count where there are no others: then there are no bounds. */
            if (weight < 0.0 && bounds[i] != -ENDLESS)
                continue;
            double size = weight < 0.0 ? -weight : weight;
            int outside = 0;
            for (int c = 0; c < CHANNELS && together; c++) {
                double v = as_it_counts(affine(s, input, c, values[c])), single = (double)(float)v;
                outside |= single < (double)bounds[2 * c * count + i]
                           || single > (double)bounds[(2 * c + 1) * count + i];
            }
#if VARIANCE
            float shares[CHANNELS];
            find_shares(s, window, p, values, weight, shares);
#endif
            for (int c = 0; c < CHANNELS; c++) {
                if (IS_NAN(values[c]))
                    continue;
                double v = as_it_counts(affine(s, input, c, values[c])), single = (double)(float)v;
                int below = single < (double)bounds[2 * c * count + i];
                int above = single > (double)bounds[(2 * c + 1) * count + i];
                double *sum = &state[3 * c], *total = sum + 1, *left_out = sum + 2;
                int is_kept = !below & !above & !outside;
                int is_new = together && is_kept && *total < 0.0;
                int stands_in = together && !is_kept && *total <= 0.0;
#if VARIANCE
                double *spread = &state[3 * CHANNELS + c];
                double noise = variances[input * CHANNELS + c] * (double)shares[c];
                *spread = (is_new ? 0.0 : *spread)
                          + (is_kept || stands_in ? size * size * noise : 0.0);
#endif
                if (is_new)
                    *sum = *total = 0.0;
                if (is_kept || stands_in) {
                    *sum = *sum + size * v;
                    *total = *total + (is_kept ? size : -size);
                }
                *left_out += below ? 1.0 : 0.0;
                *left_out += above ? ABOVE : 0.0;
                if (!is_kept)
                    COUNT(rejected[input], 1);
            }
            if (!IS_NAN(values[0]))
                COUNT(samples[input], 1);
        }
        if (!is_last) {
            for (int k = 0; k < KEPT; k++)
                kept[k * count + i] = state[k];
            continue;
        }
        double coverage = 0.0;
        for (int c = 0; c < CHANNELS; c++) {
            double sum = state[3 * c], total = state[3 * c + 1];
            double size = total < 0.0 ? -total : total;
            double left_out = total < 0.0 ? 0.0 : state[3 * c + 2];
            double greater = floor(left_out / ABOVE);
            out[c * count + i] = total == 0.0 ? NOTHING : clean(sum / size);
            out[(CHANNELS + 1 + c) * count + i] = (float)(left_out - greater * ABOVE);
            out[(2 * CHANNELS + 1 + c) * count + i] = (float)greater;
#if VARIANCE
            double spread = state[3 * CHANNELS + c];
            out[(3 * CHANNELS + 1 + c) * count + i] =
                total == 0.0 ? NOTHING : clean(spread / (total * total));
#endif
            coverage += size;
        }
        out[CHANNELS * count + i] = (float)(coverage / (double)CHANNELS);
    }
}
#else
/* ------------------------------------------------------------------------- combines of all samples
 *
 * The valid samples of a pixel lie one after the other in job order, those of a slot beside those of
 * other pixels.
 */

/* The samples of one pixel in one channel, in ascending order. */
typedef struct {
    float *first;
    whole stride;
    int count;
} Column;

#define SORTED(column, k) ((column)->first[(whole)(k) * (column)->stride])

/* Batcher's odd-even merge sort: which places are compared depends on their number alone. */
INLINE void sort(const Column *column)
{
    int n = column->count;
    for (int run = 1; run < n; run *= 2)
        for (int step = run; step > 0; step /= 2)
            for (int first = step % run; first + step < n; first += 2 * step)
                for (int low = first; low < first + step && low < n - step; low++)
                    if (low / (2 * run) == (low + step) / (2 * run)) {
                        float a = SORTED(column, low), b = SORTED(column, low + step);
                        if (b < a) {
                            SORTED(column, low) = b;
                            SORTED(column, low + step) = a;
                        }
                    }
}

INLINE double midpoint(double a, double b) { return (a + b) / 2.0; }

INLINE double middle(const Column *column, int first, int past)
{
    int low = first + (past - first - 1) / 2, high = first + (past - first) / 2;
    return midpoint((double)SORTED(column, low), (double)SORTED(column, high));
}

/* What is thought of the samples of a channel: values between these are kept, or drawn in to there,
 * or the value is known already. */
typedef struct {
    double low, high, value;
} Verdict;

#if METHOD == MEDIAN
/* The value where half of the weight is reached. The samples are sorted, their weights beside them;
 * equal values stay in job order. */
INLINE double weighted_median(const Column *column, double *weights)
{
    int n = column->count;
    double half = 0.0, below = 0.0;
    for (int k = 1; k < n; k++) {
        float value = SORTED(column, k);
        double weight = weights[(whole)k * column->stride];
        int at = k;
        for (; at > 0 && SORTED(column, at - 1) > value; at--) {
            SORTED(column, at) = SORTED(column, at - 1);
            weights[(whole)at * column->stride] = weights[(whole)(at - 1) * column->stride];
        }
        SORTED(column, at) = value;
        weights[(whole)at * column->stride] = weight;
    }
    for (int k = 0; k < n; k++)
        half += weights[(whole)k * column->stride];
    half *= 0.5;
    for (int k = 0; k + 1 < n; k++) {
        below += weights[(whole)k * column->stride];
        double off = below - half;
        if ((off < 0.0 ? -off : off) <= 1e-9 * half)
            return midpoint((double)SORTED(column, k), (double)SORTED(column, k + 1));
        if (below > half)
            return (double)SORTED(column, k);
    }
    return (double)SORTED(column, n - 1);
}
#endif

#if METHOD == KAPPA_SIGMA || METHOD == WINSORIZED
#define ROUNDS 5
#define LEAST_KEPT 2
#define DRAWN_IN 1.5
#define CORRECTION 1.134
#define SETTLED 5e-4
#define MOST_TIMES 100

/* The standard deviation of the samples from `first` to `past` about `centre`, drawn in to `reach`
 * about it; `fewer` is taken from their number. */
INLINE double spread(const Column *column, int first, int past, double centre, double reach,
                     double fewer)
{
    double sum = 0.0, squares = 0.0, n = (double)(past - first);
    for (int k = first; k < past; k++) {
        double off = (double)SORTED(column, k) - centre;
        off = off < reach ? off : reach;
        off = off > -reach ? off : -reach;
        sum += off;
        squares += off * off;
    }
    double variance = (squares - sum * sum / n) / (n > fewer ? n - fewer : n);
    return variance < 0.0 ? 0.0 : sqrt(variance);
}

INLINE double spread_of(const Column *column, int first, int past, double centre)
{
#if METHOD == KAPPA_SIGMA
    return spread(column, first, past, centre, (double)ENDLESS, 0.0);
#else
    double sigma = spread(column, first, past, centre, (double)ENDLESS, 1.0);
    for (int k = 0; k < MOST_TIMES; k++) {
        double next = CORRECTION * spread(column, first, past, centre, DRAWN_IN * sigma, 1.0);
        double change = next - sigma;
        int settles = (change < 0.0 ? -change : change) <= SETTLED * sigma;
        sigma = next;
        if (settles)
            break;
    }
    return sigma;
#endif
}

INLINE Verdict clipped(const Column *column, double low_kappa, double high_kappa)
{
    int first = 0, past = column->count;
    for (int round = 0; round < ROUNDS; round++) {
        double centre = middle(column, first, past);
        double sigma = spread_of(column, first, past, centre);
        double low = centre - low_kappa * sigma, high = centre + high_kappa * sigma;
        int from = first, to = past;
        while (from < to && (double)SORTED(column, from) < low)
            from++;
        while (from < to && (double)SORTED(column, to - 1) > high)
            to--;
        if (to - from < LEAST_KEPT || (from == first && to == past))
            break;
        first = from;
        past = to;
    }
    Verdict verdict = {(double)SORTED(column, first), (double)SORTED(column, past - 1), 0.0};
    return verdict;
}
#endif

#if METHOD == WINSOR_PERCENTILE
INLINE double quantile(const Column *column, double part)
{
    double place = part * (double)(column->count - 1);
    double low = (double)SORTED(column, (int)floor(place));
    double high = (double)SORTED(column, (int)ceil(place));
    return low + (high - low) * (place - floor(place));
}
#endif

#if METHOD == WINSORIZED_REFERENCE
#define TIMES 10
#define LEAST_SIGMA 1e-10
#define NEAR 5e-4
#define MAD_TO_SIGMA 1.4826

/* Median of the absolute deviations from a centre between the samples. */
INLINE double deviation(const Column *column, double centre)
{
    int n = column->count, above = 0;
    while (above < n && (double)SORTED(column, above) < centre)
        above++;
    int below = above;
    double before = 0.0, last = 0.0;
    for (int k = 0; k <= n / 2; k++) {
        double up = above < n ? (double)SORTED(column, above) - centre : (double)ENDLESS;
        double down = below > 0 ? centre - (double)SORTED(column, below - 1) : (double)ENDLESS;
        if (up <= down)
            above++;
        else
            below--;
        before = last;
        last = up < down ? up : down;
    }
    return n % 2 == 1 ? last : midpoint(before, last);
}

INLINE int is_near(double now, double before)
{
    double change = now - before, size = before < 0.0 ? -before : before;
    return (change < 0.0 ? -change : change) <= NEAR * (size > 1.0 ? size : 1.0);
}

INLINE double drawn(double v, Verdict to)
{
    v = v < to.low ? to.low : v;
    return v > to.high ? to.high : v;
}

/* `values` and `weights` are those of the pixel in job order, NaN where invalid. */
INLINE Verdict reference(const Column *column, double kappa, const float *values,
                         const double *weights, int depth, whole stride)
{
    Verdict bounds = {-(double)ENDLESS, (double)ENDLESS, 0.0};
    if (column->count < 2)
        return bounds;
    double centre = middle(column, 0, column->count);
    double sigma = MAD_TO_SIGMA * deviation(column, centre);
    sigma = sigma > LEAST_SIGMA ? sigma : LEAST_SIGMA;
    bounds.low = bounds.high = NO_NUMBER;
    for (int time = 0; time < TIMES; time++) {
        double low = centre - kappa * sigma, high = centre + kappa * sigma;
        if (low == bounds.low && high == bounds.high)
            break;
        bounds.low = low;
        bounds.high = high;
        double sum = 0.0, total = 0.0;
        for (int k = 0; k < depth; k++) {
            float value = values[k * stride];
            if (IS_NAN(value))
                continue;
            sum = sum + weights[k * stride] * drawn((double)value, bounds);
            total = total + weights[k * stride];
        }
        double mean = sum / total, squares = 0.0;
        total = 0.0;
        for (int k = 0; k < depth; k++) {
            float value = values[k * stride];
            if (IS_NAN(value))
                continue;
            double off = drawn((double)value, bounds) - mean, size = off < 0.0 ? -off : off;
            double huber = size > kappa * sigma ? kappa * sigma / size : 1.0;
            double weight = weights[k * stride] * huber;
            squares = squares + weight * off * off;
            total = total + weight;
        }
        double found = sqrt(squares / total);
        int settled = is_near(mean, centre) && is_near(found, sigma);
        centre = mean;
        sigma = found > LEAST_SIGMA ? found : LEAST_SIGMA;
        if (settled)
            break;
    }
    return bounds;
}
#endif

#if VARIANCE && METHOD == MEDIAN
/* What the variance of a median follows from. */
typedef struct {
    double n, squares, slope, total, lightest, heaviest, of_heaviest;
} Medians;

INLINE void add_to_medians(Medians *m, double weight, double variance)
{
    int is_first = m->n == 0.0;
    if (is_first || weight > m->heaviest) {
        m->heaviest = weight;
        m->of_heaviest = variance;
    }
    m->lightest = is_first || weight < m->lightest ? weight : m->lightest;
    m->n += 1.0;
    m->squares += weight * weight;
    m->slope += weight / sqrt(variance);
    m->total += variance;
}

#define PI 3.14159265358979323846264338327950288
#define HALF_PI 1.57079632679489661923132169163975144

/* The variance of the median of n equal normal variates over pi/(2n). */
INLINE double few(double n)
{
    int is_odd = n - 2.0 * floor(n / 2.0) == 1.0;
    double c = is_odd ? 2.0 - HALF_PI + (PI - 3.0) / n : 3.0 - HALF_PI - (10.0 - 3.0 * PI) / n;
    return n / (n + c);
}

INLINE double variance_of_median(const Medians *m)
{
    int are_alike = m->lightest == m->heaviest;
    double of_many = HALF_PI * m->squares / (m->slope * m->slope);
    if (m->n == 0.0)
        return NO_NUMBER;
    if (m->n <= 2.0 && are_alike)
        return m->total / (m->n * m->n);
    if (m->n == 2.0)
        return m->of_heaviest;
    return are_alike ? of_many * few(m->n) : of_many;
}
#endif

/* Pixels `from` on of a step, `count` of them, with room for `depth` samples each: `values` by channel
 * and slot, as are `shares` of noise, `weights` and `sources` by slot, `sorted` and `beside` by slot
 * for one channel. `out` has, with a distance of `area`: channels, coverage, for methods that reject
 * the numbers of samples below and above, by channel, and variances. */
#define FIRST_VARIANCE ((METHOD == MEDIAN ? 1 : 3) * CHANNELS + 1)

KERNEL stack(whole count, SCENE, whole from, whole area, whole depth, double kappa_low,
             double kappa_high, double winsor_low, double winsor_high, whole together,
             whole has_maps, whole weights_differ, float *values, double *weights, int *sources,
             float *sorted, double *beside, float *shares, float *out, counted *samples,
             counted *rejected)
{
    OPEN_SCENE;
    EACH(i, count)
    {
        whole pixel = from + i;
        whole x = x0 + pixel % width, y = y0 + pixel / width, strip = pixel % width / STRIP;
        int n = 0;
        double side = 0.0; /* above 0 with samples that are not saturated, below 0 with others */
        for (int k = strips[strip]; k < strips[strip + 1]; k++) {
            whole number = listed[k], input = windows[number].input;
            Position p;
            if (!find(s, number, x, y, &p))
                continue;
            float taken[CHANNELS];
            double weight;
            take(s, number, p, taken, &weight);
            int is_valid = !IS_NAN(taken[0]);
#if SATURATES
            if (is_valid) {
                if (weight < 0.0 && side > 0.0)
                    continue;
                if (weight > 0.0 && side < 0.0)
                    n = 0;
                side = weight < 0.0 ? -1.0 : 1.0;
            }
#endif
#if VARIANCE
            float noises[CHANNELS];
            find_shares(s, number, p, taken, weight, noises);
            for (int c = 0; c < CHANNELS; c++)
                shares[(c * depth + n) * count + i] = noises[c];
#endif
            int some = 0;
            for (int c = 0; c < CHANNELS; c++) {
                double v = affine(s, input, c, taken[c]);
                v = v < -3.4028234663852886e38 ? -3.4028234663852886e38 : v;
                v = v > 3.4028234663852886e38 ? 3.4028234663852886e38 : v;
                values[(c * depth + n) * count + i] = (float)v;
                some |= !IS_NAN(taken[c]);
            }
            double size = weight < 0.0 ? -weight : weight;
            weights[n * count + i] = has_maps ? (double)(float)size : weightings[input].weight;
            sources[n * count + i] = (int)input;
            if (is_valid)
                COUNT(samples[input], 1);
            n += some;
        }
        Verdict verdicts[CHANNELS];
        for (int c = 0; c < CHANNELS; c++) {
            const float *mine = values + c * depth * count + i;
            Column column = {sorted + i, count, 0};
            for (int k = 0; k < n; k++)
                if (!IS_NAN(mine[k * count])) {
                    SORTED(&column, column.count) = mine[k * count];
#if METHOD == MEDIAN
                    beside[column.count * count + i] = weights[k * count + i];
#endif
                    column.count++;
                }
            Verdict verdict = {NO_NUMBER, NO_NUMBER, NO_NUMBER};
            if (column.count > 0) {
#if METHOD == MEDIAN
                if (weights_differ)
                    verdict.value = weighted_median(&column, beside + i);
                else {
                    sort(&column);
                    verdict.value = middle(&column, 0, column.count);
                }
#else
                sort(&column);
#if METHOD == WINSOR_PERCENTILE
                verdict.low = quantile(&column, winsor_low);
                verdict.high = quantile(&column, 1.0 - winsor_high);
#elif METHOD == WINSORIZED_REFERENCE
                verdict = reference(&column, kappa_low, mine, weights + i, n, count);
#else
                verdict = clipped(&column, kappa_low, kappa_high);
#endif
#endif
            }
            verdicts[c] = verdict;
        }
#if METHOD == KAPPA_SIGMA || METHOD == WINSORIZED
        /* Only samples that every channel keeps; where there are none, all. */
        int agreed = together && CHANNELS > 1, some = 0;
        for (int k = 0; agreed && k < n; k++) {
            int keeps = 1;
            for (int c = 0; c < CHANNELS; c++) {
                double v = (double)values[(c * depth + k) * count + i];
                keeps &= v >= verdicts[c].low && v <= verdicts[c].high;
            }
            some |= keeps;
        }
        if (agreed && !some)
            for (int c = 0; c < CHANNELS; c++) {
                verdicts[c].low = -(double)ENDLESS;
                verdicts[c].high = (double)ENDLESS;
            }
#endif
        double coverage = 0.0;
        for (int c = 0; c < CHANNELS; c++) {
            double sum = 0.0, total = 0.0;
            float below = 0.0f, above = 0.0f;
#if VARIANCE
            double noise_sum = 0.0;
#endif
#if VARIANCE && METHOD == MEDIAN
            Medians medians = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
#endif
            for (int k = 0; k < n; k++) {
                float value = values[(c * depth + k) * count + i];
                double weight = weights[k * count + i], v = (double)value;
                int counts = !IS_NAN(value), is_below = 0, is_above = 0;
                if (!counts)
                    continue;
#if METHOD == MEDIAN
                v = 0.0;
#else
                is_below = v < verdicts[c].low;
                is_above = v > verdicts[c].high;
#if METHOD == KAPPA_SIGMA || METHOD == WINSORIZED
                for (int other = 0; agreed && some && other < CHANNELS; other++) {
                    double its = (double)values[(other * depth + k) * count + i];
                    counts &= its >= verdicts[other].low && its <= verdicts[other].high;
                }
                counts &= !is_below & !is_above;
#else
                v = is_below ? verdicts[c].low : v;
                v = is_above ? verdicts[c].high : v;
#endif
                if ((!counts) | is_below | is_above)
                    COUNT(rejected[sources[k * count + i]], 1);
#endif
#if VARIANCE
                double noise = variances[sources[k * count + i] * CHANNELS + c]
                               * (double)shares[(c * depth + k) * count + i];
                noise_sum += counts ? weight * weight * noise : 0.0;
#endif
#if VARIANCE && METHOD == MEDIAN
                add_to_medians(&medians, weight, noise);
#endif
                sum += counts ? weight * v : 0.0;
                total += counts ? weight : 0.0;
                below += is_below ? 1.0f : 0.0f;
                above += is_above ? 1.0f : 0.0f;
            }
#if METHOD == MEDIAN
            out[c * area + pixel] = clean(verdicts[c].value);
#else
            out[c * area + pixel] = clean(sum / total);
            out[(CHANNELS + 1 + c) * area + pixel] = below;
            out[(2 * CHANNELS + 1 + c) * area + pixel] = above;
#endif
#if VARIANCE && METHOD == MEDIAN
            out[(FIRST_VARIANCE + c) * area + pixel] = clean(variance_of_median(&medians));
#elif VARIANCE
            out[(FIRST_VARIANCE + c) * area + pixel] = clean(noise_sum / (total * total));
#endif
            coverage += total / (double)CHANNELS;
        }
        out[CHANNELS * area + pixel] = (float)coverage;
    }
}
#endif
