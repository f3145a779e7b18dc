// AVX-512 with VNNI: vpdpbusd multiplies unsigned bytes by signed ones, so codes of activations
// come with 128 added, and 128 times the sum of an output's weights is taken away at the end.
#include <immintrin.h>

#include "lanes.h"

namespace {

constexpr bool kUnsignedCodes = true;
constexpr int kTileRows = 8, kNibbleRows = 8;

struct Weight {
  __m512i w;
  JAXSPARSE_INLINE explicit Weight(const int8_t* p) : w(_mm512_loadu_si512(p)) {}
};

struct Accumulator {
  __m512i sum;
  JAXSPARSE_INLINE void clear() { sum = _mm512_setzero_si512(); }
  JAXSPARSE_INLINE void add(const Weight& w, int32_t four) {
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), w.w);
  }
  JAXSPARSE_INLINE void merge(const Accumulator& other) {
    sum = _mm512_add_epi32(sum, other.sum);
  }
  JAXSPARSE_INLINE void finish(int32_t* total, const int32_t* sums) {
    const __m512i extra = _mm512_slli_epi32(_mm512_loadu_si512(sums), 7);
    _mm512_storeu_si512(total, _mm512_sub_epi32(sum, extra));
  }
};

struct Nibbles {
  __m512i low, high;
  JAXSPARSE_INLINE explicit Nibbles(const uint8_t* p) {
    const __m512i both = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(both, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
};

// In assembly, for GCC 12 keeps two dozen sums of the intrinsic partly in memory.
JAXSPARSE_INLINE void add_dot(__m512i& sum, __m512i of_unsigned, int32_t four) {
  const __m512i x = _mm512_set1_epi32(four);
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(of_unsigned), "v"(x));
#else  // where a test emulates the intrinsics
  sum = _mm512_dpbusd_epi32(sum, of_unsigned, x);
#endif
}

// Here the weights are the unsigned side, and codes come as they are.
struct NibbleAccumulator {
  static constexpr int kOutputs = 16;
  static constexpr int kStrips = 2;  // at once: half as many codes are spread over a register
  static constexpr int64_t kMost = 1 << 16;  // codes until the sum goes to the floats
  __m512i sum;
  JAXSPARSE_INLINE void clear() { sum = _mm512_setzero_si512(); }
  JAXSPARSE_INLINE void add(const Nibbles& w, int32_t low, int32_t high) {
    add_dot(sum, w.low, low);
    add_dot(sum, w.high, high);
  }
  JAXSPARSE_INLINE void add_to(float* total, const float* scale, int32_t extra) {
    const __m512i whole = _mm512_add_epi32(sum, _mm512_set1_epi32(extra));
    store(total, load(total) + load(scale) * (Floats)_mm512_cvtepi32_ps(whole));
  }
};

}  // namespace

#include "kernels.h"

namespace jaxsparse {
extern const Kernels kAvx512 = table("avx512");
}
