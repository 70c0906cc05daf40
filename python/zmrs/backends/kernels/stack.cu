/* Combines of all samples of a pixel. */

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
                double v = as_it_counts(affine(s, input, c, taken[c]));
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
