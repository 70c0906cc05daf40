/* Clipping in two sweeps over the inputs.
 *
 * The first finds bounds from mean and spread of the samples of each channel, the second the mean of
 * those within. Samples are compared in single precision, bounds are rounded outward to it.
 */
#define ABOVE 67108864.0 /* 2^26: what a sample above the bounds adds to the numbers of rejected ones */

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
