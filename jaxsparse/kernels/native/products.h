// Products on raw arrays: arguments checked, work cut into tasks. Knows nothing of XLA.
//
// Each returns null, or what is wrong with its arguments. Matrices are row-major.
#pragma once

#include <cstdint>
#include <functional>

namespace jaxsparse {

// Threads to share work with. A task may be run at once, later, or after its turn is over.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t threads() const = 0;
  virtual void schedule(std::function<void()> task) = 0;
};

// The instruction set in use, and the choice of it: the best that the machine has unless asked
// for less. Returns false where the name is unknown or the machine lacks it.
const char* instruction_set();
bool use_instruction_set(const char* name);

// y[rows, outputs] = x[rows, depth] @ W, where the i-th of the vectors start[g]..start[g + 1] holds
// entries [index[i], g * length + (0..length)) of W. The last group's vectors may reach beyond
// `outputs`.
const char* vector_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const float* values, const int32_t* index, int64_t count,
                           int64_t length, const int32_t* start, int64_t groups, float* y,
                           int64_t outputs);

// y[rows, outputs] = x[rows, depth] @ W, where W[index[i], n] = values[i] for i in
// start[n]..start[n + 1]. Index is uint16_t or int32_t.
template <class Index>
const char* column_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const float* values, const Index* index, int64_t count,
                           const int32_t* start, float* y, int64_t outputs);

// y[outputs] = x[depth] @ w[depth, outputs].
const char* vector_matrix_product(Pool& pool, const float* x, const float* w, int64_t depth,
                                  float* y, int64_t outputs);

// y = x @ W with both sides in eight bits, x rounded row by row. W is strips of 16 outputs; tile i
// of a strip holds [16 outputs, 4 weights] of W's rows 4 index[i].., or of 4 i.. where `start` is
// null (then count = strips * ceil(depth / 4)). sums[n] is the sum of output n's
// weights.
const char* tile_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                         const int8_t* tiles, int64_t count, const int32_t* index,
                         const int32_t* start, int64_t strips, const int32_t* sums,
                         const float* scale, float* y, int64_t outputs);

// y = x @ W with x in eight bits and W in four: packed[strips, ceil(depth / 8), 16, 4] bytes, a
// scale for each `group` rows: scale[ceil(depth / group), 16 * strips].
const char* nibble_product(Pool& pool, const float* x, int64_t rows, int64_t depth,
                           const uint8_t* packed, int64_t strips, const float* scale,
                           int64_t group, float* y, int64_t outputs);

}  // namespace jaxsparse
