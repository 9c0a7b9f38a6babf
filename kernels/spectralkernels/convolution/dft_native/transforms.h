// The folded truncated DFT of planes that lie in lanes, both ways; `folding.py` makes its matrices and derives it.
#pragma once
#include "vectors.h"

// What is kept of the spectrum: |u| < ku of the rows, v < kv of the columns. A map has `rows` modes in each of kv
// columns; a series has ku = rows = 1. Modes are ordered (v, u), u in FFT order.
struct Modes {
  int64_t axes, ku, rows, kv;
  int64_t count() const { return rows * kv; }
};

// One end of a transform: planes of height x width, of which the first `front` rows and columns are zeros that are not
// in memory. matrices: cos and sin of the height, then of the width.
struct Side {
  int64_t height, width, front_height, front_width;
  const void* matrices;
  int64_t pixels() const { return height * width; }
  int64_t stored() const { return (height - front_height) * (width - front_width); }
};

// The taps of `planes` kernels, or maps, in lanes, with the zeros in front.
template <class T>
static inline void load(const Side& side, const T* from, int64_t stride, int planes, Vector<T>* to) {
  if (side.front_height == 0 && side.front_width == 0) return to_lanes<T>(from, stride, planes, side.pixels(), to);
  std::fill(to, to + side.pixels(), Vector<T>{});
  const int64_t width = side.width - side.front_width;
  for (int64_t h = side.front_height; h < side.height; ++h, from += width)
    to_lanes<T>(from, stride, planes, width, to + h * side.width + side.front_width);
}

template <class T>
static inline void store(const Side& side, const Vector<T>* from, T* to, int64_t stride, int planes) {
  if (side.front_height == 0 && side.front_width == 0) return from_lanes<T>(from, to, stride, planes, side.pixels());
  const int64_t width = side.width - side.front_width;
  for (int64_t h = side.front_height; h < side.height; ++h, to += width)
    from_lanes<T>(from + h * side.width + side.front_width, to, stride, planes, width);
}

template <class T>
struct Matrices {
  const T *cos_height, *sin_height, *cos_width, *sin_width;
  int64_t half_height, half_width;
  Matrices(const Modes& modes, const Side& side)
      : half_height((side.height + 1) / 2), half_width((side.width + 1) / 2) {
    cos_height = static_cast<const T*>(side.matrices);
    sin_height = cos_height + half_height * modes.ku;
    cos_width = sin_height + half_height * modes.ku;
    sin_width = cos_width + half_width * modes.kv;
  }
};

// Columns of a matrix that are multiplied at a time: they lie together, so that each part of a matrix is read in order.
constexpr int kPanel = kRegisters == 32 ? 6 : 3;

// For each column m of two matrices [terms, columns], in panels: the sums A = cos^T p, C = cos^T q, B = sin^T r, D =
// sin^T s over vectors `step` apart, handed to use(m, A, C, B, D). A and C begin at `start`.
template <class T, int M, class Use>
INLINE void four_sums_of(int64_t m0, const T* cos, const T* sin, int64_t terms, const Vector<T>* p, const Vector<T>* q,
                         const Vector<T>* r, const Vector<T>* s, int64_t step, Vector<T> start, Use use) {
  Vector<T> A[M], B[M], C[M], D[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) A[m] = C[m] = start, B[m] = D[m] = Vector<T>{};
  cos += m0 * terms, sin += m0 * terms;
  for (int64_t j = 0; j < terms; ++j, cos += M, sin += M) {
    Vector<T> pj = p[j * step], qj = q[j * step];
    HOLD(pj);
    HOLD(qj);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) A[m] += cos[m] * pj, C[m] += cos[m] * qj;
    Vector<T> rj = r[j * step], sj = s[j * step];
    HOLD(rj);
    HOLD(sj);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) B[m] += sin[m] * rj, D[m] += sin[m] * sj;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) use(m0 + m, A[m], C[m], B[m], D[m]);
}

template <class T, class Use>
INLINE void four_sums(const T* cos, const T* sin, int64_t columns, int64_t terms, const Vector<T>* p,
                      const Vector<T>* q, const Vector<T>* r, const Vector<T>* s, int64_t step, Vector<T> start,
                      Use use) {
  const int64_t parts = (columns + kPanel - 1) / kPanel;
  int64_t m = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t share = (columns - m + parts - part - 1) / (parts - part);
#define CASE(M)                                                                                      \
  case M:                                                                                            \
    if constexpr (M <= kPanel) four_sums_of<T, M>(m, cos, sin, terms, p, q, r, s, step, start, use); \
    break;
    switch (share) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    m += share;
  }
}

// Even and odd parts about the centre of a row of `width` vectors.
template <class T>
INLINE void fold(const Vector<T>* row, int64_t width, Vector<T>* even, Vector<T>* odd) {
  for (int64_t j = 0, m = width - 1; j <= m; ++j, --m) {
    const Vector<T> left = row[j], right = row[m];
    even[j] = left + right, odd[j] = right - left;
  }
}

// How many vectors the functions below need besides their arguments.
inline int64_t scratch_vectors(const Modes& modes, const Side& side) {
  const int64_t row = 2 * (side.width + 1) + 4 * modes.ku;
  return row + (modes.axes == 2 ? 2 * modes.kv * (side.height + 1) : 0);
}
inline int64_t column_vectors(const Modes& modes, const Side& side) { return modes.kv * 4 * ((side.height + 1) / 2); }

// The DFT along the half axis of a map in lanes -> per v the folds over the height {even re, even im, odd im, odd re}.
template <class T>
ONCE void analyse_columns(const Modes& modes, const Side& side, const Vector<T>* map, Vector<T>* columns,
                          Vector<T>* scratch) {
  const Matrices<T> by(modes, side);
  const int64_t half = by.half_width, tall = by.half_height;
  Vector<T>*e0 = scratch, *e1 = e0 + half, *d0 = e1 + half, *d1 = d0 + half;
  for (int64_t h = 0, last = side.height - 1; h <= last; ++h, --last) {
    fold<T>(map + h * side.width, side.width, e0, d0);
    fold<T>(map + last * side.width, side.width, e1, d1);
    four_sums<T>(by.cos_width, by.sin_width, modes.kv, half, e0, e1, d0, d1, 1, Vector<T>{},
                 [=](int64_t v, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                   Vector<T>* to = columns + v * 4 * tall + h;
                   to[0] = A + C, to[tall] = B + D, to[2 * tall] = B - D, to[3 * tall] = A - C;
                 });
  }
}

// The DFT along the height of one column of that -> its modes, `part` vectors from real to imaginary, `next` to the
// next.
template <class T>
ONCE void analyse_rows(const Modes& modes, const Side& side, const Vector<T>* column, Vector<T>* to, int64_t next,
                       int64_t part) {
  const Matrices<T> by(modes, side);
  const int64_t tall = by.half_height, rows = modes.rows, partners = rows - modes.ku;
  four_sums<T>(by.cos_height, by.sin_height, modes.ku, tall, column, column + tall, column + 2 * tall,
               column + 3 * tall, 1, Vector<T>{}, [=](int64_t u, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 Vector<T>* plus = to + u * next;
                 plus[0] = A + B, plus[part] = C - D;
                 if (u == 0 || u > partners) return;  // the Nyquist row is its own partner
                 Vector<T>* minus = to + (rows - u) * next;
                 minus[0] = A - B, minus[part] = C + D;
               });
}

// The transpose of `analyse_rows`: the modes of column v -> rows [height, (re, im), kv] at v.
template <class T>
ONCE void synthesise_rows(const Modes& modes, const Side& side, int64_t v, const Vector<T>* from, int64_t next,
                          int64_t part, Vector<T>* rows, Vector<T>* scratch) {
  const Matrices<T> by(modes, side);
  const int64_t ku = modes.ku, kv = modes.kv, partners = modes.rows - ku, height = side.height;
  Vector<T>*sum_re = scratch, *sum_im = sum_re + ku, *difference_re = sum_im + ku, *difference_im = difference_re + ku;
  for (int64_t u = 0; u < ku; ++u) {
    const Vector<T>* plus = from + u * next;
    sum_re[u] = difference_re[u] = plus[0], sum_im[u] = difference_im[u] = plus[part];
    if (u == 0 || u > partners) continue;
    const Vector<T>* minus = from + (modes.rows - u) * next;
    sum_re[u] += minus[0], difference_re[u] -= minus[0];
    sum_im[u] += minus[part], difference_im[u] -= minus[part];
  }
  four_sums<T>(by.cos_height, by.sin_height, by.half_height, ku, sum_re, sum_im, difference_im, difference_re, 1,
               Vector<T>{}, [=](int64_t h, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 const int64_t mirrored = height - 1 - h;
                 Vector<T>*upper = rows + h * 2 * kv + v, *lower = rows + mirrored * 2 * kv + v;
                 if (mirrored == h) {
                   upper[0] = A, upper[kv] = C;
                 } else {
                   upper[0] = A - B, upper[kv] = C + D, lower[0] = A + B, lower[kv] = C - D;
                 }
               });
}

// Two rows of a map, or two series, from their modes {p + i r} and {q + i s}, `step` apart, plus `start`.
template <class T>
ONCE void synthesise_pair(const Modes& modes, const Side& side, const Vector<T>* p, const Vector<T>* q,
                          const Vector<T>* r, const Vector<T>* s, int64_t step, Vector<T> start, Vector<T>* first,
                          Vector<T>* second) {
  const Matrices<T> by(modes, side);
  const int64_t last = side.width - 1;
  four_sums<T>(by.cos_width, by.sin_width, by.half_width, modes.kv, p, q, r, s, step, start,
               [=](int64_t j, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                 if (2 * j == last) {
                   first[j] = A, second[j] = C;
                 } else {
                   first[last - j] = A + B, second[last - j] = C + D, first[j] = A - B, second[j] = C - D;
                 }
               });
}

// The transpose of `analyse_columns` once the rows of every column are there: rows -> map + start.
template <class T>
INLINE void synthesise_columns(const Modes& modes, const Side& side, const Vector<T>* rows, Vector<T> start,
                               Vector<T>* map) {
  const int64_t kv = modes.kv, width = side.width;
  for (int64_t h = 0; h < side.height; h += 2) {
    const int64_t other = std::min(h + 1, side.height - 1);
    const Vector<T>*a = rows + h * 2 * kv, *b = rows + other * 2 * kv;
    synthesise_pair<T>(modes, side, a, b, a + kv, b + kv, 1, start, map + h * width, map + other * width);
  }
}

// --- whole transforms, of maps one by one and of series in pairs
// ------------------------------------------------------

// load(i, vectors) brings plane i of `count` into lanes; its modes go to `to`, planes side by side.
template <class T, class Load>
INLINE void analyse(const Modes& modes, const Side& side, int64_t count, Load load, Vector<T>* to, int64_t next,
                    int64_t part, Vector<T>* planes, Vector<T>* scratch) {
  if (modes.axes == 2) {
    Vector<T>* columns = scratch + 2 * (side.width + 1);
    for (int64_t i = 0; i < count; ++i) {
      load(i, planes);
      analyse_columns<T>(modes, side, planes, columns, scratch);
      for (int64_t v = 0; v < modes.kv; ++v)
        analyse_rows<T>(modes, side, columns + v * 4 * ((side.height + 1) / 2), to + i + v * modes.rows * next, next,
                        part);
    }
    return;
  }
  const Matrices<T> by(modes, side);
  const int64_t half = by.half_width;
  Vector<T>*e0 = scratch, *e1 = e0 + half, *d0 = e1 + half, *d1 = d0 + half;
  for (int64_t i = 0; i < count; i += 2) {
    const int64_t other = std::min(i + 1, count - 1);
    load(i, planes), fold<T>(planes, side.width, e0, d0);
    load(other, planes), fold<T>(planes, side.width, e1, d1);
    four_sums<T>(by.cos_width, by.sin_width, modes.kv, half, e0, e1, d0, d1, 1, Vector<T>{},
                 [=](int64_t v, Vector<T> A, Vector<T> C, Vector<T> B, Vector<T> D) {
                   Vector<T>* mode = to + v * next;
                   mode[i] = A, mode[other] = C, mode[part + i] = B, mode[part + other] = D;
                 });
  }
}

// The transpose, plus start(i); store(i, vectors) takes plane i away.
template <class T, class Start, class Store>
INLINE void synthesise(const Modes& modes, const Side& side, int64_t count, const Vector<T>* from, int64_t next,
                       int64_t part, Start start, Store store, Vector<T>* planes, Vector<T>* scratch) {
  if (modes.axes == 2) {
    Vector<T>* rows = scratch + 4 * modes.ku;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t v = 0; v < modes.kv; ++v)
        synthesise_rows<T>(modes, side, v, from + i + v * modes.rows * next, next, part, rows, scratch);
      synthesise_columns<T>(modes, side, rows, start(i), planes);
      store(i, planes);
    }
    return;
  }
  for (int64_t i = 0; i < count; i += 2) {
    const int64_t other = std::min(i + 1, count - 1);
    Vector<T>*first = planes, *second = planes + side.width;
    const Vector<T>*a = from + i, *b = from + other;
    synthesise_pair<T>(modes, side, a, b, a + part, b + part, next, Vector<T>{}, first, second);
    const Vector<T> to_first = start(i), to_second = start(other);
    for (int64_t j = 0; j < side.width; ++j) first[j] += to_first, second[j] += to_second;
    store(i, first);
    if (other != i) store(other, second);
  }
}
