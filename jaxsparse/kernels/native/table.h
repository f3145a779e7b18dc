// The kernels of one instruction set, as pointers: what the products call.
//
// All matrices are row-major. An interleaved panel holds a few rows of x: entry k of row r is
// panel[k * rows + r], so that the rows' entries for one weight lie side by side.
#pragma once

#include <cstdint>

namespace jaxsparse {

constexpr int kRowsOfPanel = 6;      // rows of a float panel: 12 accumulators fill 16 registers
constexpr int kColumnsOfStrip = 16;  // outputs of a strip of integer tiles
constexpr int kRowsOfTile = 4;       // weights of one output in a tile, multiplied at once
constexpr int kColumnsOfBlock = 64;  // outputs that a task on compressed columns holds
constexpr int kSlack = 16;           // floats that `interleave` may write beyond its panel

struct Kernels {
  const char* name;
  int lanes;         // rows of x that compressed columns are multiplied with at once
  int narrowest;     // the fewest of them: one vector
  int tile_rows;     // most rows of x that `tiles` takes
  int nibble_rows;   // most rows of x that `nibbles` takes
  int nibble_strips; // strips that `nibbles` takes at once, or one
  bool unsigned_x;   // whether `tiles` wants codes with 128 added to each

  // panel[k * rows + r] = x[r * stride + k], for 1 to kRowsOfPanel rows.
  void (*interleave)(const float* x, int64_t stride, int rows, int64_t depth, float* panel);

  // y[r, :length] (+)= sum over i of panel[index[i], r] * w[i, :length].
  void (*vectors)(const float* panel, int rows, const int32_t* index, int64_t count,
                  const float* w, int length, float* y, int64_t stride, bool add);

  // panel[k * width + r] = x[r * stride + k], zero from `rows` to `width`.
  void (*columns_panel)(const float* x, int64_t stride, int rows, int64_t depth, int width,
                        float* panel);

  // out[n * width + r] = sum over i in start[n]..start[n + 1] of panel[index[i], r] * value[i].
  void (*columns16)(const float* panel, int width, const int32_t* start, const uint16_t* index,
                    const float* value, int columns, int64_t depth, float* out);
  void (*columns32)(const float* panel, int width, const int32_t* start, const int32_t* index,
                    const float* value, int columns, int64_t depth, float* out);

  // y[r * stride + n] = out[n * width + r].
  void (*columns_result)(const float* out, int width, int columns, int rows, float* y,
                         int64_t stride);

  // y[n] = sum over k of x[k] * w[k * stride + n].
  void (*vector_times_matrix)(const float* x, const float* w, int64_t depth, int64_t stride,
                              int64_t columns, float* y);

  // Largest of the indices read as unsigned, so that a negative one is large too.
  uint32_t (*largest16)(const uint16_t* index, int64_t count);
  uint32_t (*largest32)(const int32_t* index, int64_t count);

  // Codes of a block of `rows` rows lie in fours, those of all rows for k..k+3 side by side.
  // Codes of one row of a block, at its first four: round(x / scale), scale = max |x| / 127; sums
  // of codes of each `group` codes. A row with a NaN or an infinity has scale NaN and codes 0.
  // Codes beyond `depth`, to `padded`, are 0. Where `add_128`, codes are stored with 128 added, as
  // unsigned bytes.
  void (*quantize)(const float* x, int64_t depth, int64_t padded, int64_t group, bool add_128,
                   int rows, int8_t* codes, float* scale, int32_t* sums);

  // One strip: y[r, n] = x_scale[r] * scale[n] * sum over tiles i of
  //   code 4 * index[i] + j of row r * tiles[i, n, j], with index[i] = i where index is null.
  // `sums[n]` are the sums of the tiles' weights of output n.
  void (*tiles)(const int8_t* codes, int rows, const int32_t* index, int64_t count,
                const int8_t* tiles, const int32_t* sums, const float* scale,
                const float* x_scale, float* y, int64_t y_stride);

  // One strip of nibbles, or `nibble_strips` that lie one after the other: byte [i, n, j] of each
  // holds the weights 8 i + j (low) and 8 i + 4 + j (high) of output n, each plus 8.
  // scale: [depth / group, scale_stride] at the first strip.
  void (*nibbles)(const int8_t* codes, int rows, int64_t depth, int64_t group,
                  const uint8_t* packed, int strips, const float* scale, int64_t scale_stride,
                  const int32_t* sums, int64_t sums_stride, const float* x_scale, float* y,
                  int64_t y_stride);
};

extern const Kernels kPlain;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace jaxsparse
