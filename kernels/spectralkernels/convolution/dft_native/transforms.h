// The folded truncated DFT of planes that lie in lanes, both ways; `folding.py` makes its matrices and derives it.
#pragma once
#include <array>

#include "vectors.h"

// What is kept of the spectrum: |u| < ku of the rows, v < kv of the columns. A map has `rows` modes in each of kv
// columns; a series has ku = rows = 1. Modes are ordered (v, u), u in FFT order.
struct Modes {
  int64_t axes, ku, rows, kv;
  const int64_t* reach;  // of a staircase: column v has |u| < reach[v] only, and holes in place of the others; or null
  int64_t count() const { return rows * kv; }
  int64_t reach_of(int64_t v) const { return reach ? reach[v] : ku; }
  // The rows of column v, of `all`, as two runs between which its holes are.
  std::array<std::pair<int64_t, int64_t>, 2> runs(int64_t v, int64_t all) const {
    if (!reach) return {{{0, all}, {all, all}}};
    return {{{0, reach[v]}, {std::clamp(rows - std::min(reach[v] - 1, rows - ku), reach[v], rows), rows}}};
  }
  bool hole(int64_t v, int64_t row) const {
    const auto [first, last] = runs(v, rows);
    return row >= first.second && row < last.first;
  }
};

// The weights of a mask, [row of the batch or one for all, mode]; none is a mask of ones.
struct Mask {
  const void* weights;
  int64_t of_row;
};

// Modes times their weights: planes i of `count` belong to row `first + i / per_row`.
template <class T>
ONCE void weigh(const Modes& modes, const Mask& mask, int64_t first, int64_t per_row, int64_t count, Vector<T>* to,
                int64_t next, int64_t part) {
  if (!mask.weights) return;
  for (int64_t f = 0; f < modes.count(); ++f, to += next) {
    if (modes.hole(f / modes.rows, f % modes.rows)) continue;
    const T* weight = static_cast<const T*>(mask.weights) + first * mask.of_row + f;
    for (int64_t i = 0; i < count; ++i) {
      const T by = weight[i / per_row * mask.of_row];
      to[i] *= by, to[part + i] *= by;
    }
  }
}

// One end of a transform: planes of height x width, of which the first `front` rows and columns are zeros that are not
// in memory. matrices: cos and sin of the height, then of the width.
struct Side {
  int64_t height, width, front_height, front_width;
  const void* matrices;
  int64_t pixels() const { return height * width; }
  int64_t stored() const { return (height - front_height) * (width - front_width); }
  int64_t half_height() const { return (height + 1) / 2; }
  int64_t half_width() const { return (width + 1) / 2; }
};

// The taps of `planes` kernels, or maps, in lanes, with the zeros in front. ahead: as in `to_lanes`.
template <class T>
static inline void load(const Side& side, const T* from, int64_t stride, int planes, Vector<T>* to, int64_t ahead = 0) {
  if (side.front_height == 0 && side.front_width == 0)
    return to_lanes<T>(from, stride, planes, side.pixels(), to, ahead);
  std::fill(to, to + side.pixels(), Vector<T>{});
  const int64_t width = side.width - side.front_width;
  for (int64_t h = side.front_height; h < side.height; ++h, from += width)
    to_lanes<T>(from, stride, planes, width, to + h * side.width + side.front_width, ahead);
}

template <class T>
static inline void store(const Side& side, const Vector<T>* from, T* to, int64_t stride, int planes) {
  if (side.front_height == 0 && side.front_width == 0) return from_lanes<T>(from, to, stride, planes, side.pixels());
  const int64_t width = side.width - side.front_width;
  for (int64_t h = side.front_height; h < side.height; ++h, to += width)
    from_lanes<T>(from + h * side.width + side.front_width, to, stride, planes, width);
}

// cos and sin of one axis, [terms, columns] each, cut into panels of columns. Terms count from the centre of a plane,
// or from frequency zero; the first `alone` of them have no sine, and no row in the sines. As many terms and columns
// are used as are wanted, columns in whole panels.
template <class T>
struct Matrix {
  const T *cos, *sin;
  int64_t terms, alone, columns, wanted_terms = terms, wanted_columns = columns;
  Matrix(const T* at, int64_t terms, int64_t alone, int64_t columns)
      : cos(at), sin(at + terms * columns), terms(terms), alone(alone), columns(columns) {}
  const T* end() const { return sin + (terms - alone) * columns; }
};

template <class T>
struct Analysis {
  Matrix<T> height, width;
  Analysis(const Modes& modes, const Side& side)
      : height(static_cast<const T*>(side.matrices), side.half_height(), side.height % 2, modes.ku),
        width(height.end(), side.half_width(), side.width % 2, modes.kv) {}
};

template <class T>
struct Synthesis {
  Matrix<T> height, width;
  Synthesis(const Modes& modes, const Side& side)
      : height(static_cast<const T*>(side.matrices), modes.ku, 1, side.half_height()),
        width(height.end(), modes.kv, 1, side.half_width()) {}
};

// Columns of a matrix that are multiplied at a time: they lie together, so that each part of a matrix is read in order.
constexpr int kPanel = kRegisters == 32 ? 6 : 3;

// For M columns from m0 on: the sums A = cos^T p, C = cos^T q, B = sin^T r, D = sin^T s over quads {p, q, r, s}, one
// per term, handed to use(m, A, C, B, D). A and C begin at `start`.
template <class T, int M, class Use>
INLINE void four_sums_of(int64_t m0, const Matrix<T>& by, const Vector<T>* quads, Vector<T> start, Use use) {
  Vector<T> A[M], B[M], C[M], D[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) A[m] = C[m] = start, B[m] = D[m] = Vector<T>{};
  const T *cos = by.cos + m0 * by.terms, *sin = by.sin + m0 * (by.terms - by.alone);
  const auto add_cosines = [&] {
    Vector<T> p = quads[0], q = quads[1];
    HOLD(p);
    HOLD(q);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) A[m] += cos[m] * p, C[m] += cos[m] * q;
    cos += M;
  };
  int64_t left = by.wanted_terms;
  if (by.alone && left > 0) add_cosines(), quads += 4, --left;
  for (; left > 0; --left, quads += 4, sin += M) {
    add_cosines();
    Vector<T> r = quads[2], s = quads[3];
    HOLD(r);
    HOLD(s);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) B[m] += sin[m] * r, D[m] += sin[m] * s;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) use(m0 + m, A[m], C[m], B[m], D[m]);
}

template <class T, class Use>
INLINE void four_sums(const Matrix<T>& by, const Vector<T>* quads, Vector<T> start, Use use) {
  const int64_t panels = (by.columns + kPanel - 1) / kPanel, least = by.columns / panels, wider = by.columns % panels;
  for (int64_t m = 0, panel = 0; m < by.wanted_columns; ++panel) {
    const int64_t columns = least + (panel < wider);
#define CASE(M)                                                                      \
  case M:                                                                            \
    if constexpr (M <= kPanel) four_sums_of<T, M>(m, by, quads, start, use);         \
    break;
    switch (columns) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    m += columns;
  }
}

// Even and odd parts about the centre of two rows of `width` vectors -> quads {even, even, odd, odd}.
template <class T>
INLINE void fold(const Vector<T>* first, const Vector<T>* second, int64_t width, Vector<T>* quads) {
  for (int64_t left = (width - 1) / 2, right = width / 2; left >= 0; --left, ++right, quads += 4) {
    const Vector<T> a = first[left], b = first[right], c = second[left], d = second[right];
    quads[0] = a + b, quads[1] = c + d, quads[2] = b - a, quads[3] = d - c;
  }
}

// Vectors of the tables between the two axes. An odd number of quads to the next column, or row: a power of two would
// fill few sets of the cache.
inline int64_t column_step(const Side& side) { return 4 * (side.half_height() | 1); }
inline int64_t column_vectors(const Modes& modes, const Side& side) { return modes.kv * column_step(side); }
inline int64_t row_step(const Modes& modes) { return 4 * (modes.kv | 1); }
inline int64_t row_vectors(const Modes& modes, const Side& side) { return side.half_height() * row_step(modes); }

// How many vectors the functions below need besides their arguments: the quads of one axis, and a table.
inline int64_t quad_vectors(const Modes& modes, const Side& side) {
  return 4 * std::max({side.half_width(), modes.ku, modes.kv});
}
inline int64_t scratch_vectors(const Modes& modes, const Side& side) {
  const int64_t table = modes.axes == 2 ? std::max(column_vectors(modes, side), row_vectors(modes, side)) : 0;
  return quad_vectors(modes, side) + table;
}

// Planes that are wanted next, brought nearer bit by bit while others are computed; none if `planes` is 0.
template <class T>
struct Next {
  const T* from = nullptr;
  int64_t stride = 0;
  int planes = 0;
  void bring(int64_t numbers) {
    for (int lane = 0; lane < planes; ++lane)
      for (int64_t i = 0; i < numbers; i += 64 / sizeof(T)) __builtin_prefetch(from + lane * stride + i, 0, 2);
    from += numbers;
  }
};

// The DFT along the half axis of a map in lanes -> per v, quads of the folds over the height {even re, even im, odd im,
// odd re}.
template <class T>
ONCE void analyse_columns(const Modes& modes, const Side& side, const Vector<T>* map, Vector<T>* columns,
                          Vector<T>* quads, Next<T> next = {}) {
  const Matrix<T> by = Analysis<T>(modes, side).width;
  const int64_t step = column_step(side);
  for (int64_t upper = (side.height - 1) / 2, lower = side.height / 2; upper >= 0; --upper, ++lower, columns += 4) {
    next.bring(2 * side.width);
    fold<T>(map + upper * side.width, map + lower * side.width, side.width, quads);
    four_sums<T>(by, quads, Vector<T>{}, [=](int64_t v, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
      Vector<T>* to = columns + v * step;
      to[0] = A + C, to[1] = B + D, to[2] = B - D, to[3] = A - C;
    });
  }
}

// The DFT along the height of column v of that -> its modes, `part` vectors from real to imaginary, `next` to the
// next.
template <class T>
ONCE void analyse_rows(const Modes& modes, const Side& side, int64_t v, const Vector<T>* column, Vector<T>* to,
                       int64_t next, int64_t part) {
  const int64_t rows = modes.rows, partners = rows - modes.ku;
  Matrix<T> by = Analysis<T>(modes, side).height;
  by.wanted_columns = modes.reach_of(v);
  four_sums<T>(by, column, Vector<T>{},
               [=](int64_t u, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 Vector<T>* plus = to + u * next;
                 plus[0] = A + B, plus[part] = C - D;
                 if (u == 0 || u > partners) return;  // the Nyquist row is its own partner
                 Vector<T>* minus = to + (rows - u) * next;
                 minus[0] = A - B, minus[part] = C + D;
               });
}

// The transpose of `analyse_rows`: the modes of column v -> quads {re, re, im, im} of each two rows about the centre.
template <class T>
ONCE void synthesise_rows(const Modes& modes, const Side& side, int64_t v, const Vector<T>* from, int64_t next,
                          int64_t part, Vector<T>* rows, Vector<T>* quads) {
  const int64_t reach = modes.reach_of(v), partners = modes.rows - modes.ku, step = row_step(modes);
  for (int64_t u = 0; u < reach; ++u) {
    const Vector<T>* plus = from + u * next;
    Vector<T>* quad = quads + 4 * u;
    quad[0] = quad[3] = plus[0], quad[1] = quad[2] = plus[part];
    if (u == 0 || u > partners) continue;
    const Vector<T>* minus = from + (modes.rows - u) * next;
    quad[0] += minus[0], quad[1] += minus[part], quad[2] -= minus[part], quad[3] -= minus[0];
  }
  Matrix<T> by = Synthesis<T>(modes, side).height;
  by.wanted_terms = reach;
  four_sums<T>(by, quads, Vector<T>{},
               [=](int64_t h, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 Vector<T>* quad = rows + h * step + 4 * v;
                 quad[0] = A - B, quad[1] = A + B, quad[2] = C + D, quad[3] = C - D;
               });
}

// Two rows of a map, or two series, from the quads {re, re, im, im} of their modes, plus `start`.
template <class T>
ONCE void synthesise_pair(const Modes& modes, const Side& side, const Vector<T>* quads, Vector<T> start,
                          Vector<T>* first, Vector<T>* second) {
  const int64_t left = (side.width - 1) / 2, right = side.width / 2;
  four_sums<T>(Synthesis<T>(modes, side).width, quads, start,
               [=](int64_t w, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 first[right + w] = A + B, second[right + w] = C + D;
                 first[left - w] = A - B, second[left - w] = C - D;
               });
}

// The transpose of `analyse_columns` once the rows of every column are there: rows -> map + start.
template <class T>
INLINE void synthesise_columns(const Modes& modes, const Side& side, const Vector<T>* rows, Vector<T> start,
                               Vector<T>* map) {
  const int64_t step = row_step(modes);
  for (int64_t upper = (side.height - 1) / 2, lower = side.height / 2; upper >= 0; --upper, ++lower, rows += step)
    synthesise_pair<T>(modes, side, rows, start, map + upper * side.width, map + lower * side.width);
}

// --- whole transforms, of maps one by one and of series in pairs -----------------------------------------------------

// load(i, vectors) brings plane i of `count` into lanes; its modes go to `to`, planes side by side.
template <class T, class Load>
INLINE void analyse(const Modes& modes, const Side& side, int64_t count, Load load, Vector<T>* to, int64_t next,
                    int64_t part, Vector<T>* planes, Vector<T>* scratch) {
  Vector<T>*quads = scratch, *columns = scratch + quad_vectors(modes, side);
  if (modes.axes == 2) {
    for (int64_t i = 0; i < count; ++i) {
      load(i, planes);
      analyse_columns<T>(modes, side, planes, columns, quads);
      for (int64_t v = 0; v < modes.kv; ++v)
        analyse_rows<T>(modes, side, v, columns + v * column_step(side), to + i + v * modes.rows * next, next, part);
    }
    return;
  }
  const Matrix<T> by = Analysis<T>(modes, side).width;
  Vector<T>*first = planes, *second = planes + side.width;
  for (int64_t i = 0; i < count; i += 2) {
    const int64_t other = std::min(i + 1, count - 1);
    load(i, first), load(other, second);
    fold<T>(first, second, side.width, quads);
    four_sums<T>(by, quads, Vector<T>{}, [=](int64_t v, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
      Vector<T>* mode = to + v * next;
      mode[i] = A, mode[other] = C, mode[part + i] = B, mode[part + other] = D;
    });
  }
}

// The transpose, plus start(i); store(i, vectors) takes plane i away.
template <class T, class Start, class Store>
INLINE void synthesise(const Modes& modes, const Side& side, int64_t count, const Vector<T>* from, int64_t next,
                       int64_t part, Start start, Store store, Vector<T>* planes, Vector<T>* scratch) {
  Vector<T>*quads = scratch, *rows = scratch + quad_vectors(modes, side);
  if (modes.axes == 2) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t v = 0; v < modes.kv; ++v)
        synthesise_rows<T>(modes, side, v, from + i + v * modes.rows * next, next, part, rows, quads);
      synthesise_columns<T>(modes, side, rows, start(i), planes);
      store(i, planes);
    }
    return;
  }
  for (int64_t i = 0; i < count; i += 2) {
    const int64_t other = std::min(i + 1, count - 1);
    for (int64_t v = 0; v < modes.kv; ++v) {
      const Vector<T>* mode = from + v * next;
      quads[4 * v] = mode[i], quads[4 * v + 1] = mode[other];
      quads[4 * v + 2] = mode[part + i], quads[4 * v + 3] = mode[part + other];
    }
    Vector<T>*first = planes, *second = planes + side.width;
    synthesise_pair<T>(modes, side, quads, Vector<T>{}, first, second);
    const Vector<T> to_first = start(i), to_second = start(other);
    for (int64_t j = 0; j < side.width; ++j) first[j] += to_first, second[j] += to_second;
    store(i, first);
    if (other != i) store(other, second);
  }
}
