// The few AVX-512 instructions that avx512.cc uses, written out, so that its arithmetic is tested
// on machines without them. Vectors wider than the machine's are the compiler's business.
#pragma once

#include <cstdint>
#include <cstring>

typedef int32_t __m512i __attribute__((vector_size(64)));
typedef float __m512 __attribute__((vector_size(64)));
typedef uint8_t Bytes512 __attribute__((vector_size(64)));
typedef uint16_t Words512 __attribute__((vector_size(64)));

static inline __m512i _mm512_loadu_si512(const void* p) {
  __m512i v;
  memcpy(&v, p, 64);
  return v;
}
static inline void _mm512_storeu_si512(void* p, __m512i v) { memcpy(p, &v, 64); }
static inline __m512i _mm512_setzero_si512() { return __m512i{}; }
static inline __m512i _mm512_set1_epi32(int32_t x) { return __m512i{} + x; }
static inline __m512i _mm512_set1_epi8(int8_t x) {
  return (__m512i)(Bytes512{} + static_cast<uint8_t>(x));
}
static inline __m512i _mm512_add_epi32(__m512i a, __m512i b) { return a + b; }
static inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) { return a - b; }
static inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i _mm512_slli_epi32(__m512i a, int n) { return a << n; }
static inline __m512i _mm512_srli_epi16(__m512i a, int n) { return (__m512i)((Words512)a >> n); }
static inline __m512 _mm512_cvtepi32_ps(__m512i a) { return __builtin_convertvector(a, __m512); }

// VPDPBUSD: sum[n] += the four products of unsigned bytes of a and signed bytes of b.
static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  uint8_t left[64];
  int8_t right[64];
  memcpy(left, &a, 64);
  memcpy(right, &b, 64);
  for (int i = 0; i < 64; i++) sum[i / 4] += left[i] * right[i];
  return sum;
}
