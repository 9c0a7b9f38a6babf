// Band-limited convolution by folded truncated DFTs, planes in the lanes of registers; the mathematics is in
// __init__.py.
//
// Channels in lanes (dense):  Z [block of B, group, block of C, F, 2, B, lanes], W a column of modes at a time, in
// cache Groups in lanes (few channels each, depthwise among them):  everything of a block of groups at once, in cache
//
// Every number is the sum of the same terms in the same order whatever the number of threads.
#include <ATen/Parallel.h>

#include <atomic>

#include "frozen.h"
#include "products.h"
#include "transforms.h"

namespace {

constexpr int64_t kCacheBytes = 1 << 20;  // about what a task holds of weights, and of products

// Channels are per group: `in` of the maps that are analysed, `out` of those that are made. block: batch rows together.
struct Sizes {
  int64_t batch, groups, in, out, block;
};

// Where the taps of (out channel, in channel, group) lie; the outer two strides change places in a transposed product.
struct Taps {
  int64_t of_out, of_in, of_group;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Workers take tasks one after the other, so that none waits for one that the system has put aside. A worker is made
// per thread, with the memory it needs.
template <class MakeWorker>
void share(int64_t tasks, MakeWorker make_worker) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t task = next++;
      if (task >= tasks) return;
      auto worker = make_worker();
      for (; task < tasks; task = next++) worker(task);
    }
  });
}

template <class T>
Vector<T> in_lanes(const T* numbers, int64_t stride, int count) {
  Vector<T> found{};
  for (int lane = 0; lane < count && numbers; ++lane) found[lane] = numbers[lane * stride];
  return found;
}

template <class T>
Vector<T>* as_vectors(T* numbers) {
  return reinterpret_cast<Vector<T>*>(numbers);
}
template <class T>
const Vector<T>* as_vectors(const T* numbers) {
  return reinterpret_cast<const Vector<T>*>(numbers);
}

// --- channels in lanes ----------------------------------------------------------------------------------------------

// Z: where a block of batch rows and of channels begins, and how many vectors it has.
template <class T>
struct Spectrum {
  int64_t modes, groups, channel_blocks, block;
  Spectrum(const Modes& kept, const Sizes& sizes, int64_t channels)
      : modes(kept.count()),
        groups(sizes.groups),
        channel_blocks(divide_up(channels, Register<T>::lanes)),
        block(sizes.block) {}
  int64_t vectors() const { return modes * 2 * block; }
  int64_t batch_stride() const { return groups * channel_blocks * vectors(); }
  int64_t at(int64_t batch_block, int64_t group, int64_t channel_block) const {
    return ((batch_block * groups + group) * channel_blocks + channel_block) * vectors();
  }
};

template <class T>
void analyse_maps(const Modes& modes, const Side& side, const Sizes& sizes, const Mask& mask, const T* maps, T* z) {
  constexpr int lanes = Register<T>::lanes;
  const Spectrum<T> spectrum(modes, sizes, sizes.in);
  const int64_t together = 2, pairs = divide_up(sizes.block, together), stored = side.stored();
  share(divide_up(sizes.batch, sizes.block) * sizes.groups * spectrum.channel_blocks * pairs, [&] {
    return [&, planes = Buffer<T>(2 / modes.axes * side.pixels()),
            scratch = Buffer<T>(scratch_vectors(modes, side))](int64_t task) {
      const int64_t first = task % pairs * together, c = task / pairs % spectrum.channel_blocks;
      const int64_t group = task / pairs / spectrum.channel_blocks % sizes.groups;
      const int64_t batch_block = task / pairs / spectrum.channel_blocks / sizes.groups;
      const int64_t b = batch_block * sizes.block + first;
      const int64_t last = std::min({sizes.batch, b + together, (batch_block + 1) * sizes.block});
      const int found = std::min<int64_t>(lanes, sizes.in - c * lanes);
      const T* from = maps + ((b * sizes.groups + group) * sizes.in + c * lanes) * stored;
      Vector<T>* to = as_vectors(z) + spectrum.at(batch_block, group, c) + first;
      analyse<T>(
          modes, side, last - b,
          [&](int64_t i, Vector<T>* to) {
            load<T>(side, from + i * sizes.groups * sizes.in * stored, stored, found, to);
          },
          to, 2 * sizes.block, sizes.block, planes, scratch);
      weigh<T>(modes, mask, b, 1, last - b, to, 2 * sizes.block, sizes.block);
    };
  });
}

// y = E (m Z conj(D w)) + bias. The numbers of a frozen weight are those of its modes, and taps say where they lie.
template <class T>
void convolve(const Modes& modes, const Side& side, const Side& output, const Sizes& sizes, const Taps& taps,
              const Frozen& frozen, const Mask& mask, const T* z, const T* weight, const T* bias, T* y) {
  constexpr int lanes = Register<T>::lanes;
  const Spectrum<T> spectrum(modes, sizes, sizes.in);
  const bool separable = modes.axes == 2;  // a series has all its modes in one column
  const int64_t columns = separable ? modes.kv : 1, in_column = separable ? modes.rows : modes.kv;
  const int64_t of_column = separable && !frozen.turn ? column_vectors(modes, side) : 0;
  const int64_t of_channel = (of_column + 2 * in_column) * kVectorBytes;
  const int64_t at_most = std::max<int64_t>(1, kCacheBytes / of_channel / lanes);
  const int64_t chunks = divide_up(spectrum.channel_blocks, at_most);
  const int64_t chunk = divide_up(spectrum.channel_blocks, chunks) * lanes;
  const int64_t padded = chunk + 2;  // a power of two would fill few sets of the cache
  const int64_t out_blocks = divide_up(sizes.out, lanes), rest = sizes.groups * out_blocks;
  const int64_t rows_at_most = std::max<int64_t>(8, 2 * kCacheBytes / (2 * modes.count() * kVectorBytes));
  const int64_t wanted = std::max(divide_up(sizes.batch, rows_at_most), divide_up(at::get_num_threads(), rest));
  const int64_t rows = divide_up(sizes.batch, std::min(sizes.batch, wanted)), splits = divide_up(sizes.batch, rows);
  const int64_t pixels = output.pixels(), stored = output.stored(),
                scratch_size = std::max(scratch_vectors(modes, side), scratch_vectors(modes, output));
  share(rest * splits, [&] {
    return [&, planes = Buffer<T>(2 / modes.axes * std::max(side.pixels(), pixels)), scratch = Buffer<T>(scratch_size),
            partial = Buffer<T>(chunk * of_column),
            column = Buffer<T>(in_column * 2 * padded),
            sums = Buffer<T>(modes.count() * 2 * rows)](int64_t task) {
      const int64_t split = task / rest, group = task % rest / out_blocks, o = task % out_blocks * lanes;
      const int64_t b0 = split * rows, b1 = std::min(sizes.batch, b0 + rows), count = b1 - b0;
      const int found = std::min<int64_t>(lanes, sizes.out - o);
      const T* kernels = weight + group * taps.of_group + o * taps.of_out;
      for (int64_t c0 = 0; c0 < sizes.in; c0 += chunk) {
        const int64_t channels = std::min(chunk, sizes.in - c0);
        const auto load_kernel = [&](int64_t c, Vector<T>* to) {
          load<T>(side, kernels + (c0 + c) * taps.of_in, taps.of_out, found, to, separable ? 0 : taps.of_in);
        };
        for (int64_t c = 0; c < channels && separable && !frozen.turn; ++c) {
          load_kernel(c, planes);
          const Next<T> next{kernels + (c0 + c + 1) * taps.of_in, taps.of_out, found};
          analyse_columns<T>(modes, side, planes, partial + c * of_column, scratch, next);
        }
        for (int64_t v = 0; v < columns; ++v) {
          if (frozen.turn) {
            for (const auto& [from, to] : modes.runs(v, in_column))
              for (int64_t f = from; f < to; ++f)
                thaw<T>(frozen, v * in_column + f, kernels + c0 * taps.of_in, taps.of_out, taps.of_in, found, channels,
                        column + f * 2 * padded, padded);
          } else if (separable) {
            for (int64_t c = 0; c < channels; ++c)
              analyse_rows<T>(modes, side, v, partial + c * of_column + v * column_step(side), column + c, 2 * padded,
                              padded);
          } else {
            analyse<T>(modes, side, channels, load_kernel, column, 2 * padded, padded, planes, scratch);
          }
          for (const auto& [from, to] : modes.runs(v, in_column)) {
            for (int64_t b = b0; b < b1;) {
              const int64_t batch_block = b / sizes.block, first = b % sizes.block;
              const int64_t some = std::min(sizes.block - first, b1 - b);
              const int64_t z_part = sizes.block * lanes, z_block = spectrum.vectors() * lanes;
              const Operands at{some,       channels, lanes, z_part,     lanes,            1, z_block,
                                2 * z_part, padded,   lanes, 2 * padded, sizes.block <= 2};
              const int64_t mode = (v * in_column + from) * 2 * sizes.block + first;
              multiply<T>(at, to - from, z + (spectrum.at(batch_block, group, c0 / lanes) + mode) * lanes,
                          column + from * 2 * padded, sums + (v * in_column + from) * 2 * count + (b - b0), 2 * count,
                          count, c0 > 0);
              b += some;
            }
          }
        }
      }
      weigh<T>(modes, mask, b0, 1, count, sums, 2 * count, count);
      const int64_t channel = group * sizes.out + o;
      const Vector<T> start = in_lanes<T>(bias ? bias + channel : nullptr, 1, found);
      synthesise<T>(
          modes, output, count, sums, 2 * count, count, [&](int64_t) { return start; },
          [&](int64_t i, const Vector<T>* from) {
            store<T>(output, from, y + ((b0 + i) * sizes.groups * sizes.out + channel) * stored, stored, found);
          },
          planes, scratch);
    };
  });
}

// dw = D^T (conj(G) Z), [group, out, in, taps]; g is the spectrum of dy, with out for its channels.
template <class T>
void weight_gradient(const Modes& modes, const Side& side, const Sizes& sizes, const T* g, const T* z, T* dw) {
  constexpr int lanes = Register<T>::lanes;
  const Spectrum<T> of_x(modes, sizes, sizes.in), of_y(modes, sizes, sizes.out);
  const bool separable = modes.axes == 2;
  const int64_t columns = separable ? modes.kv : 1, in_column = separable ? modes.rows : modes.kv;
  const int64_t in_blocks = of_x.channel_blocks, out_blocks = of_y.channel_blocks;
  const int64_t of_rows = separable ? row_vectors(modes, side) : 0, stored = side.stored();
  share(sizes.groups * out_blocks * in_blocks, [&] {
    return [&, planes = Buffer<T>(2 * side.pixels()), scratch = Buffer<T>(scratch_vectors(modes, side)),
            rows = Buffer<T>(lanes * of_rows), column = Buffer<T>(in_column * 2 * lanes)](int64_t task) {
      const int64_t c = task % in_blocks, o = task / in_blocks % out_blocks, group = task / in_blocks / out_blocks;
      const int64_t channels = std::min<int64_t>(lanes, sizes.in - c * lanes);
      const int found = std::min<int64_t>(lanes, sizes.out - o * lanes);
      T* to = dw + ((group * sizes.out + o * lanes) * sizes.in + c * lanes) * stored;
      const auto store_kernel = [&](int64_t i, const Vector<T>* from) {
        store<T>(side, from, to + i * stored, sizes.in * stored, found);
      };
      const int64_t g_part = sizes.block, z_part = g_part * lanes, z_block = of_x.batch_stride() * lanes;
      const Operands at{channels,   sizes.batch, sizes.block,         z_part,     1,            lanes, z_block,
                        2 * z_part, g_part,      of_y.batch_stride(), 2 * g_part, channels <= 2};
      for (int64_t v = 0; v < columns; ++v) {
        for (const auto& [from, to] : modes.runs(v, in_column)) {
          const int64_t mode = (v * in_column + from) * 2 * sizes.block;
          multiply<T>(at, to - from, z + (of_x.at(0, group, c) + mode) * lanes,
                      as_vectors(g) + of_y.at(0, group, o) + mode, column + from * 2 * lanes, 2 * lanes, lanes, false);
        }
        for (int64_t i = 0; i < channels && separable; ++i)
          synthesise_rows<T>(modes, side, v, column + i, 2 * lanes, lanes, rows + i * of_rows, scratch);
      }
      for (int64_t i = 0; i < channels && separable; ++i) {
        synthesise_columns<T>(modes, side, rows + i * of_rows, Vector<T>{}, planes);
        store_kernel(i, planes);
      }
      if (!separable)
        synthesise<T>(
            modes, side, channels, column, 2 * lanes, lanes, [](int64_t) { return Vector<T>{}; }, store_kernel, planes,
            scratch);
    };
  });
}

// --- groups in lanes
// --------------------------------------------------------------------------------------------------

// Planes (row, channel) of a block of groups: `per_group` channels each, rows from `row` on.
template <class T>
auto loader(const Side& side, const Sizes& sizes, const T* maps, int64_t per_group, int64_t row, int64_t group,
            int found) {
  return [=, &side](int64_t i, Vector<T>* to) {
    const int64_t plane = ((row + i / per_group) * sizes.groups + group) * per_group + i % per_group;
    load<T>(side, maps + plane * side.stored(), per_group * side.stored(), found, to);
  };
}
template <class T>
auto storer(const Side& side, const Sizes& sizes, T* maps, int64_t per_group, int64_t row, int64_t group, int found) {
  return [=, &side](int64_t i, const Vector<T>* from) {
    const int64_t plane = ((row + i / per_group) * sizes.groups + group) * per_group + i % per_group;
    store<T>(side, from, maps + plane * side.stored(), per_group * side.stored(), found);
  };
}

// The modes [F, 2, out in, lanes] of the kernels of a block of groups: transformed, or thawed.
template <class T>
void kernels(const Modes& modes, const Side& side, const Sizes& sizes, const Frozen& frozen, const T* weight,
             int64_t group, int found, Vector<T>* made, Vector<T>* planes, Vector<T>* scratch) {
  const int64_t pairs = sizes.out * sizes.in;
  for (int64_t f = 0; f < modes.count() && frozen.turn; ++f)
    thaw<T>(frozen, f, weight + group * pairs, pairs, 1, found, pairs, made + f * 2 * pairs, pairs);
  if (!frozen.turn)
    analyse<T>(modes, side, pairs, loader<T>(side, sizes, weight, pairs, 0, group, found), made, 2 * pairs, pairs,
               planes, scratch);
}

// y = E (m D x conj(D w)) + bias, for maps x [batch, group, in], weight [group, out, in], y [batch, group, out].
template <class T>
void convolve_lanes(const Modes& modes, const Side& input, const Side& side, const Side& output, const Sizes& sizes,
                    const Frozen& frozen, const Mask& mask, const T* x, const T* weight, const T* bias, T* y) {
  constexpr int lanes = Register<T>::lanes;
  const int64_t in = sizes.in, out = sizes.out, pairs = in * out, count = modes.count();
  const int64_t together = modes.axes == 1 ? 2 : 1;
  const int64_t blocks = divide_up(sizes.groups, lanes), wanted = divide_up(at::get_num_threads(), blocks);
  const int64_t rows = divide_up(sizes.batch, std::min(sizes.batch, wanted));
  const int64_t scratch_size =
      std::max({scratch_vectors(modes, input), scratch_vectors(modes, side), scratch_vectors(modes, output)});
  const int64_t plane = 2 / modes.axes * std::max({input.pixels(), side.pixels(), output.pixels()});
  share(blocks * divide_up(sizes.batch, rows), [&] {
    return [&, planes = Buffer<T>(plane), scratch = Buffer<T>(scratch_size),
            made = Buffer<T>(count * 2 * pairs), z = Buffer<T>(count * 2 * together * in),
            sums = Buffer<T>(count * 2 * together * out)](int64_t task) {
      const int64_t group = task % blocks * lanes, b0 = task / blocks * rows;
      const int found = std::min<int64_t>(lanes, sizes.groups - group);
      kernels<T>(modes, side, sizes, frozen, weight, group, found, made, planes, scratch);
      for (int64_t b = b0, last = std::min(sizes.batch, b0 + rows); b < last; b += together) {
        const int64_t some = std::min(together, last - b), z_part = some * in, part = some * out;
        analyse<T>(modes, input, some * in, loader<T>(input, sizes, x, in, b, group, found), z, 2 * z_part, z_part,
                   planes, scratch);
        for (int64_t i = 0; i < some * pairs; ++i) {
          const int64_t row = i / pairs, o = i / in % out, c = i % in;
          multiply_lanes<T, true>(count, z + row * in + c, 2 * z_part, z_part, made + o * in + c, 2 * pairs, pairs,
                                  sums + row * out + o, 2 * part, part, c > 0);
        }
        weigh<T>(modes, mask, b, out, some * out, sums, 2 * part, part);
        synthesise<T>(
            modes, output, some * out, sums, 2 * part, part,
            [&](int64_t i) { return in_lanes<T>(bias ? bias + group * out + i % out : nullptr, out, found); },
            storer<T>(output, sizes, y, out, b, group, found), planes, scratch);
      }
    };
  });
}

// dx = D^T (G D w) and dw = D^T (sum conj(G) Z) with G = m E^T dy and Z = D x; either may be null.
// `output` and `input` analyse dy and x, `side` the weight; `to_input` and `to_side` are for the way back.
template <class T>
void convolve_lanes_backward(const Modes& modes, const Side& output, const Side& input, const Side& side,
                             const Side& to_input, const Side& to_side, const Sizes& sizes, const Frozen& frozen,
                             const Mask& mask, const T* dy, const T* x, const T* weight, T* dx, T* dw) {
  constexpr int lanes = Register<T>::lanes;
  const int64_t in = sizes.in, out = sizes.out, pairs = in * out, count = modes.count();
  const int64_t together = modes.axes == 1 ? 2 : 1;
  const int64_t scratch_size =
      std::max({scratch_vectors(modes, input), scratch_vectors(modes, side), scratch_vectors(modes, output)});
  const int64_t plane = 2 / modes.axes * std::max({input.pixels(), side.pixels(), output.pixels()});
  const auto zero = [](int64_t) { return Vector<T>{}; };
  share(divide_up(sizes.groups, lanes), [&] {
    return [&, planes = Buffer<T>(plane), scratch = Buffer<T>(scratch_size),
            made = Buffer<T>(dx ? count * 2 * pairs : 0), g = Buffer<T>(count * 2 * together * out),
            z = Buffer<T>(count * 2 * together * in), gradient = Buffer<T>(dw ? count * 2 * pairs : 0)](int64_t task) {
      const int64_t group = task * lanes;
      const int found = std::min<int64_t>(lanes, sizes.groups - group);
      if (dx) kernels<T>(modes, side, sizes, frozen, weight, group, found, made, planes, scratch);
      for (int64_t b = 0; b < sizes.batch; b += together) {
        const int64_t some = std::min(together, sizes.batch - b), z_part = some * in, part = some * out;
        analyse<T>(modes, output, some * out, loader<T>(output, sizes, dy, out, b, group, found), g, 2 * part, part,
                   planes, scratch);
        weigh<T>(modes, mask, b, out, some * out, g, 2 * part, part);
        if (dw) {
          analyse<T>(modes, input, some * in, loader<T>(input, sizes, x, in, b, group, found), z, 2 * z_part, z_part,
                     planes, scratch);
          for (int64_t i = 0; i < some * pairs; ++i) {
            const int64_t row = i / pairs, o = i / in % out, c = i % in;
            multiply_lanes<T, true>(count, z + row * in + c, 2 * z_part, z_part, g + row * out + o, 2 * part, part,
                                    gradient + o * in + c, 2 * pairs, pairs, b + row > 0);
          }
        }
        if (dx) {
          for (int64_t i = 0; i < some * pairs; ++i) {
            const int64_t row = i / pairs, c = i / out % in, o = i % out;
            multiply_lanes<T, false>(count, g + row * out + o, 2 * part, part, made + o * in + c, 2 * pairs, pairs,
                                     z + row * in + c, 2 * z_part, z_part, o > 0);
          }
          synthesise<T>(modes, to_input, some * in, z, 2 * z_part, z_part, zero,
                        storer<T>(to_input, sizes, dx, in, b, group, found), planes, scratch);
        }
      }
      if (dw)
        synthesise<T>(modes, to_side, pairs, gradient, 2 * pairs, pairs, zero,
                      storer<T>(to_side, sizes, dw, pairs, 0, group, found), planes, scratch);
    };
  });
}

template <class Run>
int guarded(Run run) {
  try {
    run();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" int dft_native_vector_bytes() { return kVectorBytes; }
extern "C" int dft_native_panel() { return kPanel; }

#define EXPORT(T, NAME)                                                                                                \
  extern "C" int dft_native_analyse_##NAME(const Modes* modes, const Side* side, const Sizes* sizes, const Mask* mask, \
                                           const T* maps, T* z) {                                                      \
    return guarded([&] { analyse_maps<T>(*modes, *side, *sizes, *mask, maps, z); });                                   \
  }                                                                                                                    \
  extern "C" int dft_native_convolve_##NAME(const Modes* modes, const Side* side, const Side* output,                  \
                                            const Sizes* sizes, const Taps* taps, const Frozen* frozen,                \
                                            const Mask* mask, const T* z, const T* weight, const T* bias, T* y) {      \
    return guarded([&] { convolve<T>(*modes, *side, *output, *sizes, *taps, *frozen, *mask, z, weight, bias, y); });   \
  }                                                                                                                    \
  extern "C" int dft_native_weight_gradient_##NAME(const Modes* modes, const Side* side, const Sizes* sizes,           \
                                                   const T* g, const T* z, T* dw) {                                    \
    return guarded([&] { weight_gradient<T>(*modes, *side, *sizes, g, z, dw); });                                      \
  }                                                                                                                    \
  extern "C" int dft_native_convolve_lanes_##NAME(const Modes* modes, const Side* input, const Side* side,             \
                                                  const Side* output, const Sizes* sizes, const Frozen* frozen,        \
                                                  const Mask* mask, const T* x, const T* weight, const T* bias,        \
                                                  T* y) {                                                              \
    return guarded([&] {                                                                                               \
      convolve_lanes<T>(*modes, *input, *side, *output, *sizes, *frozen, *mask, x, weight, bias, y);                   \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" int dft_native_convolve_lanes_backward_##NAME(                                                            \
      const Modes* modes, const Side* output, const Side* input, const Side* side, const Side* to_input,               \
      const Side* to_side, const Sizes* sizes, const Frozen* frozen, const Mask* mask, const T* dy, const T* x,        \
      const T* weight, T* dx, T* dw) {                                                                                 \
    return guarded([&] {                                                                                               \
      convolve_lanes_backward<T>(*modes, *output, *input, *side, *to_input, *to_side, *sizes, *frozen, *mask, dy, x,   \
                                 weight, dx, dw);                                                                      \
    });                                                                                                                \
  }
EXPORT(float, float32)
EXPORT(double, float64)
