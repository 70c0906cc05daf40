/* What was loaded of the inputs, as pixels and weights. */

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
