/* Integer kernels in portable C99, from which emit_c.py builds a model's header.

In: int8 activations as rows, columns, channels; constants in the order in which a kernel reads them. Out: int8 activations, equal in
every bit to minitl/reference_int8.py. Left out: anything that one compiler or processor has and another has not.

This file compiles as it is; in a header, minitl_ and MINITL_ become the model's own prefix and only the sections that the network
needs are taken. A section begins with a line "== name (needs others) ==". Rules for all of them:
- No overflow: the Python side has proved for every possible image that all sums and products fit the types used here.
- No undefined behaviour, no shift of a negative number to the left. Shifts of negative numbers to the right round down on every
  known compiler; C99 leaves that open, so a declaration below refuses to compile where they do not.
- No malloc, no float, no library: nothing but <stdint.h>. int may have 16 bits.
*/
#include <stdint.h>

/* == round == */

typedef char minitl_needs_arithmetic_shifts[((int32_t)-5 >> 1) == -3 && ((int64_t)-5 >> 1) == -3 ? 1 : -1];

/* a * multiplier * 2^(shift - 31), rounded twice as TFLite's reference kernels do: once in the high half of the product
   (halves up), once in the shift to the right (halves away from zero). 0 <= multiplier < 2^31, -31 <= shift <= 30. */
static int32_t minitl_requantise(int32_t a, int32_t multiplier, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0;
    const int32_t right = shift < 0 ? -shift : 0;
    const int32_t mask = (int32_t)(((uint32_t)1 << right) - 1u);
    const int32_t high = (int32_t)(((int64_t)(a * ((int32_t)1 << left)) * multiplier + ((int64_t)1 << 30)) >> 31);
    const int32_t half = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> right) + ((high & mask) > half ? 1 : 0);
}

/* == clamp == */

/* a + zero, clamped to low..high, for low and high within int8; the clamp comes first, so that the sum cannot overflow. */
static int8_t minitl_clamp(int32_t a, int32_t zero, int32_t low, int32_t high)
{
    if (a < low - zero) {
        return (int8_t)low;
    }
    if (a > high - zero) {
        return (int8_t)high;
    }
    return (int8_t)(a + zero);
}

/* == window == */

/* A window that moves over an image: sizes, steps, rows and columns of padding, zero points, clamp of the output. */
typedef struct {
    int16_t in_height, in_width, in_channels;
    int16_t out_height, out_width, out_channels;
    int16_t height, width, stride_down, stride_across, top, left;
    int16_t in_zero, out_zero, low, high;
} minitl_window;

/* The part first..last (last excluded) of a window of `size` pixels at `start` that lies inside 0..limit; both count from start. */
static int32_t minitl_first(int32_t start)
{
    return start < 0 ? -start : 0;
}

static int32_t minitl_last(int32_t start, int32_t size, int32_t limit)
{
    return start + size > limit ? limit - start : size;
}

/* == conv2d (needs round, clamp, window) == */

/* Convolution. kernel[output][row][column][channel]; padding is skipped, since a padded pixel is a real zero. */
static void minitl_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                          const int32_t *multiplier, const int8_t *shift)
{
    const int32_t channels = g->in_channels, zero = g->in_zero;
    int32_t r, c, o, i, k;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        const int32_t first_row = minitl_first(row), last_row = minitl_last(row, g->height, g->in_height);
        for (c = 0; c < g->out_width; c++) {
            const int32_t column = c * g->stride_across - g->left;
            const int32_t first = minitl_first(column);
            const int32_t run = (minitl_last(column, g->width, g->in_width) - first) * channels;
            for (o = 0; o < g->out_channels; o++) {
                int32_t sum = bias[o];
                if (run > 0) {
                    for (i = first_row; i < last_row; i++) { /* one row of the window is contiguous in x and in kernel */
                        const int8_t *p = x + ((row + i) * g->in_width + column + first) * channels;
                        const int8_t *w = kernel + ((o * g->height + i) * g->width + first) * channels;
                        for (k = 0; k < run; k++) {
                            sum += (p[k] - zero) * w[k];
                        }
                    }
                }
                *y++ = minitl_clamp(minitl_requantise(sum, multiplier[o], shift[o]), g->out_zero, g->low, g->high);
            }
        }
    }
}

/* == pointwise (needs round, clamp, window) == */

/* Convolution with a 1x1 window: kernel[output][channel]; bias has the input's zero point folded in. Two pixels times two
   outputs at once, so that each load serves two products; where a pixel or an output has no partner it is its own. */
static void minitl_pointwise(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                             const int32_t *multiplier, const int8_t *shift)
{
    const int32_t channels = g->in_channels, outputs = g->out_channels, pixels = (int32_t)g->out_height * g->out_width;
    const int32_t zero = g->out_zero, low = g->low, high = g->high;
    int32_t pixel, o, k;
    for (pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t next = pixel + 1 < pixels ? 1 : 0;
        const int8_t *p = x + pixel * channels, *q = p + next * channels;
        int8_t *to = y + pixel * outputs, *also = to + next * outputs;
        for (o = 0; o < outputs; o += 2) {
            const int32_t e = o + 1 < outputs ? o + 1 : o;
            const int8_t *v = kernel + o * channels, *w = kernel + e * channels;
            int32_t pv = bias[o], pw = bias[e], qv = pv, qw = pw;
            for (k = 0; k < channels; k++) {
                const int32_t a = p[k], b = q[k], s = v[k], t = w[k];
                pv += a * s;
                pw += a * t;
                qv += b * s;
                qw += b * t;
            }
            to[o] = minitl_clamp(minitl_requantise(pv, multiplier[o], shift[o]), zero, low, high);
            to[e] = minitl_clamp(minitl_requantise(pw, multiplier[e], shift[e]), zero, low, high);
            also[o] = minitl_clamp(minitl_requantise(qv, multiplier[o], shift[o]), zero, low, high);
            also[e] = minitl_clamp(minitl_requantise(qw, multiplier[e], shift[e]), zero, low, high);
        }
    }
}

/* == depthwise_conv2d (needs round, clamp, window) == */

/* Each channel with its own window: kernel[row][column][channel]. */
static void minitl_depthwise_conv2d(const int8_t *x, int8_t *y, const minitl_window *g, const int8_t *kernel, const int32_t *bias,
                                    const int32_t *multiplier, const int8_t *shift)
{
    const int32_t channels = g->in_channels, zero = g->in_zero;
    int32_t r, c, k, i, j;
    for (r = 0; r < g->out_height; r++) {
        const int32_t row = r * g->stride_down - g->top;
        const int32_t first_row = minitl_first(row), last_row = minitl_last(row, g->height, g->in_height);
        for (c = 0; c < g->out_width; c++) {
            const int32_t column = c * g->stride_across - g->left;
            const int32_t first = minitl_first(column), last = minitl_last(column, g->width, g->in_width);
            for (k = 0; k < channels; k++) {
                int32_t sum = bias[k];
                for (i = first_row; i < last_row; i++) {
                    for (j = first; j < last; j++) {
                        sum += (x[((row + i) * g->in_width + column + j) * channels + k] - zero) * kernel[(i * g->width + j) * channels + k];
                    }
                }
                *y++ = minitl_clamp(minitl_requantise(sum, multiplier[k], shift[k]), g->out_zero, g->low, g->high);
            }
        }
    }
}

/* == dense (needs round, clamp) == */

/* kernel[output][input]; bias has the input's zero point folded in. */
static void minitl_dense(const int8_t *x, int8_t *y, int32_t inputs, int32_t outputs, const int8_t *kernel, const int32_t *bias,
                         const int32_t *multiplier, const int8_t *shift, int32_t zero, int32_t low, int32_t high)
{
    int32_t o, k;
    for (o = 0; o < outputs; o++) {
        const int8_t *w = kernel + o * inputs;
        int32_t sum = bias[o];
        for (k = 0; k < inputs; k++) {
            sum += (int32_t)x[k] * w[k];
        }
        y[o] = minitl_clamp(minitl_requantise(sum, multiplier[o], shift[o]), zero, low, high);
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
                *y++ = minitl_clamp(sum, 0, g->low, g->high);
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
                *y++ = minitl_clamp(largest, 0, g->low, g->high);
            }
        }
    }
}

/* == global_mean (needs round, clamp) == */

/* Mean of every channel over all pixels; the division is part of the multiplier. */
static void minitl_global_mean(const int8_t *x, int8_t *y, int32_t pixels, int32_t channels, int32_t multiplier, int32_t shift,
                               int32_t in_zero, int32_t out_zero)
{
    int32_t k, i;
    for (k = 0; k < channels; k++) {
        int32_t sum = 0;
        for (i = 0; i < pixels; i++) {
            sum += x[i * channels + k] - in_zero;
        }
        y[k] = minitl_clamp(minitl_requantise(sum, multiplier, shift), out_zero, -128, 127);
    }
}

/* == add (needs round, clamp) == */

/* Numbers of a sum: first input, second input, output; clamp of the output. */
typedef struct {
    int32_t zero[3], multiplier[3], shift[3], low, high;
} minitl_sum;

/* a + b on three scales, by way of a common scale that is 2^20 times finer. */
static void minitl_add(const int8_t *a, const int8_t *b, int8_t *y, int32_t size, const minitl_sum *s)
{
    const int32_t finer = (int32_t)1 << 20;
    int32_t k;
    for (k = 0; k < size; k++) {
        const int32_t one = minitl_requantise((a[k] - s->zero[0]) * finer, s->multiplier[0], s->shift[0]);
        const int32_t two = minitl_requantise((b[k] - s->zero[1]) * finer, s->multiplier[1], s->shift[1]);
        y[k] = minitl_clamp(minitl_requantise(one + two, s->multiplier[2], s->shift[2]), s->zero[2], s->low, s->high);
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

/* == rescale (needs round, clamp) == */

/* The same real values on another scale and zero point. */
static void minitl_rescale(const int8_t *x, int8_t *y, int32_t size, int32_t multiplier, int32_t shift, int32_t in_zero, int32_t out_zero)
{
    int32_t k;
    for (k = 0; k < size; k++) {
        y[k] = minitl_clamp(minitl_requantise(x[k] - in_zero, multiplier, shift), out_zero, -128, 127);
    }
}
