// Registers of the machine as vectors of lanes, one plane per lane, and the way of planes into lanes and back.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#if defined(SPECTRAL_VECTOR_BYTES)  // tests: registers of another processor, put together from those of this one
constexpr int kVectorBytes = SPECTRAL_VECTOR_BYTES, kRegisters = SPECTRAL_VECTOR_BYTES == 64 ? 32 : 16;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

#define INLINE static inline __attribute__((always_inline))
#define ONCE static __attribute__((noinline))  // long once inlined, called seldom enough: compiles in half the time

// Holds a vector in a register: else GCC reads it again from memory for each of its products, and loads set the pace.
#if defined(SPECTRAL_VECTOR_BYTES)
#define HOLD(vector)
#elif defined(__AVX512F__)
#define HOLD(vector) asm("" : "+v"(vector))
#elif defined(__SSE__)
#define HOLD(vector) asm("" : "+x"(vector))
#elif defined(__aarch64__)
#define HOLD(vector) asm("" : "+w"(vector))
#else
#define HOLD(vector)
#endif

template <class T>
struct Register {
  static constexpr int lanes = kVectorBytes / sizeof(T);
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef Index Indices __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename Register<T>::Vector;

// Uninitialised memory for vectors; std::bad_alloc where there is none.
template <class T>
struct Buffer {
  explicit Buffer(int64_t vectors) {
    void* found = nullptr;
    if (posix_memalign(&found, 64, std::max<int64_t>(1, vectors) * kVectorBytes) != 0) throw std::bad_alloc();
    memory.reset(static_cast<Vector<T>*>(found));
  }
  operator Vector<T>*() const { return memory.get(); }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<Vector<T>, Free> memory;
};

// --- transposes: `lanes` rows of as many numbers in registers
// ---------------------------------------------------------

// Index of lane `lane` of a two-register shuffle: blocks of `size` lanes from a and b in turn, the even or the odd
// ones.
constexpr int from_block(int lane, int size, bool odd, int lanes) {
  return (lane & size ? lanes + (lane ^ size) : lane) + (odd ? size : 0);
}

template <class T, int size, bool odd, int... lane>
INLINE Vector<T> blocks(Vector<T> a, Vector<T> b, std::integer_sequence<int, lane...>) {
  constexpr int lanes = Register<T>::lanes;
#ifdef __clang__
  return __builtin_shufflevector(a, b, from_block(lane, size, odd, lanes)...);
#else
  return __builtin_shuffle(a, b, typename Register<T>::Indices{from_block(lane, size, odd, lanes)...});
#endif
}

template <class T, int size>
INLINE void exchange(Vector<T>* rows) {
  constexpr int lanes = Register<T>::lanes;
  constexpr auto every = std::make_integer_sequence<int, lanes>();
#pragma GCC unroll 16
  for (int row = 0; row < lanes; ++row) {
    if (row & size) continue;
    const Vector<T> a = rows[row], b = rows[row + size];
    rows[row] = blocks<T, size, false>(a, b, every);
    rows[row + size] = blocks<T, size, true>(a, b, every);
  }
}

template <class T>
INLINE void transpose(Vector<T>* rows) {
  constexpr int lanes = Register<T>::lanes;
  if constexpr (lanes >= 2) exchange<T, 1>(rows);
  if constexpr (lanes >= 4) exchange<T, 2>(rows);
  if constexpr (lanes >= 8) exchange<T, 4>(rows);
  if constexpr (lanes >= 16) exchange<T, 8>(rows);
}

// Numbers of `lanes` planes that lie `stride` apart in memory, of which the first `planes` exist; the last stands in
// for the others. ahead: to the numbers that are wanted next, which then come from far memory meanwhile; 0: unknown.
template <class T>
ONCE void to_lanes(const T* from, int64_t stride, int planes, int64_t count, Vector<T>* to, int64_t ahead) {
  constexpr int lanes = Register<T>::lanes;
  const T* plane[lanes];
  for (int lane = 0; lane < lanes; ++lane) plane[lane] = from + stride * std::min(lane, planes - 1);
  if (count < lanes) {
    for (int64_t i = 0; i < count; ++i)
      for (int lane = 0; lane < lanes; ++lane) to[i][lane] = plane[lane][i];
    return;
  }
  for (int64_t done = 0; done < count; done += lanes) {
    const int64_t i = std::min(done, count - lanes);  // the last block overlaps the one before
    Vector<T> rows[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      rows[lane] = *reinterpret_cast<const typename Register<T>::Unaligned*>(plane[lane] + i);
      if (ahead) __builtin_prefetch(plane[lane] + i + ahead);
    }
    transpose<T>(rows);
    for (int lane = 0; lane < lanes; ++lane) to[i + lane] = rows[lane];
  }
}

// The way back; lanes from `planes` on are dropped.
template <class T>
ONCE void from_lanes(const Vector<T>* from, T* to, int64_t stride, int planes, int64_t count) {
  constexpr int lanes = Register<T>::lanes;
  if (count < lanes || planes < lanes) {
    for (int lane = 0; lane < planes; ++lane)
      for (int64_t i = 0; i < count; ++i) to[lane * stride + i] = from[i][lane];
    return;
  }
  for (int64_t done = 0; done < count; done += lanes) {
    const int64_t i = std::min(done, count - lanes);
    Vector<T> rows[lanes];
    for (int lane = 0; lane < lanes; ++lane) rows[lane] = from[i + lane];
    transpose<T>(rows);
    for (int lane = 0; lane < lanes; ++lane)
      *reinterpret_cast<typename Register<T>::Unaligned*>(to + lane * stride + i) = rows[lane];
  }
}
