// The products as XLA's typed custom calls, registered from Python by their exported names.
#include <cstdint>
#include <functional>
#include <utility>

#include "products.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;
using S8 = ffi::Buffer<ffi::S8>;
using U8 = ffi::Buffer<ffi::U8>;
using U16 = ffi::Buffer<ffi::U16>;
using Result = ffi::ResultBuffer<ffi::F32>;

class XlaPool : public jaxsparse::Pool {
 public:
  explicit XlaPool(ffi::ThreadPool pool) : pool_(pool) {}
  // Asked only where the work is worth it: it costs as much as a small product.
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ffi::ThreadPool pool_;
};

ffi::Error answer(const char* wrong) {
  if (wrong == nullptr) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(std::string("jaxsparse: ") + wrong);
}

template <class B>
int64_t size(const B& buffer) {
  return static_cast<int64_t>(buffer.element_count());
}

// rows, depth and outputs of x[rows, depth] and y[rows, outputs].
struct Shape {
  const char* wrong = nullptr;
  int64_t rows = 0, depth = 0, outputs = 0;
  Shape(const F32& x, Result& y) {
    const auto in = x.dimensions(), out = y->dimensions();
    if (in.size() != 2 || out.size() != 2 || in[0] != out[0]) {
      wrong = "x and y must be matrices of as many rows";
      return;
    }
    rows = in[0], depth = in[1], outputs = out[1];
  }
};

ffi::Error Vectors(ffi::ThreadPool threads, F32 x, F32 values, S32 index, S32 start, Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  const auto shape = values.dimensions();
  if (shape.size() != 2 || shape[0] != size(index) || size(start) < 1)
    return answer("values must be [vectors, length], with an index for each vector");
  XlaPool pool(threads);
  return answer(jaxsparse::vector_product(
      pool, x.typed_data(), s.rows, s.depth, values.typed_data(), index.typed_data(), shape[0],
      shape[1], start.typed_data(), size(start) - 1, y->typed_data(), s.outputs));
}

template <class Indices>
ffi::Error Columns(ffi::ThreadPool threads, F32 x, F32 values, Indices index, S32 start,
                   Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  if (size(values) != size(index) || size(start) != s.outputs + 1)
    return answer("values and index must be of one size, and starts one more than outputs");
  XlaPool pool(threads);
  return answer(jaxsparse::column_product(pool, x.typed_data(), s.rows, s.depth,
                                          values.typed_data(), index.typed_data(), size(index),
                                          start.typed_data(), y->typed_data(), s.outputs));
}

ffi::Error VectorMatrix(ffi::ThreadPool threads, F32 x, F32 w, Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  const auto shape = w.dimensions();
  if (s.rows != 1 || shape.size() != 2 || shape[0] != s.depth || shape[1] != s.outputs)
    return answer("expected x [1, depth] and w [depth, outputs]");
  XlaPool pool(threads);
  return answer(jaxsparse::vector_matrix_product(pool, x.typed_data(), w.typed_data(), s.depth,
                                                 y->typed_data(), s.outputs));
}

const char* check_strips(int64_t strips, int64_t sums, int64_t scale) {
  return sums < 16 * strips || scale < 16 * strips ? "a sum and a scale are needed an output"
                                                   : nullptr;
}

ffi::Error Tiles(ffi::ThreadPool threads, F32 x, S8 tiles, S32 sums, F32 scale, Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  const int64_t strips = (s.outputs + 15) / 16;
  if (const char* wrong = check_strips(strips, size(sums), size(scale))) return answer(wrong);
  if (size(tiles) % 64 != 0) return answer("tiles must be of 64 bytes");
  XlaPool pool(threads);
  return answer(jaxsparse::tile_product(pool, x.typed_data(), s.rows, s.depth, tiles.typed_data(),
                                        size(tiles) / 64, nullptr, nullptr, strips,
                                        sums.typed_data(), scale.typed_data(), y->typed_data(),
                                        s.outputs));
}

ffi::Error SparseTiles(ffi::ThreadPool threads, F32 x, S8 tiles, S32 index, S32 start, S32 sums,
                       F32 scale, Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  if (size(start) < 1) return answer("starts are missing");
  const int64_t strips = size(start) - 1;
  if (const char* wrong = check_strips(strips, size(sums), size(scale))) return answer(wrong);
  if (size(tiles) != 64 * size(index))
    return answer("tiles must be of 64 bytes, with an index each");
  XlaPool pool(threads);
  return answer(jaxsparse::tile_product(pool, x.typed_data(), s.rows, s.depth, tiles.typed_data(),
                                        size(index), index.typed_data(), start.typed_data(),
                                        strips, sums.typed_data(), scale.typed_data(),
                                        y->typed_data(), s.outputs));
}

ffi::Error Nibbles(ffi::ThreadPool threads, F32 x, U8 packed, F32 scale, int64_t group, Result y) {
  const Shape s(x, y);
  if (s.wrong) return answer(s.wrong);
  const int64_t strips = (s.outputs + 15) / 16, depth = (s.depth + 7) / 8 * 8;
  if (size(packed) != strips * depth * 8) return answer("packed does not match x and y");
  if (group < 8 || size(scale) < (depth + group - 1) / group * strips * 16)
    return answer("a scale is needed a group and output");
  XlaPool pool(threads);
  return answer(jaxsparse::nibble_product(pool, x.typed_data(), s.rows, s.depth,
                                          packed.typed_data(), strips, scale.typed_data(), group,
                                          y->typed_data(), s.outputs));
}

}  // namespace

// GCC takes the exported symbols' visibility from here; all else stays inside the library.
#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_vectors, Vectors,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<F32>()
                                  .Arg<S32>().Arg<S32>().Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_columns16, Columns<U16>,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<F32>()
                                  .Arg<U16>().Arg<S32>().Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_columns32, Columns<S32>,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<F32>()
                                  .Arg<S32>().Arg<S32>().Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_vector_matrix, VectorMatrix,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<F32>()
                                  .Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_tiles, Tiles,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<S8>()
                                  .Arg<S32>().Arg<F32>().Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_sparse_tiles, SparseTiles,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<S8>()
                                  .Arg<S32>().Arg<S32>().Arg<S32>().Arg<F32>().Ret<F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nibbles, Nibbles,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<F32>().Arg<U8>()
                                  .Arg<F32>().Attr<int64_t>("group").Ret<F32>());

extern "C" const char* jaxsparse_instruction_set() { return jaxsparse::instruction_set(); }
extern "C" bool jaxsparse_use_instruction_set(const char* name) {
  return jaxsparse::use_instruction_set(name);
}
#pragma GCC visibility pop
