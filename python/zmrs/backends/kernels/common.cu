/* What all kernels begin with: the words in which they are written.
 *
 * The text is C that CUDA understands too.  A C compiler makes loops of the threads, and that is how
 * it is tested where there is no device.
 */

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__
#define EACH(i, count)                                                       \
    for (whole i = blockIdx.x * (whole)blockDim.x + threadIdx.x; i < count;  \
         i += gridDim.x * (whole)blockDim.x)
#define COUNT(counter, n) atomicAdd(&(counter), (unsigned long long)(n))
#define COUNT32(counter, n) atomicAdd(&(counter), (unsigned)(n))
#define LEAST32(least, v) atomicMin(&(least), (unsigned)(v))
#define BITS_OF_DOUBLE(v) __double_as_longlong(v)
#define BITS_OF_FLOAT(v) __float_as_uint(v)
#define FLOAT_OF_BITS(v) __uint_as_float(v)
#else
#include <math.h>
#include <string.h>
#define KERNEL void
#define INLINE static inline
#define EACH(i, count) for (whole i = 0; i < count; i++)
#define COUNT(counter, n) ((counter) += (unsigned long long)(n))
#define COUNT32(counter, n) ((counter) += (unsigned)(n))
#define LEAST32(least, v) ((least) = (unsigned)(v) < (least) ? (unsigned)(v) : (least))
static inline long long BITS_OF_DOUBLE(double v) { long long bits; memcpy(&bits, &v, 8); return bits; }
static inline unsigned BITS_OF_FLOAT(float v) { unsigned bits; memcpy(&bits, &v, 4); return bits; }
static inline float FLOAT_OF_BITS(unsigned bits) { float v; memcpy(&v, &bits, 4); return v; }
#endif

typedef long long whole;
typedef unsigned long long counted;

#define NOTHING FLOAT_OF_BITS(0x7fc00000u)
#define NO_NUMBER ((double)NOTHING)
#define ENDLESS FLOAT_OF_BITS(0x7f800000u)
#define IS_NAN(v) ((v) != (v))

INLINE whole least(whole a, whole b) { return a < b ? a : b; }
INLINE whole most(whole a, whole b) { return a > b ? a : b; }
