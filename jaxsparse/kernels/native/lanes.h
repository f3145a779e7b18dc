// Vectors of floats as wide as the instruction set that this unit is compiled for.
//
// Everything here and in kernels.h is in an unnamed namespace, and neither includes the standard
// library: an inline function shared with another unit could be linked in with instructions the
// machine lacks.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr bool kManyRegisters = true;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr bool kManyRegisters = false;
#else
constexpr int kLanes = 4;
constexpr bool kManyRegisters = false;
#endif

#define JAXSPARSE_INLINE inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef float LooseFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float Four __attribute__((vector_size(16)));
typedef float LooseFour __attribute__((vector_size(16), aligned(4), may_alias));

JAXSPARSE_INLINE Floats load(const float* p) { return *reinterpret_cast<const LooseFloats*>(p); }
JAXSPARSE_INLINE void store(float* p, Floats v) { *reinterpret_cast<LooseFloats*>(p) = v; }
JAXSPARSE_INLINE Four load4(const float* p) { return *reinterpret_cast<const LooseFour*>(p); }
JAXSPARSE_INLINE void store4(float* p, Four v) { *reinterpret_cast<LooseFour*>(p) = v; }

// Rows of four become columns.
JAXSPARSE_INLINE void transpose4(Four v[4]) {
  Four a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
  Four b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
  Four c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  Four d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  v[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// to[k * to_stride + r] = from[r * from_stride + k].
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                      float* to, int64_t to_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
      Four v[4];
      for (int i = 0; i < 4; i++) v[i] = load4(from + (r + i) * from_stride + k);
      transpose4(v);
      for (int i = 0; i < 4; i++) store4(to + (k + i) * to_stride + r, v[i]);
    }
    for (; k < columns; k++)
      for (int i = 0; i < 4; i++) to[k * to_stride + r + i] = from[(r + i) * from_stride + k];
  }
  for (; r < rows; r++)
    for (int64_t k = 0; k < columns; k++) to[k * to_stride + r] = from[r * from_stride + k];
}

}  // namespace
