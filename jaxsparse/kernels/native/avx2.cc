// AVX2 and FMA. Bytes are multiplied by maddubs, whose pairs of products must fit sixteen bits:
// a magnitude of at most 128 times one of at most 127, twice, is 32,512; it saturates never.
#include <immintrin.h>

#include "lanes.h"

namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTileRows = 4, kNibbleRows = 6;

JAXSPARSE_INLINE __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

struct Weight {
  __m256i w[2], magnitude[2];
  JAXSPARSE_INLINE explicit Weight(const int8_t* p) {
    for (int h = 0; h < 2; h++) {
      w[h] = load_bytes(p + 32 * h);
      magnitude[h] = _mm256_abs_epi8(w[h]);
    }
  }
};

struct Accumulator {
  __m256i sum[2];
  JAXSPARSE_INLINE void clear() { sum[0] = sum[1] = _mm256_setzero_si256(); }
  JAXSPARSE_INLINE void add(const Weight& w, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    for (int h = 0; h < 2; h++) {
      const __m256i pairs = _mm256_maddubs_epi16(w.magnitude[h], _mm256_sign_epi8(x, w.w[h]));
      sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(pairs, ones));
    }
  }
  JAXSPARSE_INLINE void merge(const Accumulator& other) {
    for (int h = 0; h < 2; h++) sum[h] = _mm256_add_epi32(sum[h], other.sum[h]);
  }
  JAXSPARSE_INLINE void finish(int32_t* total, const int32_t*) { memcpy(total, sum, 64); }
};

struct Nibbles {
  __m256i low, high;
  JAXSPARSE_INLINE explicit Nibbles(const uint8_t* p) {
    const __m256i both = load_bytes(p), mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(both, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
};

// Pairs of products are at most 2 * 15 * 127: sixteen bits hold eight of them.
struct NibbleAccumulator {
  static constexpr int kOutputs = 8;
  static constexpr int kStrips = 1;
  static constexpr int64_t kMost = 32;  // codes until the sum goes to the floats
  __m256i sum;
  JAXSPARSE_INLINE void clear() { sum = _mm256_setzero_si256(); }
  JAXSPARSE_INLINE void add(const Nibbles& w, int32_t low, int32_t high) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w.low, _mm256_set1_epi32(low)));
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w.high, _mm256_set1_epi32(high)));
  }
  JAXSPARSE_INLINE void add_to(float* total, const float* scale, int32_t extra) {
    const __m256i wide = _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)),
                                          _mm256_set1_epi32(extra));
    store(total, load(total) + load(scale) * (Floats)_mm256_cvtepi32_ps(wide));
  }
};

}  // namespace

#include "kernels.h"

namespace jaxsparse {
extern const Kernels kAvx2 = table("avx2");
}
