#include "products.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "table.h"

namespace jaxsparse {
namespace {

const Kernels* best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    return &kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
#endif
  return &kPlain;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_acquire);
  if (found == nullptr) chosen.store(found = best(), std::memory_order_release);
  return *found;
}

// ---- work on threads -------------------------------------------------------------------------

// A task of fewer multiply-adds than this is not worth another thread's attention.
constexpr int64_t kWorthAThread = 1 << 17;

// How many tasks to cut work into: one, or a few for each thread. Small work never asks the pool.
int64_t tasks_for(Pool& pool, int64_t work, int64_t most) {
  if (work < 2 * kWorthAThread || most < 2) return 1;
  const int64_t threads = pool.threads();
  if (threads < 2) return 1;
  return std::min({work / kWorthAThread, most, 4 * threads});
}

struct Shared {
  std::atomic<int64_t> next{0}, done{0};
  int64_t count;
  const void* body;  // alive until done == count
};

// Runs body(0..count). The caller takes tasks too and waits only for those already begun, so it
// makes progress even if the pool never runs anything.
template <class Body>
void parallel(Pool& pool, int64_t count, const Body& body) {
  if (count == 1) return body(0);
  auto shared = std::make_shared<Shared>();
  shared->count = count;
  shared->body = &body;
  auto run = [shared] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < shared->count;) {
      (*static_cast<const Body*>(shared->body))(i);
      shared->done.fetch_add(1, std::memory_order_acq_rel);
    }
  };
  const int64_t others = std::min(pool.threads(), count) - 1;
  for (int64_t i = 0; i < others; i++) pool.schedule(run);
  run();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < count; spins++)
    if (spins > 64) std::this_thread::yield();
}

// Memory of this thread, kept between calls up to a size: fresh pages cost more than a product.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (bytes > kept_size_ || kFresh) {
      kept_.reset(new char[bytes]);
      kept_size_ = bytes;
    }
    used_ = 0;
  }
  ~Scratch() {
    if (kept_size_ > (64 << 20)) {
      kept_.reset();
      kept_size_ = 0;
    }
  }
  template <class T>
  T* take(int64_t count) {
    char* at = kept_.get() + used_;
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    used_ = at - kept_.get() + count * sizeof(T);
    return reinterpret_cast<T*>(at);
  }
  // Bytes of `count` entries as `take` lays them.
  template <class T>
  static int64_t bytes(int64_t count) {
    return count * static_cast<int64_t>(sizeof(T)) + 64;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kFresh = true;  // so that every step beyond the end is seen
#else
  static constexpr bool kFresh = false;
#endif
  static thread_local std::unique_ptr<char[]> kept_;
  static thread_local int64_t kept_size_;
  int64_t used_;
};
thread_local std::unique_ptr<char[]> Scratch::kept_;
thread_local int64_t Scratch::kept_size_ = 0;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Piece i of `total` cut into `pieces` as even as can be.
struct Piece {
  int64_t from, to;
  Piece(int64_t total, int64_t pieces, int64_t i)
      : from(total * i / pieces), to(total * (i + 1) / pieces) {}
  int64_t size() const { return to - from; }
};

// Rows in chunks, whose panels are packed first and read by every group of outputs. Where there are
// chunks enough each is one task, and its panel stays in that core's cache; else all panels are
// packed, and tasks are shares of the groups.
//
// pack(chunk, panel) fills `size` floats; multiply(chunk, panel, groups) takes a Piece of groups.
template <class Pack, class Multiply>
void over_chunks(Pool& pool, int64_t chunks, int64_t size, int64_t groups, int64_t work,
                 const Pack& pack, const Multiply& multiply) {
  const int64_t parts = tasks_for(pool, work, std::max(chunks, groups));
  if (parts == 1 || chunks >= 2 * pool.threads()) {
    const int64_t tasks = std::min(parts, chunks);
    parallel(pool, tasks, [&](int64_t task) {
      Scratch scratch(Scratch::bytes<float>(size));
      float* panel = scratch.take<float>(size);
      for (int64_t c = Piece(chunks, tasks, task).from; c < Piece(chunks, tasks, task).to; c++) {
        pack(c, panel);
        multiply(c, panel, Piece(groups, 1, 0));
      }
    });
    return;
  }
  Scratch scratch(Scratch::bytes<float>(chunks * size));
  float* panels = scratch.take<float>(chunks * size);
  parallel(pool, chunks, [&](int64_t c) { pack(c, panels + c * size); });
  const int64_t shares = std::min(parts, groups);
  parallel(pool, shares, [&](int64_t task) {
    for (int64_t c = 0; c < chunks; c++)
      multiply(c, panels + c * size, Piece(groups, shares, task));
  });
}

// ---- checks ----------------------------------------------------------------------------------

const char* check_starts(const int32_t* start, int64_t groups, int64_t count) {
  if (start[0] < 0 || start[groups] > count) return "starts reach beyond the stored entries";
  for (int64_t g = 0; g < groups; g++)
    if (start[g] > start[g + 1]) return "starts must not fall";
  return nullptr;
}

uint32_t largest(const uint16_t* index, int64_t count) {
  return kernels().largest16(index, count);
}
uint32_t largest(const int32_t* index, int64_t count) { return kernels().largest32(index, count); }

template <class Index>
const char* check_index(const Index* index, int64_t count, int64_t limit) {
  if (count > 0 && static_cast<int64_t>(largest(index, count)) >= limit)
    return "an index is negative or beyond the rows of the matrix";
  return nullptr;
}

void clear(float* y, int64_t count) { std::memset(y, 0, sizeof(float) * count); }

// ---- 1 x length vectors ----------------------------------------------------------------------

constexpr int64_t kRowsOfChunk = 96;     // rows whose panels share the second cache
constexpr int64_t kDepthOfChunk = 1024;  // weights' rows that one pass over them covers

struct Vectors {
  const float* values;
  const int32_t* index;
  int64_t length;
  const int32_t* start;
  int64_t outputs;
};

// One group of outputs times one chunk of rows, whose panels lie one after the other.
void vector_group(const Kernels& k, const Vectors& w, int64_t group, const float* panels,
                  int64_t depth, int64_t rows, float* y) {
  const int64_t column = group * w.length;
  const int64_t width = std::min(w.length, w.outputs - column);
  float edge[kRowsOfChunk * 64];  // the last group may be wider than y
  const bool whole = width == w.length;
  float* to = whole ? y + column : edge;
  const int64_t stride = whole ? w.outputs : w.length;
  const int64_t last = w.start[group + 1], blocks = ceil_div(rows, kRowsOfPanel);
  int64_t from = w.start[group];
  for (int64_t at = 0; at < depth; at += kDepthOfChunk) {
    // Indices ascend within a group, so a pass takes those of its rows; the last takes the rest.
    int64_t end = last;
    if (at + kDepthOfChunk < depth)
      end = std::lower_bound(w.index + from, w.index + last, at + kDepthOfChunk) - w.index;
    if (end == from && at > 0) continue;
    for (int64_t b = 0; b < blocks; b++) {
      const Piece piece(rows, blocks, b);
      k.vectors(panels + piece.from * depth, piece.size(), w.index + from, end - from,
                w.values + from * w.length, w.length, to + piece.from * stride, stride, at > 0);
    }
    from = end;
  }
  if (!whole)
    for (int64_t r = 0; r < rows; r++)
      std::memcpy(y + r * w.outputs + column, edge + r * w.length, sizeof(float) * width);
}

}  // namespace

const char* instruction_set() { return kernels().name; }

bool use_instruction_set(const char* name) {
  const Kernels* top = best();
  const Kernels* known[] = {
      &kPlain,
#if defined(__x86_64__)
      &kAvx2, &kAvx512,
#endif
  };
  for (const Kernels* k : known) {
    if (std::strcmp(k->name, name) == 0) {
      chosen.store(k, std::memory_order_release);
      return true;
    }
    if (k == top) break;  // what follows, this machine lacks
  }
  return false;
}

const char* vector_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const float* values, const int32_t* index, int64_t count,
                           int64_t length, const int32_t* start, int64_t groups, float* y,
                           int64_t outputs) {
  if (length != 16 && length != 32 && length != 64) return "vectors must be 16, 32 or 64 long";
  if (groups != ceil_div(outputs, length)) return "starts do not match the number of outputs";
  if (const char* wrong = check_starts(start, groups, count)) return wrong;
  if (const char* wrong = check_index(index, count, depth)) return wrong;
  if (rows == 0 || outputs == 0) return nullptr;
  if (depth == 0) return clear(y, rows * outputs), nullptr;
  const Kernels& k = kernels();
  const Vectors w{values, index, length, start, outputs};
  const int64_t chunks = ceil_div(rows, kRowsOfChunk);
  const int64_t size = rows == 1 ? 0 : ceil_div(rows, chunks) * depth + kSlack;
  over_chunks(
      pool, chunks, size, groups, count * length * rows,
      [&](int64_t c, float* panel) {
        if (rows == 1) return;
        const Piece chunk(rows, chunks, c);
        const int64_t blocks = ceil_div(chunk.size(), kRowsOfPanel);
        // In this order what a block writes beyond its end is written over by the next.
        for (int64_t b = 0; b < blocks; b++) {
          const Piece block(chunk.size(), blocks, b);
          k.interleave(x + (chunk.from + block.from) * depth, depth, block.size(), depth,
                       panel + block.from * depth);
        }
      },
      [&](int64_t c, const float* panel, Piece part) {
        const Piece chunk(rows, chunks, c);
        for (int64_t g = part.from; g < part.to; g++)
          vector_group(k, w, g, rows == 1 ? x : panel, depth, chunk.size(),
                       y + chunk.from * outputs);
      });
  return nullptr;
}

// ---- compressed columns ----------------------------------------------------------------------

namespace {

void columns_of(const Kernels& k, const float* panel, int width, const int32_t* start,
                const uint16_t* index, const float* value, int columns, int64_t depth,
                float* out) {
  k.columns16(panel, width, start, index, value, columns, depth, out);
}
void columns_of(const Kernels& k, const float* panel, int width, const int32_t* start,
                const int32_t* index, const float* value, int columns, int64_t depth,
                float* out) {
  k.columns32(panel, width, start, index, value, columns, depth, out);
}

// The narrowest panel that holds `rows`: a vector of lanes, or two, four or eight of them.
int panel_width(const Kernels& k, int64_t rows) {
  int width = k.lanes;
  while (width / 2 >= rows && width / 2 >= k.narrowest) width /= 2;
  return width;
}

}  // namespace

template <class Index>
const char* column_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const float* values, const Index* index, int64_t count,
                           const int32_t* start, float* y, int64_t outputs) {
  if (const char* wrong = check_starts(start, outputs, count)) return wrong;
  if (const char* wrong = check_index(index, count, depth)) return wrong;
  if (rows == 0 || outputs == 0) return nullptr;
  if (depth == 0) return clear(y, rows * outputs), nullptr;
  const Kernels& k = kernels();
  const int64_t chunks = ceil_div(rows, k.lanes), blocks = ceil_div(outputs, kColumnsOfBlock);
  over_chunks(
      pool, chunks, rows == 1 ? 0 : depth * k.lanes, blocks, count * rows,
      [&](int64_t c, float* panel) {
        if (rows == 1) return;
        const Piece chunk(rows, chunks, c);
        k.columns_panel(x + chunk.from * depth, depth, chunk.size(), depth,
                        panel_width(k, chunk.size()), panel);
      },
      [&](int64_t c, const float* panel, Piece part) {
        const Piece chunk(rows, chunks, c);
        const int width = panel_width(k, chunk.size());
        float out[kColumnsOfBlock * 64];
        for (int64_t b = part.from; b < part.to; b++) {
          const int64_t from = b * kColumnsOfBlock;
          const int columns = std::min<int64_t>(kColumnsOfBlock, outputs - from);
          if (rows == 1) {
            columns_of(k, x, 1, start + from, index, values, columns, depth, y + from);
            continue;
          }
          columns_of(k, panel, width, start + from, index, values, columns, depth, out);
          k.columns_result(out, width, columns, chunk.size(), y + chunk.from * outputs + from,
                           outputs);
        }
      });
  return nullptr;
}

template const char* column_product<uint16_t>(Pool&, const float*, int64_t, int64_t, const float*,
                                              const uint16_t*, int64_t, const int32_t*, float*,
                                              int64_t);
template const char* column_product<int32_t>(Pool&, const float*, int64_t, int64_t, const float*,
                                             const int32_t*, int64_t, const int32_t*, float*,
                                             int64_t);

// ---- one row times a matrix ------------------------------------------------------------------

const char* vector_matrix_product(Pool& pool, const float* x, const float* w, int64_t depth,
                                  float* y, int64_t outputs) {
  if (outputs == 0) return nullptr;
  const int64_t blocks = ceil_div(outputs, kColumnsOfBlock);
  const int64_t parts = tasks_for(pool, depth * outputs, blocks);
  parallel(pool, parts, [&](int64_t task) {
    const Piece part(blocks, parts, task);
    const int64_t from = part.from * kColumnsOfBlock;
    const int64_t to = std::min(outputs, part.to * kColumnsOfBlock);
    kernels().vector_times_matrix(x, w + from, depth, outputs, to - from, y + from);
  });
  return nullptr;
}

// ---- integers --------------------------------------------------------------------------------

namespace {

constexpr int64_t kMostDepth = 1 << 16;  // beyond it a sum of products may pass 32 bits

// Rows of x as codes, in blocks of as many rows as a kernel takes at once: code k of row r of a
// block of n rows is codes[(k / 4 * n + r) * 4 + k % 4] of that block.
struct Codes {
  int64_t rows, stride, blocks, groups;
  int8_t* codes;
  float* scale;
  int32_t* sums;
  Piece block(int64_t b) const { return Piece(rows, blocks, b); }
};

Codes quantized(Pool& pool, const Kernels& k, Scratch& scratch, const float* x, int64_t rows,
                int64_t depth, int64_t stride, int64_t group, int rows_of_block, bool add_128) {
  const int64_t groups = ceil_div(stride, group);
  const Codes q{rows,
                stride,
                ceil_div(rows, rows_of_block),
                groups,
                scratch.take<int8_t>(rows * stride),
                scratch.take<float>(rows),
                scratch.take<int32_t>(rows * groups)};
  const int64_t parts = tasks_for(pool, rows * depth * 2, q.blocks);
  parallel(pool, parts, [&](int64_t task) {
    const Piece part(q.blocks, parts, task);
    for (int64_t b = part.from; b < part.to; b++) {
      const Piece block = q.block(b);
      for (int64_t r = block.from; r < block.to; r++)
        k.quantize(x + r * depth, depth, stride, group, add_128, block.size(),
                   q.codes + block.from * stride + (r - block.from) * 4, q.scale + r,
                   q.sums + r * groups);
    }
  });
  return q;
}

int64_t quantized_bytes(int64_t rows, int64_t stride, int64_t group) {
  return Scratch::bytes<int8_t>(rows * stride) + Scratch::bytes<float>(rows) +
         Scratch::bytes<int32_t>(rows * ceil_div(stride, group));
}

// Calls multiply(block of rows, strip, how many strips, to, stride of to) for all, `most` strips at
// once where so many are whole, within chunks of rows, and copies what there is of the last strip.
template <class Multiply>
void over_strips(Pool& pool, const Codes& q, int64_t strips, int64_t most, int64_t work, float* y,
                 int64_t outputs, const Multiply& multiply) {
  const int64_t parts = tasks_for(pool, work, strips);
  const int64_t chunks = ceil_div(q.rows, kRowsOfChunk), whole = outputs / kColumnsOfStrip;
  parallel(pool, parts, [&](int64_t task) {
    const Piece part(strips, parts, task);
    for (int64_t c = 0; c < chunks; c++) {
      const Piece chunk(q.blocks, chunks, c);
      for (int64_t s = part.from, count; s < part.to; s += count) {
        const int64_t column = s * kColumnsOfStrip;
        count = s + most <= std::min(part.to, whole) ? most : 1;
        for (int64_t b = chunk.from; b < chunk.to; b++) {
          const Piece block = q.block(b);
          float* to = y + block.from * outputs + column;
          if (s < whole) {
            multiply(block, s, count, to, outputs);
            continue;
          }
          float edge[8 * kColumnsOfStrip];
          multiply(block, s, 1, edge, kColumnsOfStrip);
          for (int64_t r = 0; r < block.size(); r++)
            std::memcpy(to + r * outputs, edge + r * kColumnsOfStrip,
                        sizeof(float) * (outputs - column));
        }
      }
    }
  });
}

}  // namespace

const char* tile_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                         const int8_t* tiles, int64_t count, const int32_t* index,
                         const int32_t* start, int64_t strips, const int32_t* sums,
                         const float* scale, float* y, int64_t outputs) {
  const int64_t tall = ceil_div(depth, kRowsOfTile);
  if (depth > kMostDepth) return "products of bytes take at most 65,536 rows of weights";
  if (strips != ceil_div(outputs, kColumnsOfStrip)) return "strips do not match the outputs";
  // Without any tile `index` may be null too.
  const bool all = start == nullptr;
  if (!all) {
    if (const char* wrong = check_starts(start, strips, count)) return wrong;
    if (const char* wrong = check_index(index, count, tall)) return wrong;
    // More tiles than rows would be repeated ones, whose sums might pass 32 bits.
    for (int64_t s = 0; s < strips; s++)
      if (start[s + 1] - start[s] > tall) return "a strip has more tiles than the matrix is tall";
  } else if (count != strips * tall) {
    return "tiles do not match the depth and the outputs";
  }
  if (rows == 0 || outputs == 0) return nullptr;
  const Kernels& k = kernels();
  const int64_t stride = std::max<int64_t>(1, tall) * kRowsOfTile;
  Scratch scratch(quantized_bytes(rows, stride, stride));
  const Codes q = quantized(pool, k, scratch, x, rows, depth, stride, stride, k.tile_rows,
                            k.unsigned_x);
  over_strips(pool, q, strips, 1, count * 16 * rows, y, outputs,
              [&](Piece block, int64_t s, int, float* to, int64_t y_stride) {
                const int64_t from = all ? s * tall : start[s];
                const int64_t size = all ? tall : start[s + 1] - start[s];
                k.tiles(q.codes + block.from * stride, block.size(),
                        all ? nullptr : index + from, size, tiles + from * 64,
                        sums + s * kColumnsOfStrip, scale + s * kColumnsOfStrip,
                        q.scale + block.from, to, y_stride);
              });
  return nullptr;
}

const char* nibble_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const uint8_t* packed, int64_t strips, const float* scale,
                           int64_t group, float* y, int64_t outputs) {
  if (depth > kMostDepth) return "products of bytes take at most 65,536 rows of weights";
  if (group < 8 || group % 8 != 0) return "a group must be a multiple of 8 rows";
  if (strips != ceil_div(outputs, kColumnsOfStrip)) return "strips do not match the outputs";
  if (rows == 0 || outputs == 0) return nullptr;
  const Kernels& k = kernels();
  const int64_t stride = ceil_div(depth, 8) * 8;
  if (stride == 0) return clear(y, rows * outputs), nullptr;
  group = std::min(group, stride);
  Scratch scratch(quantized_bytes(rows, stride, group));
  const Codes q = quantized(pool, k, scratch, x, rows, depth, stride, group, k.nibble_rows, false);
  over_strips(pool, q, strips, k.nibble_strips, strips * stride * 8 * rows, y, outputs,
              [&](Piece block, int64_t s, int count, float* to, int64_t y_stride) {
                k.nibbles(q.codes + block.from * stride, block.size(), stride, group,
                          packed + s * stride * 8, count, scale + s * kColumnsOfStrip,
                          strips * kColumnsOfStrip, q.sums + block.from * q.groups, q.groups,
                          q.scale + block.from, to, y_stride);
              });
  return nullptr;
}

}  // namespace jaxsparse
