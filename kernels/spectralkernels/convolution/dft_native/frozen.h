// The modes of a frozen weight, as `dft` orders them, into lanes.
#pragma once
#include "vectors.h"

// turn: e^{i theta u c} of every mode, which moves the kernel to its centre; null where a weight is not frozen.
// places: where every mode is among those that are there, -1 for one that is not and counts as zero; null: in order.
// of_part: numbers from real to imaginary parts. conjugate: of a transposed product.
struct Frozen {
  const void* turn;
  const int64_t* places;
  int64_t of_part, conjugate;
};

// `count` vectors: lane l of vector i is `from[l * of_lane + i * of_step]`; lanes from `found` on are any of these.
template <class T>
INLINE void strided_to_lanes(const T* from, int64_t of_lane, int64_t of_step, int found, int64_t count, Vector<T>* to) {
  constexpr int lanes = Register<T>::lanes;
  if (of_step == 1 && count >= lanes) return to_lanes<T>(from, of_lane, found, count, to, 0);
  for (int64_t i = 0; i < count; ++i, from += of_step) {
    if (of_lane == 1 && found == lanes) {
      to[i] = *reinterpret_cast<const typename Register<T>::Unaligned*>(from);
    } else {
      for (int lane = 0; lane < lanes; ++lane) to[i][lane] = from[of_lane * std::min(lane, found - 1)];
    }
  }
}

// Mode f of kernels that begin at `weight`, `count` of them, about their centre: real parts, and imaginary ones `part`
// vectors on.
template <class T>
ONCE void thaw(const Frozen& frozen, int64_t f, const T* weight, int64_t of_lane, int64_t of_step, int found,
               int64_t count, Vector<T>* to, int64_t part) {
  const int64_t place = frozen.places ? frozen.places[f] : f;
  if (place < 0) {
    std::fill(to, to + count, Vector<T>{}), std::fill(to + part, to + part + count, Vector<T>{});
    return;
  }
  weight += place * 2 * frozen.of_part;
  strided_to_lanes<T>(weight, of_lane, of_step, found, count, to);
  strided_to_lanes<T>(weight + frozen.of_part, of_lane, of_step, found, count, to + part);
  const T* turn = static_cast<const T*>(frozen.turn) + 2 * f;
  const T re = turn[0], im = turn[1], sign = frozen.conjugate ? -1 : 1;
  for (int64_t i = 0; i < count; ++i) {
    const Vector<T> a = to[i], b = to[part + i];
    to[i] = a * re - b * im, to[part + i] = (a * im + b * re) * sign;
  }
}
