/* Where the pixels of the output fall in the windows of the inputs. */

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
