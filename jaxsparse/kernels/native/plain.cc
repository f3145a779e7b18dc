// Integer products without any instruction set's help; floats in vectors of four.
#include "lanes.h"

namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTileRows = 2, kNibbleRows = 2;

struct Weight {
  int8_t w[64];
  explicit Weight(const int8_t* p) { memcpy(w, p, 64); }
};

struct Accumulator {
  int32_t sum[16];
  void clear() { memset(sum, 0, sizeof sum); }
  void add(const Weight& w, int32_t four) {
    int8_t x[4];
    memcpy(x, &four, 4);
    for (int n = 0; n < 16; n++)
      sum[n] += x[0] * w.w[4 * n] + x[1] * w.w[4 * n + 1] + x[2] * w.w[4 * n + 2] +
                x[3] * w.w[4 * n + 3];
  }
  void merge(const Accumulator& other) {
    for (int n = 0; n < 16; n++) sum[n] += other.sum[n];
  }
  void finish(int32_t* total, const int32_t*) { memcpy(total, sum, sizeof sum); }
};

struct Nibbles {
  uint8_t low[64], high[64];
  explicit Nibbles(const uint8_t* p) {
    for (int i = 0; i < 64; i++) {
      low[i] = p[i] & 15;
      high[i] = p[i] >> 4;
    }
  }
};

struct NibbleAccumulator {
  static constexpr int kOutputs = 16;
  static constexpr int kStrips = 1;
  static constexpr int64_t kMost = 1 << 16;  // codes until the sum goes to the floats
  int32_t sum[16];
  void clear() { memset(sum, 0, sizeof sum); }
  void add(const Nibbles& w, int32_t low, int32_t high) {
    int8_t a[4], b[4];
    memcpy(a, &low, 4);
    memcpy(b, &high, 4);
    for (int n = 0; n < 16; n++)
      for (int j = 0; j < 4; j++) sum[n] += a[j] * w.low[4 * n + j] + b[j] * w.high[4 * n + j];
  }
  void add_to(float* total, const float* scale, int32_t extra) {
    for (int n = 0; n < 16; n++) total[n] += scale[n] * static_cast<float>(sum[n] + extra);
  }
};

}  // namespace

#include "kernels.h"

namespace jaxsparse {
extern const Kernels kPlain = table("plain");
}
