// Random calls of every product, right and wrong, with arrays of exactly the size they may read.
// Compiled with sanitizers by sanitized_test.py. Prints the number of calls and of wrong results.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "products.h"

namespace {

using namespace jaxsparse;

// Each task on a thread of its own, joined late, as a busy pool might run it.
class Threads : public Pool {
 public:
  int64_t threads() const override { return 3; }
  void schedule(std::function<void()> task) override { running_.emplace_back(std::move(task)); }
  ~Threads() override {
    for (auto& thread : running_) thread.join();
  }

 private:
  std::vector<std::thread> running_;
};

std::mt19937 rng(0);
int64_t pick(std::initializer_list<int64_t> of) { return of.begin()[rng() % of.size()]; }
int64_t below(int64_t n) { return n > 0 ? static_cast<int64_t>(rng() % n) : 0; }
float real() { return std::normal_distribution<float>()(rng); }

struct Case {
  int64_t rows = pick({0, 1, 2, 3, 5, 6, 7, 13, 65, 100, 200});
  int64_t depth = pick({0, 1, 3, 4, 8, 9, 31, 64, 130, 1100});
  int64_t outputs = pick({0, 1, 15, 16, 17, 64, 65, 130});
  double density = pick({0, 1, 3, 10}) / 10.0;
  bool broken = rng() % 8 == 0, strange = rng() % 8 == 0;
  std::vector<float> x, y;
  Case() : x(rows * depth), y(rows * outputs, NAN) {
    for (float& v : x) v = real();
    if (strange && !x.empty())
      x[below(x.size())] = rng() % 2 ? NAN : INFINITY;
  }
};

// Starts and ascending indices of `groups`, each of `limit` places kept by chance.
template <class Index>
void choose(int64_t groups, int64_t limit, double density, std::vector<int32_t>& start,
            std::vector<Index>& index) {
  start = {0};
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t k = 0; k < limit; k++)
      if (std::uniform_real_distribution<>()(rng) < density) index.push_back(k);
    start.push_back(index.size());
  }
}

// Makes an index or a start wrong in one of a few ways; false where there was nothing to break.
template <class Index>
bool spoil(std::vector<int32_t>& start, std::vector<Index>& index, int64_t limit) {
  if (rng() % 2 && !index.empty()) {
    index[below(index.size())] = rng() % 2 && limit < 60000 ? limit : static_cast<Index>(-1);
    return true;
  }
  start.back() = rng() % 2 ? static_cast<int32_t>(index.size()) + 1 : -1;
  return true;
}

int wrong = 0, calls = 0;

// `expected[r][n]` in double for rows without a NaN; `error` is relative to the row's magnitude.
void check(const char* name, const Case& c, const char* answer, bool broken,
           const std::vector<double>& w, double error) {
  calls++;
  if (broken != (answer != nullptr)) {
    wrong++;
    std::printf("%s: %s\n", name, answer ? answer : "accepted what is broken");
    return;
  }
  if (answer != nullptr) return;
  for (int64_t r = 0; r < c.rows; r++) {
    double most = 0;
    bool finite = true;
    for (int64_t k = 0; k < c.depth; k++) {
      finite = finite && std::isfinite(c.x[r * c.depth + k]);
      most = std::max(most, std::fabs(static_cast<double>(c.x[r * c.depth + k])));
    }
    if (!finite) continue;
    for (int64_t n = 0; n < c.outputs; n++) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < c.depth; k++) {
        sum += c.x[r * c.depth + k] * w[k * c.outputs + n];
        size += std::fabs(w[k * c.outputs + n]);
      }
      if (!(std::fabs(c.y[r * c.outputs + n] - sum) <= error * most * size + 1e-6)) {
        wrong++;
        std::printf("%s: %g instead of %g at [%ld, %ld]\n", name, c.y[r * c.outputs + n], sum,
                    static_cast<long>(r), static_cast<long>(n));
        return;
      }
    }
  }
}

void vectors(Pool& pool) {
  Case c;
  const int64_t length = pick({16, 32, 64}), groups = (c.outputs + length - 1) / length;
  std::vector<int32_t> start, index;
  choose(groups, c.depth, c.density, start, index);
  std::vector<float> values(index.size() * length);
  for (float& v : values) v = real();
  std::vector<double> w(c.depth * c.outputs);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t i = start[g]; i < start[g + 1]; i++)
      for (int64_t j = 0; j < length && g * length + j < c.outputs; j++)
        w[index[i] * c.outputs + g * length + j] += values[i * length + j];
  const bool broken = c.broken && spoil(start, index, c.depth);
  check("vectors", c,
        vector_product(pool, c.x.data(), c.rows, c.depth, values.data(), index.data(),
                       index.size(), length, start.data(), groups, c.y.data(), c.outputs),
        broken, w, 1e-5);
}

template <class Index>
void columns(Pool& pool) {
  Case c;
  std::vector<int32_t> start;
  std::vector<Index> index;
  choose(c.outputs, c.depth, c.density, start, index);
  std::vector<float> values(index.size());
  for (float& v : values) v = real();
  std::vector<double> w(c.depth * c.outputs);
  for (int64_t n = 0; n < c.outputs; n++)
    for (int64_t i = start[n]; i < start[n + 1]; i++) w[index[i] * c.outputs + n] += values[i];
  const bool broken = c.broken && spoil(start, index, c.depth);
  check("columns", c,
        column_product<Index>(pool, c.x.data(), c.rows, c.depth, values.data(), index.data(),
                              index.size(), start.data(), c.y.data(), c.outputs),
        broken, w, 1e-5);
}

void matrix(Pool& pool) {
  Case c;
  if (c.rows == 0) return;
  c.rows = 1;
  std::vector<float> w(c.depth * c.outputs);
  for (float& v : w) v = real();
  check("matrix", c,
        vector_matrix_product(pool, c.x.data(), w.data(), c.depth, c.y.data(), c.outputs), false,
        {w.begin(), w.end()}, 1e-5);
}

void tiles(Pool& pool, bool sparse) {
  Case c;
  const int64_t tall = (c.depth + 3) / 4, strips = (c.outputs + 15) / 16;
  std::vector<int32_t> start, index, sums(strips * 16);
  choose(strips, tall, sparse ? c.density : 1.1, start, index);
  std::vector<int8_t> codes(index.size() * 64);
  std::vector<float> scale(strips * 16);
  std::vector<double> w(c.depth * c.outputs);
  for (float& v : scale) v = std::fabs(real()) + 0.1f;
  for (int64_t s = 0; s < strips; s++)
    for (int64_t i = start[s]; i < start[s + 1]; i++)
      for (int64_t n = 0; n < 16; n++)
        for (int64_t j = 0; j < 4; j++) {
          const int64_t k = 4 * index[i] + j, o = 16 * s + n;
          if (k >= c.depth || o >= c.outputs) continue;
          const int8_t code = static_cast<int8_t>(below(256) - 128);
          codes[i * 64 + n * 4 + j] = code;
          sums[o] += code;
          w[k * c.outputs + o] = code * static_cast<double>(scale[o]);
        }
  const bool broken = sparse && c.broken && spoil(start, index, tall);
  check("tiles", c,
        tile_product(pool, c.x.data(), c.rows, c.depth, codes.data(), index.size(),
                     sparse ? index.data() : nullptr, sparse ? start.data() : nullptr, strips,
                     sums.data(), scale.data(), c.y.data(), c.outputs),
        broken, w, 0.5 / 127 + 1e-5);
}

void nibbles(Pool& pool) {
  Case c;
  int64_t group = pick({8, 16, 32, 40, 128, 4096});
  const int64_t tall = (c.depth + 7) / 8, strips = (c.outputs + 15) / 16;
  const int64_t groups = (tall * 8 + group - 1) / group;
  std::vector<uint8_t> packed(strips * tall * 64, 0x88);
  std::vector<float> scale(groups * strips * 16);
  for (float& v : scale) v = std::fabs(real()) + 0.1f;
  std::vector<double> w(c.depth * c.outputs);
  for (int64_t k = 0; k < c.depth; k++)
    for (int64_t o = 0; o < c.outputs; o++) {
      const int code = static_cast<int>(below(16));
      uint8_t& at = packed[((o / 16 * tall + k / 8) * 16 + o % 16) * 4 + k % 4];
      at = k % 8 < 4 ? (at & 0xf0) | code : (at & 0x0f) | code << 4;
      w[k * c.outputs + o] = (code - 8) * static_cast<double>(scale[k / group * strips * 16 + o]);
    }
  if (c.broken) group += 3;
  check("nibbles", c,
        nibble_product(pool, c.x.data(), c.rows, c.depth, packed.data(), strips, scale.data(),
                       group, c.y.data(), c.outputs),
        c.broken, w, 0.5 / 127 + 1e-5);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3 || !use_instruction_set(arguments[1])) return 2;
  const int total = std::atoi(arguments[2]);
  while (calls < total) {
    Threads pool;
    switch (calls % 7) {
      case 0: vectors(pool); break;
      case 1: columns<uint16_t>(pool); break;
      case 2: columns<int32_t>(pool); break;
      case 3: matrix(pool); break;
      case 4: tiles(pool, false); break;
      case 5: tiles(pool, true); break;
      default: nibbles(pool);
    }
  }
  std::printf("%s: %d calls, %d wrong\n", instruction_set(), calls, wrong);
  return wrong != 0;
}
