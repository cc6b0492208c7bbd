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
#define MINITL_DSP
#include <arm_acle.h>
#endif
#if defined(__ARM_FEATURE_SAT) && __ARM_FEATURE_SAT && defined(__thumb2__)
#define MINITL_SATURATE
#include <arm_acle.h>
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

typedef char minitl_needs_arithmetic_shifts[((int32_t)-5 >> 1) == -3 && ((int64_t)-5 >> 1) == -3 ? 1 : -1];

/* == round (needs processor) == */

/* a * multiplier / 2^31, rounded, halves up. -2^30 < a < 2^30, 0 <= multiplier < 2^31. */
static inline int32_t minitl_high(int32_t a, int32_t multiplier)
{
#ifdef MINITL_DSP
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(a * 2), "r"(multiplier));
    return high;
#else
    return (int32_t)(((int64_t)a * multiplier + ((int64_t)1 << 30)) >> 31);
#endif
}

/* 2 * a * multiplier * 2^-(31 + right) but for the last rounding: add 1 and shift by 1 to have TFLite's requantisation, which rounds
   twice: here in the high half of the product (halves up), then in the shift to the right (halves away from zero). A negative
   `right` is a shift to the left, before the product: -30 <= right <= 31. */
static inline int32_t minitl_twice(int32_t a, int32_t multiplier, int32_t right)
{
    int32_t high;
#if MINITL_LEFT_SHIFTS
    if (right < 0) {
        a *= (int32_t)1 << -right;
        right = 0;
    }
#endif
    high = minitl_high(a, multiplier);
    return (high * 2 + (high >> 31)) >> right;
}

static inline int32_t minitl_requantise(int32_t a, int32_t multiplier, int32_t right)
{
    return (minitl_twice(a, multiplier, right) + 1) >> 1;
}

/* == clamp (needs processor) == */

/* a, clamped to low..high, within int8. */
static inline int8_t minitl_clamp(int32_t a, int32_t low, int32_t high)
{
#if MINITL_CLAMPS
    return (int8_t)(a < low ? low : a > high ? high : a);
#else
    (void)low;
    (void)high;
#ifdef MINITL_SATURATE
    return (int8_t)__ssat(a, 8);
#else
    return (int8_t)(a < -128 ? -128 : a > 127 ? 127 : a);
#endif
#endif
}

/* == narrow (needs round, clamp) == */

/* A sum becomes an output: requantised, moved by the zero point (odd = 2 * zero point + 1, which rounds as well), clamped. */
static inline int8_t minitl_narrow(int32_t a, int32_t multiplier, int32_t right, int32_t odd, int32_t low, int32_t high)
{
    return minitl_clamp((minitl_twice(a, multiplier, right) + odd) >> 1, low, high);
}

#ifdef MINITL_HELIUM
/* Four at once; minus_right is -right. */
static inline int32x4_t minitl_narrow4(int32x4_t a, int32x4_t multiplier, int32x4_t minus_right, int32_t zero, int32_t low, int32_t high)
{
    int32x4_t product, away;
#if MINITL_LEFT_SHIFTS
    a = vshlq_s32(a, vmaxq_s32(minus_right, vdupq_n_s32(0)));
    minus_right = vminq_s32(minus_right, vdupq_n_s32(0));
#endif
    product = vqrdmulhq_s32(a, multiplier);
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
    return (uint32_t)__sxtb16((int8x4_t)word);
}

/* Bytes 1 and 3 of a word as two signed halves. */
static inline uint32_t minitl_odd(uint32_t word)
{
    uint32_t halves;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(halves) : "r"(word));
    return halves;
}

/* sum + low half of a * low half of b + high half of a * high half of b. */
static inline int32_t minitl_both(uint32_t a, uint32_t b, int32_t sum)
{
    return __smlad((int16x2_t)a, (int16x2_t)b, sum);
}

/* sum + low half of a * high half of b. */
static inline int32_t minitl_cross(uint32_t a, uint32_t b, int32_t sum)
{
    return __smlabt((int32_t)a, (int32_t)b, sum);
}
#endif

/* == widen (needs words) == */

#ifdef MINITL_DSP
/* Two pixels as halves, in the order in which minitl_matrix takes them: values 0 and 2, 1 and 3 of p, the same of q, and so on;
   zeros up to a multiple of 8. */
static void minitl_widen(const int8_t *p, const int8_t *q, int32_t count, minitl_pair *to)
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

/* == pairs (needs narrow, words) == */

#ifndef MINITL_HELIUM
/* A kernel's numbers, from some output on: weights, bias, multiplier, shift to the right. */
typedef struct {
    const int8_t *kernel;
    const int32_t *bias, *multiplier;
    const int8_t *right;
} minitl_kernel;

/* Two pixels times `pairs` pairs of outputs, so that each load serves two products. x: minitl_widen's values of both pixels, or with
   plain C the pixels p and q themselves. start_p, start_q: added to every sum. */
static void minitl_pairs(const void *x, const int8_t *p, const int8_t *q, int32_t inputs, int32_t pairs, minitl_kernel k, int8_t *to,
                         int8_t *also, int32_t start_p, int32_t start_q, int32_t odd, int32_t low, int32_t high)
{
    const int32_t row = (inputs + 7) & ~(int32_t)7;
    const int8_t *v = k.kernel;
    do {
        int32_t pv = k.bias[0] + start_p, pw = k.bias[1] + start_p, qv = k.bias[0] + start_q, qw = k.bias[1] + start_q;
        int32_t factor, right;
        const int8_t *w = v + row;
#ifdef MINITL_DSP
        const minitl_pair *e = (const minitl_pair *)x, *const end = e + row;
        (void)p;
        (void)q;
#define MINITL_STEP(i) \
    { \
        const uint32_t a = e[i], b = e[i + 1], c = e[i + 2], d = e[i + 3]; \
        uint32_t s = minitl_word(v + i), u = minitl_even(s); \
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
            v += 8, w += 8, e += 8;
        } while (e != end);
#else
        const int8_t *y = p, *z = q;
        int32_t n;
        (void)x;
#define MINITL_STEP(i) \
    { \
        const int32_t a = y[i], b = z[i], s = v[i], t = w[i]; \
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
            y += 4, z += 4, v += 4, w += 4;
        }
        for (; n > 0; n--) {
            MINITL_STEP(0)
            y++, z++, v++, w++;
        }
        w += row - inputs;
#endif
#undef MINITL_STEP
        v = w;
        factor = k.multiplier[0], right = k.right[0];
        pv = minitl_narrow(pv, factor, right, odd, low, high);
        qv = minitl_narrow(qv, factor, right, odd, low, high);
        factor = k.multiplier[1], right = k.right[1];
        pw = minitl_narrow(pw, factor, right, odd, low, high);
        qw = minitl_narrow(qw, factor, right, odd, low, high);
        k.bias += 2;
        k.multiplier += 2;
        k.right += 2;
        to[0] = (int8_t)pv;
        to[1] = (int8_t)pw;
        also[0] = (int8_t)qv;
        also[1] = (int8_t)qw;
        to += 2;
        also += 2;
    } while (--pairs > 0);
}
#endif

/* == matrix (needs narrow, window, widen, pairs, dot) == */

/* Two pixels p and q of `inputs` values, times the kernels of all outputs: kernel[output][inputs, filled up with zeros to a multiple
   of 8]; the bias has the input's zero point folded in. A pixel without a partner is its own.
   scratch: 4 * (inputs rounded up to 8) bytes, at a multiple of 4. Reads p and q while it writes `to` and `also`. */
static void minitl_matrix(const int8_t *p, const int8_t *q, int8_t *to, int8_t *also, int32_t inputs, const minitl_window *g,
                          const int8_t *kernel, const int32_t *bias, const int32_t *multiplier, const int8_t *right, void *scratch)
{
    const int32_t outputs = g->out_channels, row = (inputs + 7) & ~(int32_t)7;
    const int32_t low = g->low, high = g->high;
#if defined(MINITL_HELIUM)
    const int8_t *pixel = p;
    int8_t *y = to;
    int32_t turn, k, o;
    for (turn = 0; turn < (p == q ? 1 : 2); turn++, pixel = q, y = also) {
        int32_t start = 0;
#if MINITL_KERNEL_ZEROS
        for (k = 0; k < inputs; k++) {
            start -= (int32_t)pixel[k] * g->kernel_zero;
        }
#endif
        for (o = 0; o < outputs; o += 4) {
            const mve_pred16_t some = vctp32q((uint32_t)(outputs - o));
            const int32_t step = o + 4 <= outputs ? row : 0; /* the last one to three outputs: one at a time below */
            const int8_t *w = kernel + o * row;
            int32x4_t sums = vldrwq_z_s32(bias + o, some);
            int32_t a = start, b = start, c = start, d = start;
            if (step) {
                for (k = 0; k + 16 <= inputs; k += 16, w += 16) {
                    const int8x16_t x = vldrbq_s8(pixel + k);
                    a = vmladavaq_s8(a, x, vldrbq_s8(w));
                    b = vmladavaq_s8(b, x, vldrbq_s8(w + row));
                    c = vmladavaq_s8(c, x, vldrbq_s8(w + 2 * row));
                    d = vmladavaq_s8(d, x, vldrbq_s8(w + 3 * row));
                }
                if (k < inputs) {
                    const mve_pred16_t rest = vctp8q((uint32_t)(inputs - k));
                    const int8x16_t x = vldrbq_z_s8(pixel + k, rest);
                    a = vmladavaq_s8(a, x, vldrbq_z_s8(w, rest));
                    b = vmladavaq_s8(b, x, vldrbq_z_s8(w + row, rest));
                    c = vmladavaq_s8(c, x, vldrbq_z_s8(w + 2 * row, rest));
                    d = vmladavaq_s8(d, x, vldrbq_z_s8(w + 3 * row, rest));
                }
            } else {
                int32_t one[4] = {start, start, start, start};
                int32_t e;
                for (e = 0; o + e < outputs; e++, w += row) {
                    for (k = 0; k < inputs; k += 16) {
                        const mve_pred16_t rest = vctp8q((uint32_t)(inputs - k));
                        one[e] = vmladavaq_s8(one[e], vldrbq_z_s8(pixel + k, rest), vldrbq_z_s8(w + k, rest));
                    }
                }
                a = one[0], b = one[1], c = one[2], d = one[3];
            }
            {
                const int32x4_t products = {a, b, c, d};
                const int32x4_t factor = vldrwq_z_s32(multiplier + o, some);
                const int32x4_t minus_right = vnegq_s32(vldrbq_z_s32(right + o, some));
                vstrbq_p_s32(y + o, minitl_narrow4(vaddq_s32(sums, products), factor, minus_right, g->out_zero, low, high), some);
            }
        }
    }
    (void)scratch;
#else
    const int32_t odd = 2 * g->out_zero + 1;
    int32_t start_p = 0, start_q = 0;
#if MINITL_KERNEL_ZEROS
    int32_t k;
    for (k = 0; k < inputs; k++) {
        start_p -= (int32_t)p[k] * g->kernel_zero;
        start_q -= (int32_t)q[k] * g->kernel_zero;
    }
#endif
    if (outputs == 1) {
        to[0] = minitl_narrow(minitl_dot(p, kernel, inputs, bias[0] + start_p), multiplier[0], right[0], odd, low, high);
        if (p != q) {
            also[0] = minitl_narrow(minitl_dot(q, kernel, inputs, bias[0] + start_q), multiplier[0], right[0], odd, low, high);
        }
        return;
    }
#ifdef MINITL_DSP
    minitl_widen(p, q, inputs, (minitl_pair *)scratch);
#endif
    minitl_kernel k0 = {kernel, bias, multiplier, right};
    minitl_pairs(scratch, p, q, inputs, outputs / 2, k0, to, also, start_p, start_q, odd, low, high);
    if (outputs & 1) { /* the last of an odd number with the one before it, once more */
        const int32_t o = outputs - 2;
        minitl_kernel last = {kernel + o * row, bias + o, multiplier + o, right + o};
        minitl_pairs(scratch, p, q, inputs, 1, last, to + o, also + o, start_p, start_q, odd, low, high);
    }
#endif
}

/* == pointwise (needs matrix) == */

/* Convolution with a 1x1 window, two pixels at a time: an output may overlap x as long as it stays behind the pixels still needed. */
static void minitl_pointwise(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                             const int32_t *multiplier, const int8_t *right, void *scratch)
{
    const int32_t channels = g->in_channels, outputs = g->out_channels;
    int32_t left;
    for (left = (int32_t)g->out_height * g->out_width; left > 0; left -= 2) {
        const int32_t next = left > 1 ? 1 : 0;
        minitl_matrix(x, x + next * channels, y, y + next * outputs, channels, g, kernel, bias, multiplier, right, scratch);
        x += 2 * channels;
        y += 2 * outputs;
    }
}

/* == patch (needs window, words) == */

/* The window's pixels at (row, column) of x, one after the other, the zero point where they lie outside. */
static void minitl_patch(const int8_t *x, int8_t *to, const minitl_window *g, int32_t row, int32_t column)
{
    const int32_t channels = g->in_channels, size = g->width * channels;
    const int32_t from = minitl_first(column) * channels, until = minitl_last(column, g->width, g->in_width) * channels;
    int32_t i, k;
    for (i = 0; i < g->height; i++, to += size) {
        if (row + i < 0 || row + i >= g->in_height || until - from < size) {
            for (k = 0; k < size; k++) {
                to[k] = (int8_t)g->in_zero;
            }
        }
        if (row + i >= 0 && row + i < g->in_height) {
            const int8_t *source = x + ((row + i) * g->in_width + column) * channels;
            k = from;
#ifdef MINITL_DSP
            for (; k + 4 <= until; k += 4) {
                const uint32_t word = minitl_word(source + k);
                __builtin_memcpy(to + k, &word, 4);
            }
#endif
            for (; k < until; k++) {
                to[k] = source[k];
            }
        }
    }
}

/* == conv2d (needs matrix, patch) == */

/* Convolution, two pixels of a row at a time. kernel[output][row, column, channel, filled up to a multiple of 8]; the bias has the
   input's zero point folded in. scratch: 6 * (values of a window rounded up to 8) bytes. */
static void minitl_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                          const int32_t *multiplier, const int8_t *right, void *scratch)
{
    const int32_t size = (int32_t)g->height * g->width * g->in_channels, room = (size + 7) & ~(int32_t)7;
    int8_t *const patches = (int8_t *)scratch + 4 * room;
    int32_t r, c;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        for (c = 0; c < g->out_width; c += 2) {
            const int32_t column = c * g->stride_across - g->left, next = c + 1 < g->out_width ? 1 : 0;
            minitl_patch(x, patches, g, row, column);
            if (next) {
                minitl_patch(x, patches + room, g, row, column + g->stride_across);
            }
            minitl_matrix(patches, patches + next * room, y, y + next * g->out_channels, size, g, kernel, bias, multiplier, right, scratch);
            y += (1 + next) * g->out_channels;
        }
    }
}

/* == ring (needs window) == */

/* Values of 16 bits from one row of the ring to the next; a multiple of 4, with room to read a little too far. */
static inline int32_t minitl_ring_room(const minitl_window *g)
{
    const int32_t read = (g->out_width - 1) * g->stride_across + g->width, written = g->left + g->in_width;
    return ((read > written ? read : written) + 7) & ~(int32_t)3;
}

/* One channel of row `row` of an image, widened; zero points where there is no such row. */
static inline void minitl_ring_row(const int8_t *channel, minitl_half *to, const minitl_window *g, int32_t row)
{
    const int32_t channels = g->in_channels;
    int32_t c;
    if (row >= 0 && row < g->in_height) {
        channel += row * g->in_width * channels;
        for (c = g->in_width; c >= 4; c -= 4) {
            to[0] = channel[0];
            to[1] = channel[channels];
            channel += 2 * channels;
            to[2] = channel[0];
            to[3] = channel[channels];
            channel += 2 * channels;
            to += 4;
        }
        for (; c > 0; c--, channel += channels) {
            *to++ = *channel;
        }
    } else {
        for (c = g->in_width; c > 0; c--) {
            *to++ = g->in_zero;
        }
    }
}

/* == depthwise_conv2d (needs narrow, ring) == */

/* Each channel with its own window: kernel[channel][row][column]; the bias has the input's zero point folded in. Channel after
   channel, row after row, through a ring of the last rows, widened to 16 bits and padded: so y may be x itself.
   scratch: `height` rows of (left + width of x + right + 4, rounded up to 4) values of 16 bits, at a multiple of 4. */
static void minitl_depthwise_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                                    const int32_t *multiplier, const int8_t *right, void *scratch)
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
                minitl_ring_row(x + k, ring + slot * room + g->left, g, next);
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
                *to = minitl_narrow(sum, multiplier[k], right[k], odd, g->low, g->high);
            }
        }
    }
}

/* == depthwise_3x3 (needs narrow, ring, words) == */

/* The same for a window of 3x3 pixels that moves by one or two columns. */
static void minitl_depthwise_3x3(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                                 const int32_t *multiplier, const int8_t *right, void *scratch)
{
    const int32_t channels = g->in_channels, room = minitl_ring_room(g), across = g->stride_across, low = g->low, high = g->high;
    minitl_half *const ring = (minitl_half *)scratch;
    int32_t k, r, i;
#ifndef MINITL_HELIUM
    const int32_t odd = 2 * g->out_zero + 1;
#endif
    for (i = 0; i < 3 * room; i++) {
        ring[i] = g->in_zero;
    }
    for (k = 0; k < channels; k++, kernel += 9) {
        const int32_t start = bias[k], factor = multiplier[k], shift = right[k];
        int32_t next = -g->top, w[9];
        minitl_half *a = ring, *b = a + room, *c = b + room; /* the ring's rows, the oldest first */
        int8_t *to = y + k;
#ifdef MINITL_DSP
        uint32_t first[3], second[3]; /* of each row of the kernel, columns 0 and 1, columns 1 and 2 */
#endif
        for (i = 0; i < 9; i++) {
            w[i] = kernel[i] - g->kernel_zero;
        }
#ifdef MINITL_DSP
        for (i = 0; i < 3; i++) {
            first[i] = ((uint32_t)w[3 * i] & 0xffffu) | (uint32_t)w[3 * i + 1] << 16;
            second[i] = ((uint32_t)w[3 * i + 1] & 0xffffu) | (uint32_t)w[3 * i + 2] << 16;
        }
#endif
        for (r = 0; r < g->out_height; r++) {
            const int32_t top = r * g->stride_down - g->top;
            int32_t n = g->out_width;
            for (next = next < top ? top : next; next < top + 3; next++) {
                minitl_half *const oldest = a;
                minitl_ring_row(x + k, oldest + g->left, g, next);
                a = b;
                b = c;
                c = oldest;
            }
            {
#if defined(MINITL_HELIUM)
                const minitl_half *p = a, *q = b, *s = c;
                const uint32x4_t columns = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)across);
                const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0, 1), (uint32_t)channels);
                const int32x4_t factors = vdupq_n_s32(factor), shifts = vdupq_n_s32(-shift);
                for (; n > 0; n -= 4) {
                    const mve_pred16_t some = vctp32q((uint32_t)n);
                    int32x4_t sum = vdupq_n_s32(start);
                    for (i = 0; i < 3; i++) {
                        sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_z_s32(p + i, columns, some), w[i]);
                        sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_z_s32(q + i, columns, some), w[3 + i]);
                        sum = vmlaq_n_s32(sum, vldrhq_gather_shifted_offset_z_s32(s + i, columns, some), w[6 + i]);
                    }
                    vstrbq_scatter_offset_p_s32(to, places, minitl_narrow4(sum, factors, shifts, g->out_zero, low, high), some);
                    to += (n < 4 ? n : 4) * channels;
                    p += 4 * across;
                    q += 4 * across;
                    s += 4 * across;
                }
#elif defined(MINITL_DSP)
                const minitl_half *p = a, *q = b, *s = c;
                if (across == 1) {
                    for (; n > 0; n -= 2) { /* two outputs from four columns */
                        int32_t one, two;
                        uint32_t u = minitl_word(p), v = minitl_word(p + 2);
                        one = minitl_cross(v, second[0], minitl_both(u, first[0], start));
                        two = minitl_cross(first[0], u, minitl_both(v, second[0], start));
                        u = minitl_word(q), v = minitl_word(q + 2);
                        one = minitl_cross(v, second[1], minitl_both(u, first[1], one));
                        two = minitl_cross(first[1], u, minitl_both(v, second[1], two));
                        u = minitl_word(s), v = minitl_word(s + 2);
                        one = minitl_cross(v, second[2], minitl_both(u, first[2], one));
                        two = minitl_cross(first[2], u, minitl_both(v, second[2], two));
                        to[0] = minitl_narrow(one, factor, shift, odd, low, high);
                        if (n == 1) {
                            to += channels;
                            break;
                        }
                        to[channels] = minitl_narrow(two, factor, shift, odd, low, high);
                        to += 2 * channels;
                        p += 2, q += 2, s += 2;
                    }
                } else {
                    for (; n > 0; n--) {
                        int32_t one = minitl_both(minitl_word(p), first[0], start);
                        one = minitl_cross(minitl_word(p + 2), second[0], one);
                        one = minitl_both(minitl_word(q), first[1], one);
                        one = minitl_cross(minitl_word(q + 2), second[1], one);
                        one = minitl_both(minitl_word(s), first[2], one);
                        one = minitl_cross(minitl_word(s + 2), second[2], one);
                        *to = minitl_narrow(one, factor, shift, odd, low, high);
                        to += channels;
                        p += across, q += across, s += across;
                    }
                }
#else
                const minitl_half *p = a, *q = b, *s = c;
                for (; n > 0; n--, to += channels) {
                    int32_t sum = start + p[0] * w[0] + p[1] * w[1] + p[2] * w[2];
                    sum += q[0] * w[3] + q[1] * w[4] + q[2] * w[5];
                    sum += s[0] * w[6] + s[1] * w[7] + s[2] * w[8];
                    *to = minitl_narrow(sum, factor, shift, odd, low, high);
                    p += across, q += across, s += across;
                }
#endif
            }
        }
    }
}

/* == dense (needs narrow, window, dot) == */

/* kernel[output][input, filled up with zeros to a multiple of 8]; the bias has the input's zero point folded in. */
static void minitl_dense(const int8_t *x, int8_t *y, int32_t inputs, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                         const int32_t *multiplier, const int8_t *right)
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
        y[o] = minitl_narrow(sum, multiplier[o], right[o], 2 * g->out_zero + 1, g->low, g->high);
    }
}

/* == average_pool (needs clamp, window) == */

/* Mean of the pixels under the window, halves away from zero; padding is not counted. */
static void minitl_average_pool(const int8_t *x, int8_t *y, const minitl_window *g)
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
static void minitl_max_pool(const int8_t *x, int8_t *y, const minitl_window *g)
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
static void minitl_global_mean(const int8_t *x, int8_t *y, int32_t pixels, int32_t channels, int32_t multiplier, int32_t right,
                               int32_t in_zero, int32_t out_zero)
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
static void minitl_add(const int8_t *a, const int8_t *b, int8_t *y, int32_t size, const minitl_sum *s)
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
static void minitl_rescale(const int8_t *x, int8_t *y, int32_t size, int32_t multiplier, int32_t right, int32_t in_zero, int32_t out_zero,
                           int32_t low, int32_t high)
{
    int32_t k;
    for (k = 0; k < size; k++) {
        y[k] = minitl_clamp(minitl_requantise(x[k] - in_zero, multiplier, right) + out_zero, low, high);
    }
}

/* == copy_rows == */

/* `rows` rows of `size` bytes, one after the other in x, `stride` bytes apart in y. */
static void minitl_copy_rows(const int8_t *x, int8_t *y, int32_t rows, int32_t size, int32_t stride)
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
static void minitl_pad(const int8_t *x, int8_t *y, const minitl_window *g)
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
