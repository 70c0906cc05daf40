/* Combines that need running values only.
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
