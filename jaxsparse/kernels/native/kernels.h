// The kernels, once for every instruction set. A unit defines Weight, Accumulator, Nibbles and
// NibbleAccumulator (its integer products) and includes this; the rest is vectors of floats.
#pragma once

#include "lanes.h"
#include "table.h"

namespace {

using jaxsparse::kColumnsOfStrip;
using jaxsparse::kRowsOfPanel;

// ---- 1 x length vectors ----------------------------------------------------------------------

void interleave(const float* x, int64_t stride, int rows, int64_t depth, float* panel) {
  int64_t k = 0;
  // Rows beyond the last repeat it: what they leave behind, the next entry's stores write over.
  auto row = [&](int r) { return x + (r < rows ? r : rows - 1) * stride; };
  for (; k + 4 <= depth; k += 4) {
    Four low[4], high[4];
    for (int i = 0; i < 4; i++) low[i] = load4(row(i) + k);
    transpose4(low);
    if (rows > 4) {
      for (int i = 0; i < 4; i++) high[i] = load4(row(4 + i) + k);
      transpose4(high);
    }
    for (int i = 0; i < 4; i++) {
      store4(panel + (k + i) * rows, low[i]);
      if (rows > 4) store4(panel + (k + i) * rows + 4, high[i]);
    }
  }
  for (; k < depth; k++)
    for (int r = 0; r < rows; r++) panel[k * rows + r] = row(r)[k];
}

// R rows times C vectors of outputs, in U chains where few accumulators would wait for each other.
template <int R, int C, int U>
void vectors_tile(const float* panel, const int32_t* index, int64_t count, const float* w,
                  int64_t length, float* y, int64_t stride, bool add) {
  Floats sum[U][R][C] = {};
  int64_t i = 0;
  for (; i + U <= count; i += U) {
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) {
      const float* x = panel + static_cast<int64_t>(index[i + u]) * R;
      Floats weights[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) weights[c] = load(w + (i + u) * length + c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[u][r][c] += weights[c] * x[r];
    }
  }
  for (; i < count; i++) {
    const float* x = panel + static_cast<int64_t>(index[i]) * R;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) sum[0][r][c] += load(w + i * length + c * kLanes) * x[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      Floats total = sum[0][r][c];
#pragma GCC unroll 8
      for (int u = 1; u < U; u++) total += sum[u][r][c];
      float* to = y + r * stride + c * kLanes;
      store(to, add ? load(to) + total : total);
    }
}

template <int R>
void vectors_rows(const float* panel, const int32_t* index, int64_t count, const float* w,
                  int length, float* y, int64_t stride, bool add) {
  constexpr int most = kManyRegisters ? (R == 1 ? 8 : 4) : (R == 1 ? 8 : R <= 3 ? 4 : 2);
  auto each = [&](auto tile, int width) {
    for (int n = 0; n < length; n += width)
      tile(panel, index, count, w + n, length, y + n, stride, add);
  };
  constexpr auto chains = [](int c) { return R * c >= 8 ? 1 : R * c >= 4 ? 2 : 4; };
  if constexpr (most >= 8)
    if (length % (8 * kLanes) == 0) return each(vectors_tile<R, 8, chains(8)>, 8 * kLanes);
  if constexpr (most >= 4)
    if (length % (4 * kLanes) == 0) return each(vectors_tile<R, 4, chains(4)>, 4 * kLanes);
  if (length % (2 * kLanes) == 0) return each(vectors_tile<R, 2, chains(2)>, 2 * kLanes);
  each(vectors_tile<R, 1, chains(1)>, kLanes);
}

void vectors(const float* panel, int rows, const int32_t* index, int64_t count, const float* w,
             int length, float* y, int64_t stride, bool add) {
  constexpr decltype(&vectors_rows<1>) by_rows[] = {vectors_rows<1>, vectors_rows<2>,
                                                    vectors_rows<3>, vectors_rows<4>,
                                                    vectors_rows<5>, vectors_rows<6>};
  by_rows[rows - 1](panel, index, count, w, length, y, stride, add);
}

// ---- compressed columns ----------------------------------------------------------------------

void columns_panel(const float* x, int64_t stride, int rows, int64_t depth, int width,
                   float* panel) {
  if (rows < width) memset(panel, 0, sizeof(float) * depth * width);
  transpose(x, stride, rows, depth, panel, width);
}

// The panel is walked in pieces that stay in the first cache; `out` keeps the sums between them.
template <int V, class Index>
void columns_tile(const float* panel, const int32_t* start, const Index* index,
                  const float* value, int columns, int64_t depth, float* out) {
  constexpr int width = V * kLanes, chains = V >= 8 ? 1 : V >= 4 ? 2 : 4;
  constexpr int64_t piece = 24 * 1024 / (sizeof(float) * width);
  int32_t at[jaxsparse::kColumnsOfBlock];
  for (int n = 0; n < columns; n++) at[n] = start[n];
  for (int64_t from = 0; from < depth; from += piece) {
    const int64_t end = from + piece < depth ? from + piece : depth;
    for (int n = 0; n < columns; n++) {
      const int32_t last = start[n + 1];
      int32_t i = at[n];
      if (from > 0 && (i >= last || index[i] >= end)) continue;
      Floats sum[chains][V] = {};
      if (from > 0)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[0][v] = load(out + n * width + v * kLanes);
      for (; i + chains <= last && index[i + chains - 1] < end; i += chains)
#pragma GCC unroll 8
        for (int u = 0; u < chains; u++) {
          const float* x = panel + static_cast<int64_t>(index[i + u]) * width;
          const float w = value[i + u];
#pragma GCC unroll 8
          for (int v = 0; v < V; v++) sum[u][v] += load(x + v * kLanes) * w;
        }
      for (; i < last && index[i] < end; i++) {
        const float* x = panel + static_cast<int64_t>(index[i]) * width;
        const float w = value[i];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[0][v] += load(x + v * kLanes) * w;
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
#pragma GCC unroll 8
        for (int u = 1; u < chains; u++) sum[0][v] += sum[u][v];
        store(out + n * width + v * kLanes, sum[0][v]);
      }
      at[n] = i;
    }
  }
}

// One row: sums in four chains.
template <class Index>
void columns_row(const float* x, const int32_t* start, const Index* index, const float* value,
                 int columns, float* out) {
  for (int n = 0; n < columns; n++) {
    float sum[4] = {};
    int32_t i = start[n];
    const int32_t last = start[n + 1];
    for (; i + 4 <= last; i += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) sum[u] += x[index[i + u]] * value[i + u];
    for (; i < last; i++) sum[0] += x[index[i]] * value[i];
    out[n] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

template <class Index>
void columns(const float* panel, int width, const int32_t* start, const Index* index,
             const float* value, int count, int64_t depth, float* out) {
  switch (width / kLanes) {
    case 0: return columns_row(panel, start, index, value, count, out);
    case 1: return columns_tile<1>(panel, start, index, value, count, depth, out);
    case 2: return columns_tile<2>(panel, start, index, value, count, depth, out);
    case 4: return columns_tile<4>(panel, start, index, value, count, depth, out);
    default: return columns_tile<8>(panel, start, index, value, count, depth, out);
  }
}

void columns_result(const float* out, int width, int columns, int rows, float* y,
                    int64_t stride) {
  transpose(out, width, columns, rows, y, stride);
}

// ---- one row times a matrix ------------------------------------------------------------------

// Four rows of the matrix at a time: each is read as one stream, and y stays in the first cache.
// More streams, a power of two apart, would evict each other.
template <int N>
void add_rows(const float* x, const float* w, int64_t stride, int64_t columns, float* y) {
  int64_t n = 0;
  for (; n + kLanes <= columns; n += kLanes) {
    Floats sum[2] = {load(y + n), Floats{}};
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) sum[i % 2] += load(w + i * stride + n) * x[i];
    store(y + n, sum[0] + sum[1]);
  }
  for (; n < columns; n++)
    for (int i = 0; i < N; i++) y[n] += x[i] * w[i * stride + n];
}

void vector_times_matrix(const float* x, const float* w, int64_t depth, int64_t stride,
                         int64_t columns, float* y) {
  memset(y, 0, sizeof(float) * columns);
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) add_rows<4>(x + k, w + k * stride, stride, columns, y);
  for (; k < depth; k++) add_rows<1>(x + k, w + k * stride, stride, columns, y);
}

// ---- indices and activations -----------------------------------------------------------------

uint32_t largest16(const uint16_t* index, int64_t count) {
  uint16_t most = 0;
  for (int64_t i = 0; i < count; i++) most = index[i] > most ? index[i] : most;
  return most;
}

uint32_t largest32(const int32_t* index, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t u = static_cast<uint32_t>(index[i]);
    most = u > most ? u : most;
  }
  return most;
}

void quantize(const float* x, int64_t depth, int64_t padded, int64_t group, bool add_128, int rows,
              int8_t* codes, float* scale, int32_t* sums) {
  const uint32_t flip = add_128 ? 0x80808080u : 0;
  // The bits of a magnitude grow with it, and those of an infinity or a NaN are beyond all.
  uint32_t most = 0;
  for (int64_t k = 0; k < depth; k++) {
    uint32_t bits;
    memcpy(&bits, x + k, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float limit;
  memcpy(&limit, &most, 4);
  const bool finite = most < 0x7f800000u, some = finite && limit >= 0x1p-100f;
  *scale = finite ? (some ? limit * (1.0f / 127.0f) : 0.0f) : limit - limit;
  const float inverse = some ? 127.0f / limit : 0.0f;
  // Adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits.
  constexpr float magic = 12582912.0f;
  constexpr int64_t piece = 64;
  alignas(64) float held[piece];
  alignas(64) int32_t whole[piece];
  alignas(64) uint8_t narrow[piece];
  for (int64_t g = 0; g * group < padded; g++) {
    const int64_t end = (g + 1) * group < padded ? (g + 1) * group : padded;
    int32_t sum = 0;
    for (int64_t from = g * group; from < end; from += piece) {
      const int64_t size = end - from < piece ? end - from : piece;
      const float* in = x + from;
      if (!some || from + piece > depth || size < piece) {
        for (int64_t i = 0; i < piece; i++)
          held[i] = some && i < size && from + i < depth ? x[from + i] : 0.0f;
        in = held;
      }
      for (int64_t i = 0; i < piece; i++) {
        const float shifted = in[i] * inverse + magic;
        memcpy(whole + i, &shifted, 4);
        whole[i] -= 0x4b400000;
        sum += whole[i];
      }
      for (int64_t i = 0; i < piece; i++) narrow[i] = static_cast<uint8_t>(whole[i]);
      for (int64_t i = 0; i < size; i += 4) {
        uint32_t four;
        memcpy(&four, narrow + i, 4);
        four ^= flip;
        memcpy(codes + (from + i) * rows, &four, 4);
      }
    }
    sums[g] = sum;
  }
}

// ---- integer tiles ---------------------------------------------------------------------------

template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls with the number of rows, 1 to R, as a type.
template <int R, class Call>
JAXSPARSE_INLINE void with_rows(int rows, const Call& call) {
  if constexpr (R > 1)
    if (rows < R) return with_rows<R - 1>(rows, call);
  call(Number<R>());
}

// R rows, in U chains where few accumulators would wait for each other.
template <int R>
void tiles_rows(const int8_t* codes, const int32_t* index, int64_t count, const int8_t* tiles,
                const int32_t* sums, const float* scale, const float* x_scale, float* y,
                int64_t y_stride) {
  constexpr int U = R >= 4 ? 1 : R >= 2 ? 2 : 4;
  Accumulator sum[U][R];
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[u][r].clear();
  auto step = [&](Accumulator* sum, int64_t i, int64_t at) __attribute__((always_inline)) {
    const Weight w(tiles + i * 64);
    const int8_t* x = codes + at * 4 * R;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      int32_t four;
      memcpy(&four, x + 4 * r, 4);
      sum[r].add(w, four);
    }
  };
  auto all = [&](auto at) __attribute__((always_inline)) {
    int64_t i = 0;
    for (; i + U <= count; i += U)
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) step(sum[u], i + u, at(i + u));
    for (; i < count; i++) step(sum[0], i, at(i));
  };
  if (index == nullptr)
    all([](int64_t i) { return i; });
  else
    all([&](int64_t i) -> int64_t { return index[i]; });
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int u = 1; u < U; u++) sum[0][r].merge(sum[u][r]);
    int32_t total[kColumnsOfStrip];
    sum[0][r].finish(total, sums);
    for (int n = 0; n < kColumnsOfStrip; n++)
      y[r * y_stride + n] = static_cast<float>(total[n]) * scale[n] * x_scale[r];
  }
}

void tiles(const int8_t* codes, int rows, const int32_t* index, int64_t count,
           const int8_t* tiles, const int32_t* sums, const float* scale, const float* x_scale,
           float* y, int64_t y_stride) {
  with_rows<kTileRows>(rows, [&](auto r) {
    tiles_rows<r.value>(codes, index, count, tiles, sums, scale, x_scale, y, y_stride);
  });
}

// ---- nibbles ---------------------------------------------------------------------------------

// Sums of a span of codes that the accumulators hold, for S strips side by side. Weights are stored
// with 8 added: `extra` takes 8 times the sum of the codes away.
template <int R, int S>
JAXSPARSE_INLINE void nibbles_span(const int8_t* codes, int64_t size, const uint8_t* packed,
                                   int64_t packed_stride, const float* scale,
                                   const int32_t* extra, float total[R][S * kColumnsOfStrip]) {
  // As many outputs at a time as a register holds, so that all rows' sums stay in registers.
  for (int n = 0; n < kColumnsOfStrip; n += NibbleAccumulator::kOutputs) {
    NibbleAccumulator sum[R][S];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int s = 0; s < S; s++) sum[r][s].clear();
    auto step = [&](int64_t k) __attribute__((always_inline)) {
      const uint8_t* at = packed + k * 8 + n * 4;
      const Nibbles w[2] = {Nibbles(at), Nibbles(at + (S - 1) * packed_stride)};
      const int8_t* x = codes + k * R;
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        int32_t low, high;
        memcpy(&low, x + 4 * r, 4);
        memcpy(&high, x + 4 * (R + r), 4);
#pragma GCC unroll 2
        for (int s = 0; s < S; s++) sum[r][s].add(w[s], low, high);
      }
    };
    // The usual span without a branch at each step: it is short.
    if (NibbleAccumulator::kMost == 32 && size == 32) {
#pragma GCC unroll 4
      for (int k = 0; k < 32; k += 8) step(k);
    } else {
      for (int64_t k = 0; k < size; k += 8) step(k);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int s = 0; s < S; s++) {
        const int at = s * kColumnsOfStrip + n;
        sum[r][s].add_to(total[r] + at, scale + at, extra[r]);
      }
  }
}

template <int R, int S>
void nibbles_rows(const int8_t* codes, int64_t depth, int64_t group, const uint8_t* packed,
                  const float* scale, int64_t scale_stride, const int32_t* sums,
                  int64_t sums_stride, const float* x_scale, float* y, int64_t y_stride) {
  float total[R][S * kColumnsOfStrip];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)  // by vectors: what GCC makes of `= {}` takes longer than a group
#pragma GCC unroll 8
    for (int n = 0; n < S * kColumnsOfStrip; n += kLanes) store(total[r] + n, Floats{});
  for (int64_t from = 0, g = 0; from < depth; from += group, g++, scale += scale_stride) {
    const int64_t end = from + group < depth ? from + group : depth;
    int32_t extra[R];
    for (int r = 0; r < R; r++) extra[r] = -8 * sums[r * sums_stride + g];
    constexpr int64_t most = NibbleAccumulator::kMost;
    for (int64_t k = from; k < end; k += most) {
      nibbles_span<R, S>(codes + k * R, k + most < end ? most : end - k, packed + k * 8, depth * 8,
                         scale, extra, total);
      for (int r = 0; r < R; r++) extra[r] = 0;
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < S * kColumnsOfStrip; n++) y[r * y_stride + n] = total[r][n] * x_scale[r];
}

void nibbles(const int8_t* codes, int rows, int64_t depth, int64_t group, const uint8_t* packed,
             int strips, const float* scale, int64_t scale_stride, const int32_t* sums,
             int64_t sums_stride, const float* x_scale, float* y, int64_t y_stride) {
  with_rows<kNibbleRows>(rows, [&](auto r) {
    constexpr int most = NibbleAccumulator::kStrips;
    constexpr auto several = nibbles_rows<r.value, most>, one = nibbles_rows<r.value, 1>;
    (strips == most ? several : one)(codes, depth, group, packed, scale, scale_stride, sums,
                                     sums_stride, x_scale, y, y_stride);
  });
}

constexpr jaxsparse::Kernels table(const char* name) {
  // Eight accumulators of a vector each, in chains as `columns_tile` needs them.
  constexpr int lanes = kManyRegisters ? 4 * kLanes : 8 * kLanes;
  return {name, lanes, kLanes, kTileRows, kNibbleRows, NibbleAccumulator::kStrips,
          kUnsignedCodes, interleave, vectors, columns_panel, columns<uint16_t>, columns<int32_t>,
          columns_result, vector_times_matrix, largest16, largest32, quantize, tiles, nibbles};
}

}  // namespace
