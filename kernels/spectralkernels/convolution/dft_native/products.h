// Products over channels, one per mode: a number of a spectrum for all lanes times a vector of another.
#pragma once
#include "vectors.h"

// Where the numbers z (mode, row, step) and the vectors w (mode, step) of products lie, real and imaginary parts
// `*_part` apart. Steps come in blocks of `block`, `z_block` numbers and `w_block` vectors apart; within one, vectors
// follow each other. few: of rows, at most two, whatever part of them a call has. A fused multiply-add takes four
// cycles and two start in each, so that few rows need two sums of each kind.
struct Operands {
  int64_t rows, steps, block;
  int64_t z_part, z_row, z_step, z_block, z_mode;
  int64_t w_part, w_block, w_mode;
  bool few;
};

// sums[row] (+)= sum over the steps of z(row, step) conj(w(step)) of a mode, the imaginary parts `part` vectors on.
template <class T, int N, int kinds>
INLINE void multiply_rows(const Operands& at, const T* z, const Vector<T>* w, Vector<T>* sums, int64_t part, bool add) {
  Vector<T> re[kinds][N], im[kinds][N];
#pragma GCC unroll 8
  for (int row = 0; row < N; ++row) {
    re[0][row] = add ? sums[row] : Vector<T>{}, im[0][row] = add ? sums[part + row] : Vector<T>{};
    if (kinds == 2) re[kinds - 1][row] = im[kinds - 1][row] = Vector<T>{};
  }
  for (int64_t first = 0; first < at.steps; first += at.block, z += at.z_block, w += at.w_block) {
    const int64_t steps = std::min(at.block, at.steps - first);
    const T* number = z;
    for (int64_t step = 0; step < steps; ++step, number += at.z_step) {
      Vector<T> w_re = w[step], w_im = w[step + at.w_part];
      HOLD(w_re);
      HOLD(w_im);
#pragma GCC unroll 8
      for (int row = 0; row < N; ++row) {
        const T z_re = number[row * at.z_row], z_im = number[row * at.z_row + at.z_part];
        re[0][row] += z_re * w_re, im[0][row] += z_im * w_re;
        re[kinds - 1][row] += z_im * w_im, im[kinds - 1][row] -= z_re * w_im;
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < N; ++row) {
    if (kinds == 2) re[0][row] += re[kinds - 1][row], im[0][row] += im[kinds - 1][row];
    sums[row] = re[0][row], sums[part + row] = im[0][row];
  }
}

// The same of `modes` modes one after the other, `next` vectors apart in the sums.
template <class T>
ONCE void multiply(const Operands& at, int64_t modes, const T* z, const Vector<T>* w, Vector<T>* sums, int64_t next,
                   int64_t part, bool add) {
  constexpr int most = kRegisters == 32 ? 8 : 4;
  const int64_t parts = (at.rows + most - 1) / most, least = at.rows / parts, wider = at.rows % parts;
  for (; modes > 0; --modes, z += at.z_mode, w += at.w_mode, sums += next) {
    if (at.few) {
      if (at.rows == 1) multiply_rows<T, 1, 2>(at, z, w, sums, part, add);
      else multiply_rows<T, 2, 2>(at, z, w, sums, part, add);
      continue;
    }
    for (int64_t i = 0, row = 0; i < parts; ++i) {
      const int64_t share = least + (i >= parts - wider);
#define CASE(N)                                                                                        \
  case N:                                                                                              \
    if constexpr (N <= most) multiply_rows<T, N, 1>(at, z + row * at.z_row, w, sums + row, part, add); \
    break;
      switch (share) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
      row += share;
    }
  }
}

// The same lane by lane: `conjugate` sums += a conj(b), else sums += a b, over `count` modes of one complex vector
// each, `next_*` vectors apart.
template <class T, bool conjugate>
ONCE void multiply_lanes(int64_t count, const Vector<T>* a, int64_t next_a, int64_t part_a, const Vector<T>* b,
                         int64_t next_b, int64_t part_b, Vector<T>* sums, int64_t next, int64_t part, bool add) {
  for (int64_t f = 0; f < count; ++f, a += next_a, b += next_b, sums += next) {
    const Vector<T> a_re = a[0], a_im = a[part_a], b_re = b[0], b_im = conjugate ? -b[part_b] : b[part_b];
    Vector<T> re = a_re * b_re - a_im * b_im, im = a_im * b_re + a_re * b_im;
    if (add) re += sums[0], im += sums[part];
    sums[0] = re, sums[part] = im;
  }
}
