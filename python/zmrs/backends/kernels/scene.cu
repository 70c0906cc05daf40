/* A pass on a device: what its kernels look at.
 *
 * One thread computes one pixel of the output from all inputs that cover it, in job order, with the
 * arithmetic of the engine and in its order: doubles for coordinates, weights and sums, singles for
 * samples, no operation fused.  So the bits are those of the engine.
 *
 * The texts of a pass follow each other: `common`, this one, `decode`, `positions`, `samples`, and the
 * one or two of its method.  They expect
 *
 *   CHANNELS   planes of an image
 *   TAPS       1 nearest, 2 bilinear, 4 bicubic or Lanczos-2, 6 Lanczos-3
 *   METHOD     one of the numbers below
 *   SATURATES  1 where samples of some inputs give way to those of others, else 0
 *   VARIANCE   1 where the variance of every pixel is wanted, else 0
 *   STRIP      output columns for which the windows over them are listed together
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

/* The tables.  Every field has eight bytes, so that the host writes them as two arrays, of wholes and
 * of doubles. */

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
