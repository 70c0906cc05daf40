/* Combines of all samples of a pixel: which of them count?
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
