/* Integer kernels in C99, from which emit_c.py builds a model's header.

In: int8 activations as rows, columns, channels; constants in the order in which a kernel reads them. Out: int8 activations, equal in
every bit to minitl/reference_int8.py, on every processor.

The inner loops exist up to three times: in portable C, with the DSP instructions of Cortex-M4, M7 and M33 (MINITL_DSP), and with the
vectors of Cortex-M55 and M85 (MINITL_HELIUM). The compiler's own macros choose; define MINITL_PORTABLE for the first one everywhere.

This file compiles as it is; in a header, minitl_ and MINITL_ become the model's own prefix and only the sections that the network
needs are taken. A section begins with a line "== name (needs others) ==". Rules for all of them:
- No overflow: the Python side has proved for every possible image that all sums and products fit the types used here.
- No undefined behaviour, no shift of a negative number to the left. Shifts of negative numbers to the right round down on every
  known compiler; C99 leaves that open, so a declaration below refuses to compile where they do not.
- No malloc, no float, no library: nothing but <stdint.h> and the compiler's header of the instructions used. int may have 16 bits.
- An output may overlap an input that is not needed any more, as memory.py allows: what a kernel reads and writes in which order
  is part of its contract, stated above it. Scratch memory is the caller's.
*/
#include <stdint.h>

/* What the network needs, as the header says; everything if it says nothing. */
#ifndef MINITL_LEFT_SHIFTS
#define MINITL_LEFT_SHIFTS 1 /* some factor of requantisation is 1 or more */
#define MINITL_CLAMPS 1 /* some layer clamps its output more narrowly than int8 does */
#define MINITL_KERNEL_ZEROS 1 /* some kernel has a zero point (uint8 networks) */
#endif

/* == processor == */

#if defined(__GNUC__) && !defined(MINITL_PORTABLE) && !defined(__ARM_BIG_ENDIAN)
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define MINITL_HELIUM
#include <arm_mve.h>
#elif defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP && defined(__thumb2__)
#define MINITL_DSP /* a few instructions, each in a function of its own: arm_acle.h has them from gcc 10 on only */
#endif
#if defined(__ARM_FEATURE_SAT) && __ARM_FEATURE_SAT && defined(__thumb2__)
#define MINITL_SATURATE
#endif
#endif

/* Values of scratch memory, which is used for one thing after another. */
#ifdef __GNUC__
typedef int16_t minitl_half __attribute__((may_alias));
typedef uint32_t minitl_pair __attribute__((may_alias));
#else
typedef int16_t minitl_half;
typedef uint32_t minitl_pair;
#endif

/* A function of its own also where the compiler would copy it into its callers: in there, too few registers would be left for its
   loop, and code and stack would be larger than the header says. */
#ifdef __GNUC__
#define MINITL_APART __attribute__((noinline))
#else
#define MINITL_APART
#endif

/* Nor in two versions for two callers, as gcc makes them. */
#if defined(__GNUC__) && !defined(__clang__)
#define MINITL_ONCE __attribute__((noinline, noclone))
#else
#define MINITL_ONCE MINITL_APART
#endif

typedef char minitl_needs_arithmetic_shifts[((int32_t)-5 >> 1) == -3 && ((int64_t)-5 >> 1) == -3 ? 1 : -1];

/* == round (needs processor) == */

/* a * multiplier * 2^-(31 + right) in integers, with TFLite's two roundings: in the high half of the product (halves up), then in
   the shift to the right (halves away from zero). A negative `right` is a shift to the left, before the product.
   |a| * 2^left < 2^30 - 2^8 (room for zero points), 0 <= multiplier < 2^31, -30 <= right <= 31. */
static inline int32_t minitl_requantise(int32_t a, int32_t multiplier, int32_t right)
{
    int32_t product;
#if MINITL_LEFT_SHIFTS
    if (right < 0) {
        a *= (int32_t)1 << -right;
        right = 0;
    }
#endif
    product = (int32_t)(((int64_t)a * multiplier + ((int64_t)1 << 30)) >> 31);
    return (((product * 2 + (product >> 31)) >> right) + 1) >> 1;
}

/* == clamp (needs processor) == */

/* a / 2, rounded down, clamped to low..high, within int8. */
static inline int8_t minitl_clamp_half(int32_t a, int32_t low, int32_t high)
{
#if MINITL_CLAMPS
    a >>= 1;
    return (int8_t)(a < low ? low : a > high ? high : a);
#elif defined(MINITL_SATURATE)
    (void)low;
    (void)high;
    __asm__("ssat %0, #8, %1, asr #1" : "=r"(a) : "r"(a) : "cc");
    return (int8_t)a;
#else
    (void)low;
    (void)high;
    a >>= 1;
    return (int8_t)(a < -128 ? -128 : a > 127 ? 127 : a);
#endif
}

/* a, clamped. */
static inline int8_t minitl_clamp(int32_t a, int32_t low, int32_t high)
{
    return (int8_t)(a < low ? low : a > high ? high : a);
}

/* == narrow (needs round, clamp) == */

/* A sum becomes an output: requantised, moved by the zero point (odd = 2 * zero point + 1, which rounds as well), clamped.
   twice: the multiplier doubled, minus 2^32; so that the high half of one product, plus a, is the product that minitl_requantise has. */
static inline int8_t minitl_narrow(int32_t a, int32_t twice, int32_t right, int32_t odd, int32_t low, int32_t high)
{
    int32_t product;
#if MINITL_LEFT_SHIFTS
    if (right < 0) {
        a *= (int32_t)1 << -right;
        right = 0;
    }
#endif
#ifdef MINITL_DSP
    __asm__("smmlar %0, %1, %2, %1" : "=r"(product) : "r"(a), "r"(twice));
#else
    product = (int32_t)(((int64_t)a * twice + ((int64_t)1 << 31)) >> 32) + a;
#endif
    return minitl_clamp_half(((product * 2 + (product >> 31)) >> right) + odd, low, high);
}

#ifdef MINITL_HELIUM
/* Four at once; minus_right is -right. */
static inline int32x4_t minitl_narrow4(int32x4_t a, int32x4_t twice, int32x4_t minus_right, int32_t zero, int32_t low, int32_t high)
{
    int32x4_t product, away;
#if MINITL_LEFT_SHIFTS
    a = vshlq_s32(a, vmaxq_s32(minus_right, vdupq_n_s32(0)));
    minus_right = vminq_s32(minus_right, vdupq_n_s32(0));
#endif
    product = vaddq_s32(vrmulhq_s32(a, twice), a);
    away = vshrq_n_s32(vandq_s32(product, minus_right), 31); /* -1 where both are negative: halves go away from zero */
    a = vaddq_n_s32(vrshlq_s32(vaddq_s32(product, away), minus_right), zero);
    return vminq_s32(vmaxq_s32(a, vdupq_n_s32(low)), vdupq_n_s32(high));
}
#endif

/* == window == */

/* A window that moves over an image: sizes, steps, rows and columns of padding, zero points, clamp of the output. */
typedef struct {
    int16_t in_height, in_width, in_channels;
    int16_t out_height, out_width, out_channels;
    int16_t height, width, stride_down, stride_across, top, left;
    int16_t in_zero, kernel_zero, out_zero, low, high;
} minitl_window;

/* The part first..last (last excluded) of a window of `size` pixels at `start` that lies inside 0..limit; both count from start. */
static inline int32_t minitl_first(int32_t start)
{
    return start < 0 ? -start : 0;
}

static inline int32_t minitl_last(int32_t start, int32_t size, int32_t limit)
{
    return start + size > limit ? limit - start : size;
}

/* == words (needs processor) == */

#ifdef MINITL_DSP
/* Two words at `from`, which then moves on by `step` bytes. Volatile keeps the order of the loads: with all of them first, as compilers
   like it, there are too few registers. */
#define MINITL_LOAD(a, b, from, step) __asm__ volatile("ldrd %0, %1, [%2], #" #step : "=&r"(a), "=&r"(b), "+r"(from)::"memory")

/* Four bytes, or two halves, at any address. */
static inline uint32_t minitl_word(const void *at)
{
    uint32_t word;
    __builtin_memcpy(&word, at, 4);
    return word;
}

/* Bytes 0 and 2 of a word as two signed halves. */
static inline uint32_t minitl_even(uint32_t word)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1" : "=r"(halves) : "r"(word));
    return halves;
}

/* Bytes 1 and 3 of a word as two signed halves. */
static inline uint32_t minitl_odd(uint32_t word)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(word));
    return halves;
}

/* sum + low half of a * low half of b + high half of a * high half of b; it never overflows, so that the flag of it stays as it is. */
static inline int32_t minitl_both(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t total;
    __asm__("smlad %0, %1, %2, %3" : "=r"(total) : "r"(a), "r"(b), "r"(sum));
    return total;
}

/* sum + low half of a * high half of b. */
static inline int32_t minitl_cross(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t total;
    __asm__("smlabt %0, %1, %2, %3" : "=r"(total) : "r"(a), "r"(b), "r"(sum));
    return total;
}
#endif

/* == bytes (needs words) == */

/* In a short loop: keeps it one, where compilers would call memcpy or memset. */
#ifdef __GNUC__
#define MINITL_LOOP __asm__ volatile("")
#else
#define MINITL_LOOP
#endif

static inline int8_t *minitl_copy(int8_t *to, const int8_t *from, int32_t count)
{
#ifdef MINITL_DSP
    for (; count >= 4; count -= 4, from += 4, to += 4) {
        const uint32_t word = minitl_word(from);
        __builtin_memcpy(to, &word, 4);
        MINITL_LOOP;
    }
#elif defined(MINITL_HELIUM)
    int8_t *const end = to + count;
    for (; count > 0; count -= 16, from += 16, to += 16) {
        const mve_pred16_t some = vctp8q((uint32_t)count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
    }
    to = end;
#endif
    for (; count > 0; count--) {
        *to++ = *from++;
        MINITL_LOOP;
    }
    return to;
}

static inline int8_t *minitl_fill(int8_t *to, int32_t value, int32_t count)
{
#ifdef MINITL_HELIUM
    int8_t *const end = to + count;
    for (; count > 0; count -= 16, to += 16) {
        vstrbq_p_s8(to, vdupq_n_s8((int8_t)value), vctp8q((uint32_t)count));
    }
    to = end;
#endif
    for (; count > 0; count--) {
        *to++ = (int8_t)value;
        MINITL_LOOP;
    }
    return to;
}

/* == widen (needs words) == */

#ifdef MINITL_DSP
/* Two pixels as halves, in the order in which minitl_matrix takes them: values 0 and 2, 1 and 3 of p, the same of q, and so on;
   zeros up to a multiple of 8. */
static MINITL_APART void minitl_widen(const int8_t *p, const int8_t *q, int32_t count, minitl_pair *to)
{
    int32_t k, i;
    for (k = 0; k < count || (k & 7) != 0; k += 4, to += 4) {
        uint32_t a = 0, b = 0;
        if (k + 4 <= count) {
            a = minitl_word(p + k);
            b = minitl_word(q + k);
        } else {
            for (i = 0; k + i < count; i++) {
                a |= (uint32_t)(uint8_t)p[k + i] << 8 * i;
                b |= (uint32_t)(uint8_t)q[k + i] << 8 * i;
            }
        }
        to[0] = minitl_even(a);
        to[1] = minitl_odd(a);
        to[2] = minitl_even(b);
        to[3] = minitl_odd(b);
    }
}
#endif

/* == dot (needs words) == */

/* sum + the products of `count` values. */
static inline int32_t minitl_dot(const int8_t *x, const int8_t *w, int32_t count, int32_t sum)
{
#if defined(MINITL_HELIUM)
    for (; count > 0; count -= 16, x += 16, w += 16) {
        const mve_pred16_t some = vctp8q((uint32_t)count);
        sum = vmladavaq_s8(sum, vldrbq_z_s8(x, some), vldrbq_z_s8(w, some));
    }
#elif defined(MINITL_DSP)
    for (; count >= 4; count -= 4, x += 4, w += 4) {
        const uint32_t a = minitl_word(x), b = minitl_word(w);
        sum = minitl_both(minitl_even(a), minitl_even(b), sum);
        sum = minitl_both(minitl_odd(a), minitl_odd(b), sum);
    }
#endif
    for (; count > 0; count--) {
        sum += (int32_t)*x++ * *w++;
    }
    return sum;
}

/* == outputs (needs narrow, words) == */

/* A kernel's numbers, from some output on: weights, bias, doubled multiplier, shift to the right. */
typedef struct {
    const int8_t *kernel;
    const int32_t *bias, *twice;
    const int8_t *right;
} minitl_kernel;

/* Two pixels times `groups` groups of outputs, so that each load serves several products: groups of four with vectors, else of two.
   x and z: the pixels, with vectors filled up with zeros to a multiple of 16; with DSP x is minitl_widen's values of both.
   Added to every sum: start_x, start_z. */
#ifdef MINITL_HELIUM
#define MINITL_GROUP 4
/* Loads of weights may reach 8 bytes into the next row: its products with zeros vanish, and the last row has 8 bytes more behind it. */
static MINITL_APART void minitl_groups(const int8_t *x, const int8_t *z, int32_t inputs, int32_t groups, minitl_kernel k, int8_t
                                       *to, int8_t *also, int32_t start_x, int32_t start_z, int32_t zero, int32_t low, int32_t high)
{
    const int32_t row = (inputs + 7) & ~(int32_t)7;
    for (; groups > 0; groups--) {
        int32_t sums[8], half, n;
        for (half = 0; half < 4; half += 2, k.kernel += 2 * row) { /* two outputs at a time: more have no room in the registers */
            const int8_t *u = x, *v = z, *w = k.kernel, *o = w + row;
            int32_t a = start_x, b = start_x, c = start_z, d = start_z;
            for (n = inputs; n > 0; n -= 16, u += 16, v += 16, w += 16, o += 16) {
                const int8x16_t values = vldrbq_s8(u), others = vldrbq_s8(v), one = vldrbq_s8(w), two = vldrbq_s8(o);
                a = vmladavaq_s8(a, values, one);
                b = vmladavaq_s8(b, values, two);
                c = vmladavaq_s8(c, others, one);
                d = vmladavaq_s8(d, others, two);
            }
            sums[half] = a, sums[half + 1] = b, sums[half + 4] = c, sums[half + 5] = d;
        }
        {
            const int32x4_t first = vldrwq_s32(sums), second = vldrwq_s32(sums + 4);
            const int32x4_t bias = vldrwq_s32(k.bias), twice = vldrwq_s32(k.twice), minus_right = vnegq_s32(vldrbq_s32(k.right));
            vstrbq_s32(to, minitl_narrow4(vaddq_s32(bias, first), twice, minus_right, zero, low, high));
            vstrbq_s32(also, minitl_narrow4(vaddq_s32(bias, second), twice, minus_right, zero, low, high));
        }
        k.bias += 4;
        k.twice += 4;
        k.right += 4;
        to += 4;
        also += 4;
    }
}
#else
#define MINITL_GROUP 2
static MINITL_APART void minitl_groups(const void *x, const int8_t *z, int32_t inputs, int32_t groups, minitl_kernel k, int8_t *to,
                                       int8_t *also, int32_t start_x, int32_t start_z, int32_t zero, int32_t low, int32_t high)
{
    const int32_t odd = 2 * zero + 1;
    const int32_t row = (inputs + 7) & ~(int32_t)7;
    const int8_t *v = k.kernel;
    do {
        int32_t pv = k.bias[0] + start_x, pw = k.bias[1] + start_x, qv = k.bias[0] + start_z, qw = k.bias[1] + start_z;
        int32_t factor, right;
        const int8_t *w = v + row;
#ifdef MINITL_DSP
        const minitl_pair *e = (const minitl_pair *)x, *const end = e + row;
        (void)z;
#define MINITL_STEP(i) \
    { \
        uint32_t a, b, c, d, s, u; \
        MINITL_LOAD(a, b, e, 8); \
        MINITL_LOAD(c, d, e, 8); \
        s = minitl_word(v + i); \
        u = minitl_even(s); \
        pv = minitl_both(a, u, pv); \
        qv = minitl_both(c, u, qv); \
        u = minitl_odd(s); \
        pv = minitl_both(b, u, pv); \
        qv = minitl_both(d, u, qv); \
        s = minitl_word(w + i); \
        u = minitl_even(s); \
        pw = minitl_both(a, u, pw); \
        qw = minitl_both(c, u, qw); \
        u = minitl_odd(s); \
        pw = minitl_both(b, u, pw); \
        qw = minitl_both(d, u, qw); \
    }
        do {
            MINITL_STEP(0)
            MINITL_STEP(4)
            v += 8, w += 8;
        } while (e != end);
#else
        const int8_t *p = (const int8_t *)x, *q = z;
        int32_t n;
#define MINITL_STEP(i) \
    { \
        const int32_t a = p[i], b = q[i], s = v[i], t = w[i]; \
        pv += a * s; \
        pw += a * t; \
        qv += b * s; \
        qw += b * t; \
    }
        for (n = inputs; n >= 4; n -= 4) {
            MINITL_STEP(0)
            MINITL_STEP(1)
            MINITL_STEP(2)
            MINITL_STEP(3)
            p += 4, q += 4, v += 4, w += 4;
        }
        for (; n > 0; n--) {
            MINITL_STEP(0)
            p++, q++, v++, w++;
        }
        w += row - inputs;
#endif
#undef MINITL_STEP
        v = w;
        factor = k.twice[0], right = k.right[0];
        pv = minitl_narrow(pv, factor, right, odd, low, high);
        qv = minitl_narrow(qv, factor, right, odd, low, high);
        factor = k.twice[1], right = k.right[1];
        pw = minitl_narrow(pw, factor, right, odd, low, high);
        qw = minitl_narrow(qw, factor, right, odd, low, high);
        k.bias += 2;
        k.twice += 2;
        k.right += 2;
        to[0] = (int8_t)pv;
        to[1] = (int8_t)pw;
        also[0] = (int8_t)qv;
        also[1] = (int8_t)qw;
        to += 2;
        also += 2;
    } while (--groups > 0);
}
#endif

/* == matrix (needs outputs, window, widen, bytes, dot) == */

/* Two pixels p and q of `inputs` values, times the kernels of all outputs: kernel[output][inputs, filled up with zeros to a multiple
   of 8]; the bias has the input's zero point folded in. A pixel without a partner is its own.
   scratch: 4 * (inputs rounded up to 8) bytes, at a multiple of 4. Reads p and q while it writes `to` and `also`. */
static void minitl_matrix(const int8_t *p, const int8_t *q, int8_t *to, int8_t *also, int32_t inputs, const
                                       minitl_window *g, minitl_kernel k, void *scratch)
{
    const int32_t outputs = g->out_channels, zero = g->out_zero, low = g->low, high = g->high;
    int32_t start_p = 0, start_q = 0, n;
#if MINITL_KERNEL_ZEROS
    for (n = 0; n < inputs; n++) {
        start_p -= (int32_t)p[n] * g->kernel_zero;
        start_q -= (int32_t)q[n] * g->kernel_zero;
    }
#endif
    if (outputs < MINITL_GROUP) {
        for (n = 0; n < outputs; n++, k.kernel += (inputs + 7) & ~(int32_t)7) {
            const int32_t one = minitl_dot(p, k.kernel, inputs, k.bias[n] + start_p);
            const int32_t two = minitl_dot(q, k.kernel, inputs, k.bias[n] + start_q);
            to[n] = minitl_narrow(one, k.twice[n], k.right[n], 2 * zero + 1, low, high);
            also[n] = minitl_narrow(two, k.twice[n], k.right[n], 2 * zero + 1, low, high);
        }
        return;
    }
#if defined(MINITL_DSP)
    minitl_widen(p, q, inputs, (minitl_pair *)scratch);
    p = (const int8_t *)scratch;
#elif defined(MINITL_HELIUM)
    if (inputs & 15) { /* copies, with zeros behind them */
        int8_t *const copy = (int8_t *)scratch;
        const int32_t full = (inputs + 15) & ~(int32_t)15;
        minitl_fill(minitl_copy(copy, p, inputs), 0, full - inputs);
        minitl_fill(minitl_copy(copy + full, q, inputs), 0, full - inputs);
        p = copy;
        q = copy + full;
    }
#else
    (void)scratch;
#endif
    minitl_groups(p, q, inputs, outputs / MINITL_GROUP, k, to, also, start_p, start_q, zero, low, high);
    if (outputs % MINITL_GROUP != 0) { /* the last ones with those before them, once more */
        n = outputs - MINITL_GROUP;
        k.kernel += n * ((inputs + 7) & ~(int32_t)7);
        k.bias += n;
        k.twice += n;
        k.right += n;
        minitl_groups(p, q, inputs, 1, k, to + n, also + n, start_p, start_q, zero, low, high);
    }
}

/* == pointwise (needs matrix) == */

/* Convolution with a 1x1 window, two pixels at a time: an output may overlap x as long as it stays behind the pixels still needed. */
static MINITL_APART void minitl_pointwise(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t
                                          *bias, const int32_t *twice, const int8_t *right, void *scratch)
{
    const int32_t channels = g->in_channels, outputs = g->out_channels;
    const minitl_kernel k = {kernel, bias, twice, right};
    int32_t left;
    for (left = (int32_t)g->out_height * g->out_width; left > 0; left -= 2) {
        const int32_t next = left > 1 ? 1 : 0;
        minitl_matrix(x, x + next * channels, y, y + next * outputs, channels, g, k, scratch);
        x += 2 * channels;
        y += 2 * outputs;
    }
}

/* == patch (needs window, bytes) == */

/* The window's pixels at (row, column) of x, one after the other, the zero point where they lie outside. */
static MINITL_APART void minitl_patch(const int8_t *x, int8_t *to, const minitl_window *g, int32_t row, int32_t column)
{
    const int32_t channels = g->in_channels, size = g->width * channels, line = g->in_width * channels, zero = g->in_zero;
    const int32_t first = minitl_first(column) * channels, last = minitl_last(column, g->width, g->in_width) * channels;
    const int32_t above = minitl_first(row), below = minitl_last(row, g->height, g->in_height);
    int32_t i, from = row * line + column * channels;
    for (i = 0; i < g->height; i++, from += line) {
        if (i < above || i >= below || last <= first) {
            to = minitl_fill(to, zero, size);
        } else if (last - first == size) {
            to = minitl_copy(to, x + from, size);
        } else {
            to = minitl_fill(to, zero, first);
            to = minitl_copy(to, x + from + first, last - first);
            to = minitl_fill(to, zero, size - last);
        }
    }
}

/* == conv2d (needs matrix, patch) == */

/* Convolution, two pixels of a row at a time. kernel[output][row, column, channel, filled up to a multiple of 8]; the bias has the
   input's zero point folded in. scratch: 6 * (values of a window rounded up to 8) bytes. */
static MINITL_APART void minitl_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t
                                       *bias, const int32_t *twice, const int8_t *right, void *scratch)
{
    const int32_t size = (int32_t)g->height * g->width * g->in_channels, room = (size + 7) & ~(int32_t)7;
    int8_t *const patches = (int8_t *)scratch + 4 * room;
    const minitl_kernel k = {kernel, bias, twice, right};
    int32_t r, c;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        for (c = 0; c < g->out_width; c += 2) {
            const int32_t column = c * g->stride_across - g->left, next = c + 1 < g->out_width ? 1 : 0;
            minitl_patch(x, patches, g, row, column);
            if (next) {
                minitl_patch(x, patches + room, g, row, column + g->stride_across);
            }
            minitl_matrix(patches, patches + next * room, y, y + next * g->out_channels, size, g, k, scratch);
            y += (1 + next) * g->out_channels;
        }
    }
}

/* == ring (needs window) == */

/* Values of 16 bits from one row of the ring to the next; a multiple of 4, with room to read a little too far. */
static inline int32_t minitl_ring_room(const minitl_window *g)
{
    const int32_t read = ((int32_t)g->out_width - 1) * g->stride_across + g->width, written = (int32_t)g->left + g->in_width;
    return ((read > written ? read : written) + 7) & ~(int32_t)3;
}

/* `count` values of one channel of an image, widened to 16 bits. */
static MINITL_APART void minitl_ring_row(const int8_t *channel, minitl_half *to, int32_t count, int32_t channels)
{
#ifdef MINITL_HELIUM
    if (channels < 8192) {
        const uint16x8_t places = vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)channels);
        for (; count > 0; count -= 8, to += 8, channel += 8 * channels) {
            const mve_pred16_t some = vctp16q((uint32_t)count);
            vstrhq_p_s16((int16_t *)to, vldrbq_gather_offset_z_s16(channel, places, some), some);
        }
        return;
    }
#endif
    for (; count >= 4; count -= 4, to += 4) {
        to[0] = channel[0];
        to[1] = channel[channels];
        channel += 2 * channels;
        to[2] = channel[0];
        to[3] = channel[channels];
        channel += 2 * channels;
    }
    for (; count > 0; count--, channel += channels) {
        *to++ = *channel;
    }
}

/* The same for a row above or below the image. */
static MINITL_APART void minitl_ring_padding(minitl_half *to, int32_t count, int32_t zero)
{
    for (; count > 0; count--) {
        *to++ = (minitl_half)zero;
    }
}

/* == depthwise_conv2d (needs narrow, ring) == */

/* Each channel with its own window: kernel[channel][row][column]; the bias has the input's zero point folded in. Channel after
   channel, row after row, through a ring of the last rows, widened to 16 bits and padded: so y may be x itself.
   scratch: `height` rows of (left + width of x + right + 4, rounded up to 4) values of 16 bits, at a multiple of 4. */
static MINITL_APART void minitl_depthwise_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const
                                                 int32_t *bias, const int32_t *twice, const int8_t *right, void *scratch)
{
    const int32_t channels = g->in_channels, height = g->height, width = g->width, room = minitl_ring_room(g);
    const int32_t odd = 2 * g->out_zero + 1;
    minitl_half *const ring = (minitl_half *)scratch;
    int32_t k, r, c, i, j;
    for (i = 0; i < height * room; i++) {
        ring[i] = g->in_zero;
    }
    for (k = 0; k < channels; k++, kernel += height * width) {
        int32_t next = -g->top, slot = 0; /* the first row that is not in the ring yet, and where it goes: to the oldest one's place */
        int8_t *to = y + k;
        for (r = 0; r < g->out_height; r++) {
            const int32_t start = r * g->stride_down - g->top;
            for (next = next < start ? start : next; next < start + height; next++) {
                minitl_half *const row = ring + slot * room + g->left;
                if (next >= 0 && next < g->in_height) {
                    minitl_ring_row(x + next * g->in_width * channels + k, row, g->in_width, channels);
                } else {
                    minitl_ring_padding(row, g->in_width, g->in_zero);
                }
                slot = slot + 1 < height ? slot + 1 : 0;
            }
            for (c = 0; c < g->out_width; c++, to += channels) {
                const int8_t *w = kernel;
                int32_t sum = bias[k];
                for (i = slot; i < slot + height; i++) {
                    const minitl_half *p = ring + (i < height ? i : i - height) * room + c * g->stride_across;
                    for (j = 0; j < width; j++) {
                        sum += (int32_t)p[j] * (*w++ - g->kernel_zero);
                    }
                }
                *to = minitl_narrow(sum, twice[k], right[k], odd, g->low, g->high);
            }
        }
    }
}

/* == row_3x3 (needs narrow, ring, words) == */

/* What one channel needs: weights, bias, doubled multiplier, shift to the right; and what all share. */
typedef struct {
    int32_t weights[9], start, twice, right, out_zero, low, high, channels, across;
#ifdef MINITL_DSP
    uint32_t first[3], second[3]; /* of each row of the weights, as halves: columns 0 and 1, columns 1 and 2 */
#endif
} minitl_channel;

/* One row of one channel: `count` outputs, `channels` bytes apart, from three rows of the ring. */
static MINITL_APART void minitl_row_3x3(const minitl_half *p, const minitl_half *q, const minitl_half *s, int8_t *to, int32_t count,
                                        const minitl_channel *k)
{
    const int32_t channels = k->channels, across = k->across, start = k->start, twice = k->twice, right = k->right;
    const int32_t low = k->low, high = k->high, odd = 2 * k->out_zero + 1;
#ifndef MINITL_DSP
    const int32_t *const w = k->weights;
#endif
#ifdef MINITL_HELIUM
    if (count >= 4) {
        const uint32x4_t steps = vidupq_n_u32(0, 1);
        const uint32x4_t columns = vmulq_n_u32(steps, (uint32_t)across), places = vmulq_n_u32(steps, (uint32_t)channels);
        const int32x4_t factor = vdupq_n_s32(twice), minus_right = vdupq_n_s32(-right);
        int32_t c;
        for (c = 0; c < count; c += 4) {
            const int16_t *u = (const int16_t *)p, *v = (const int16_t *)q, *z = (const int16_t *)s;
            int32x4_t sum = vdupq_n_s32(start);
            c = c < count - 4 ? c : count - 4; /* the last one to three outputs with those before them, once more */
            u += c * across, v += c * across, z += c * across;
            if (across == 1) {
                sum = vmlaq_n_s32(sum, vldrhq_s32(u), w[0]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(u + 1), w[1]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(u + 2), w[2]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(v), w[3]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(v + 1), w[4]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(v + 2), w[5]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(z), w[6]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(z + 1), w[7]);
                sum = vmlaq_n_s32(sum, vldrhq_s32(z + 2), w[8]);
            } else {
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(u, columns), w[0]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(u + 1, columns), w[1]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(u + 2, columns), w[2]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(v, columns), w[3]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(v + 1, columns), w[4]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(v + 2, columns), w[5]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(z, columns), w[6]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(z + 1, columns), w[7]);
                sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_s32(z + 2, columns), w[8]);
            }
            vstrbq_scatter_offset_s32(to + c * channels, places, minitl_narrow4(sum, factor, minus_right, k->out_zero, low, high));
        }
        return;
    }
#endif
#ifdef MINITL_DSP
    const uint32_t first0 = k->first[0], first1 = k->first[1], first2 = k->first[2];
    const uint32_t second0 = k->second[0], second1 = k->second[1], second2 = k->second[2];
    uint32_t u, v;
    int32_t one, two;
    if (across == 1) {
        for (; count > 0; count -= 2) { /* two outputs from four columns */
            MINITL_LOAD(u, v, p, 4);
            one = minitl_cross(v, second0, minitl_both(u, first0, start));
            two = minitl_cross(first0, u, minitl_both(v, second0, start));
            MINITL_LOAD(u, v, q, 4);
            one = minitl_cross(v, second1, minitl_both(u, first1, one));
            two = minitl_cross(first1, u, minitl_both(v, second1, two));
            MINITL_LOAD(u, v, s, 4);
            one = minitl_cross(v, second2, minitl_both(u, first2, one));
            two = minitl_cross(first2, u, minitl_both(v, second2, two));
            *to = minitl_narrow(one, twice, right, odd, low, high);
            to += channels;
            if (count == 1) {
                break;
            }
            *to = minitl_narrow(two, twice, right, odd, low, high);
            to += channels;
        }
    } else {
        for (; count > 0; count--) {
            MINITL_LOAD(u, v, p, 4);
            one = minitl_cross(v, second0, minitl_both(u, first0, start));
            MINITL_LOAD(u, v, q, 4);
            one = minitl_cross(v, second1, minitl_both(u, first1, one));
            MINITL_LOAD(u, v, s, 4);
            one = minitl_cross(v, second2, minitl_both(u, first2, one));
            *to = minitl_narrow(one, twice, right, odd, low, high);
            to += channels;
        }
    }
#else
    for (; count > 0; count--, to += channels) {
        int32_t sum = start + p[0] * w[0] + p[1] * w[1] + p[2] * w[2];
        sum += q[0] * w[3] + q[1] * w[4] + q[2] * w[5];
        sum += s[0] * w[6] + s[1] * w[7] + s[2] * w[8];
        *to = minitl_narrow(sum, twice, right, odd, low, high);
        p += across, q += across, s += across;
    }
#endif
}

static MINITL_APART void minitl_share(minitl_channel *channel, const minitl_window *g)
{
    channel->out_zero = g->out_zero;
    channel->low = g->low;
    channel->high = g->high;
    channel->channels = g->in_channels;
    channel->across = g->stride_across;
}

static MINITL_APART void minitl_choose(minitl_channel *channel, const int8_t *kernel, int32_t kernel_zero, int32_t bias, int32_t
                                       twice, int32_t right)
{
    int32_t i;
    for (i = 0; i < 9; i++) {
        channel->weights[i] = kernel[i] - kernel_zero;
    }
#ifdef MINITL_DSP
    for (i = 0; i < 3; i++) {
        const int32_t *const w = channel->weights + 3 * i;
        channel->first[i] = ((uint32_t)w[0] & 0xffffu) | (uint32_t)w[1] << 16;
        channel->second[i] = ((uint32_t)w[1] & 0xffffu) | (uint32_t)w[2] << 16;
    }
#endif
    channel->start = bias;
    channel->twice = twice;
    channel->right = right;
}

/* == depthwise_3x3 (needs row_3x3) == */

/* minitl_depthwise_conv2d for a window of 3x3 pixels that moves by one or two columns. */
static MINITL_APART void minitl_depthwise_3x3(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const
                                              int32_t *bias, const int32_t *twice, const int8_t *right, void *scratch)
{
    const int32_t channels = g->in_channels, room = minitl_ring_room(g), width = g->in_width, height = g->in_height, left = g->left;
    const int32_t down = g->stride_down, line = width * channels, zero = g->in_zero, out_width = g->out_width;
    const int32_t last = (g->out_height - 1) * down - g->top; /* where the last window begins */
    minitl_half *const ring = (minitl_half *)scratch;
    minitl_channel channel;
    int32_t k;
    minitl_share(&channel, g);
    minitl_ring_padding(ring, 3 * room, zero);
    for (k = 0; k < channels; k++) {
        int32_t next = -g->top, from = k - g->top * line, top; /* the row that comes next, and where it begins */
        minitl_half *a = ring, *b = a + room, *c = b + room; /* the ring's rows, the oldest first */
        int8_t *to = y + k;
        minitl_choose(&channel, kernel + 9 * k, g->kernel_zero, bias[k], twice[k], right[k]);
        for (top = next; top <= last; top += down) {
            if (next < top) { /* rows that no window sees */
                from += (top - next) * line;
                next = top;
            }
            for (; next < top + 3; next++, from += line) {
                minitl_half *const oldest = a;
                if (next >= 0 && next < height) {
                    minitl_ring_row(x + from, oldest + left, width, channels);
                } else {
                    minitl_ring_padding(oldest + left, width, zero);
                }
                a = b;
                b = c;
                c = oldest;
            }
            minitl_row_3x3(a, b, c, to, out_width, &channel);
            to += out_width * channels;
        }
    }
}

/* == pointwise_depthwise_3x3 (needs matrix, row_3x3) == */

/* A pointwise convolution and a depthwise one of 3x3 that reads it, row by row: of what lies between them only three rows exist.
   y may overlap x as long as it stays behind the rows still needed. scratch: that of both kernels and the three rows. */
static MINITL_APART void minitl_pointwise_depthwise_3x3(const int8_t *x, int8_t *y, void *scratch, const minitl_window *g, const
                                                        int8_t *kernel_g, const int32_t *bias_g, const int32_t *twice_g, const
                                                        int8_t *right_g, const minitl_window *h, const int8_t *kernel_h, const
                                                        int32_t *bias_h, const int32_t *twice_h, const int8_t *right_h)
{
    const minitl_kernel mix = {kernel_g, bias_g, twice_g, right_g};
    const int32_t inputs = g->in_channels, channels = h->in_channels, width = h->in_width, height = h->in_height, line = width * channels;
    const int32_t room = minitl_ring_room(h), zero = h->in_zero;
    minitl_half *const ring = (minitl_half *)((int8_t *)scratch + 4 * ((inputs + 7) & ~(int32_t)7));
    minitl_half *const first = ring + h->left, *const second = first + room, *const third = second + room;
    int8_t *a = (int8_t *)(ring + 3 * room), *b = a + line, *c = b + line; /* the three rows, the oldest first */
    int32_t next = -h->top, r, k, i;
    minitl_channel channel;
    minitl_share(&channel, h);
    minitl_ring_padding(ring, 3 * room, zero);
    for (r = 0; r < h->out_height; r++, y += h->out_width * channels) {
        const int32_t top = r * h->stride_down - h->top;
        for (next = next < top ? top : next; next < top + 3; next++) {
            int8_t *const oldest = a;
            for (i = 0; i < width && next >= 0 && next < height; i += 2) {
                const int32_t pair = i + 1 < width ? 1 : 0;
                const int8_t *const from = x + (next * width + i) * inputs;
                int8_t *const to = oldest + i * channels;
                minitl_matrix(from, from + pair * inputs, to, to + pair * channels, inputs, g, mix, scratch);
            }
            a = b;
            b = c;
            c = oldest;
        }
        for (k = 0; k < channels; k++) {
            const int8_t *const rows[3] = {a, b, c};
            minitl_half *const places[3] = {first, second, third};
            for (i = 0; i < 3; i++) {
                if (top + i >= 0 && top + i < height) {
                    minitl_ring_row(rows[i] + k, places[i], width, channels);
                } else {
                    minitl_ring_padding(places[i], width, zero);
                }
            }
            minitl_choose(&channel, kernel_h + 9 * k, h->kernel_zero, bias_h[k], twice_h[k], right_h[k]);
            minitl_row_3x3(ring, ring + room, ring + 2 * room, y + k, h->out_width, &channel);
        }
    }
}

/* == dense (needs narrow, window, dot) == */

/* kernel[output][input, filled up with zeros to a multiple of 8]; the bias has the input's zero point folded in. */
static MINITL_APART void minitl_dense(const int8_t *x, int8_t *y, int32_t inputs, const minitl_window *g, const int8_t *kernel,
                                      const int32_t *bias, const int32_t *twice, const int8_t *right)
{
    const int32_t row = (inputs + 7) & ~(int32_t)7;
    int32_t o, start = 0;
#if MINITL_KERNEL_ZEROS
    for (o = 0; o < inputs; o++) {
        start -= (int32_t)x[o] * g->kernel_zero;
    }
#endif
    for (o = 0; o < g->out_channels; o++, kernel += row) {
        const int32_t sum = minitl_dot(x, kernel, inputs, bias[o] + start);
        y[o] = minitl_narrow(sum, twice[o], right[o], 2 * g->out_zero + 1, g->low, g->high);
    }
}

/* == average_pool (needs clamp, window) == */

/* Mean of the pixels under the window, halves away from zero; padding is not counted. */
static MINITL_APART void minitl_average_pool(const int8_t *x, int8_t *y, const minitl_window *g)
{
    int32_t r, c, k, i, j;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        const int32_t first_row = minitl_first(row), last_row = minitl_last(row, g->height, g->in_height);
        for (c = 0; c < g->out_width; c++) {
            const int32_t column = c * g->stride_across - g->left;
            const int32_t first = minitl_first(column), last = minitl_last(column, g->width, g->in_width);
            const int32_t count = (last_row - first_row) * (last - first);
            for (k = 0; k < g->in_channels; k++) {
                int32_t sum = 0;
                for (i = first_row; i < last_row; i++) {
                    for (j = first; j < last; j++) {
                        sum += x[((row + i) * g->in_width + column + j) * g->in_channels + k];
                    }
                }
                sum = sum > 0 ? (sum + count / 2) / count : -((-sum + count / 2) / count);
                *y++ = minitl_clamp(sum, g->low, g->high);
            }
        }
    }
}

/* == max_pool (needs clamp, window) == */

/* Largest value under the window; padding never wins. */
static MINITL_APART void minitl_max_pool(const int8_t *x, int8_t *y, const minitl_window *g)
{
    int32_t r, c, k, i, j;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        const int32_t first_row = minitl_first(row), last_row = minitl_last(row, g->height, g->in_height);
        for (c = 0; c < g->out_width; c++) {
            const int32_t column = c * g->stride_across - g->left;
            const int32_t first = minitl_first(column), last = minitl_last(column, g->width, g->in_width);
            for (k = 0; k < g->in_channels; k++) {
                int32_t largest = -128;
                for (i = first_row; i < last_row; i++) {
                    for (j = first; j < last; j++) {
                        const int32_t value = x[((row + i) * g->in_width + column + j) * g->in_channels + k];
                        largest = value > largest ? value : largest;
                    }
                }
                *y++ = minitl_clamp(largest, g->low, g->high);
            }
        }
    }
}

/* == global_mean (needs round, clamp) == */

/* Mean of every channel over all pixels; the division is part of the multiplier. Channel after channel: y may be x. */
static MINITL_APART void minitl_global_mean(const int8_t *x, int8_t *y, int32_t pixels, int32_t channels, int32_t multiplier,
                                            int32_t right, int32_t in_zero, int32_t out_zero)
{
    int32_t k, i;
    for (k = 0; k < channels; k++) {
        int32_t sum = 0;
        for (i = 0; i < pixels; i++) {
            sum += x[i * channels + k] - in_zero;
        }
        y[k] = minitl_clamp(minitl_requantise(sum, multiplier, right) + out_zero, -128, 127);
    }
}

/* == add (needs round, clamp) == */

/* Numbers of a sum: first input, second input, output; clamp of the output. */
typedef struct {
    int32_t zero[3], multiplier[3], right[3], low, high;
} minitl_sum;

/* a + b on three scales, by way of a common scale that is 2^20 times finer. Element after element: y may be a or b. */
static MINITL_APART void minitl_add(const int8_t *a, const int8_t *b, int8_t *y, int32_t size, const minitl_sum *s)
{
    const int32_t finer = (int32_t)1 << 20;
    int32_t k;
    for (k = 0; k < size; k++) {
        const int32_t one = minitl_requantise((a[k] - s->zero[0]) * finer, s->multiplier[0], s->right[0]);
        const int32_t two = minitl_requantise((b[k] - s->zero[1]) * finer, s->multiplier[1], s->right[1]);
        y[k] = minitl_clamp(minitl_requantise(one + two, s->multiplier[2], s->right[2]) + s->zero[2], s->low, s->high);
    }
}

/* == rescale (needs round, clamp) == */

/* The same real values on another scale and zero point, clamped. Element after element: y may be x. */
static MINITL_APART void minitl_rescale(const int8_t *x, int8_t *y, int32_t size, int32_t multiplier, int32_t right, int32_t
                                        in_zero, int32_t out_zero, int32_t low, int32_t high)
{
    int32_t k;
    for (k = 0; k < size; k++) {
        y[k] = minitl_clamp(minitl_requantise(x[k] - in_zero, multiplier, right) + out_zero, low, high);
    }
}

/* == copy_rows == */

/* `rows` rows of `size` bytes, one after the other in x, `stride` bytes apart in y. */
static MINITL_APART void minitl_copy_rows(const int8_t *x, int8_t *y, int32_t rows, int32_t size, int32_t stride)
{
    int32_t r, k;
    for (r = 0; r < rows; r++) {
        for (k = 0; k < size; k++) {
            y[r * stride + k] = x[r * size + k];
        }
    }
}

/* == pad (needs window) == */

/* The image in the middle of a larger one that is filled with the zero point. */
static MINITL_APART void minitl_pad(const int8_t *x, int8_t *y, const minitl_window *g)
{
    const int32_t channels = g->in_channels;
    int32_t r, c, k;
    for (r = -g->top; r < g->out_height - g->top; r++) {
        for (c = -g->left; c < g->out_width - g->left; c++) {
            const int inside = r >= 0 && r < g->in_height && c >= 0 && c < g->in_width;
            for (k = 0; k < channels; k++) {
                *y++ = inside ? x[(r * g->in_width + c) * channels + k] : (int8_t)g->in_zero;
            }
        }
    }
}
