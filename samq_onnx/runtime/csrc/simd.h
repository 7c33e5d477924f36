// SPDX-License-Identifier: Apache-2.0
// Vectors of SAMQ_LANES numbers, by the compilers' vector extension; intrinsics only where it has no word for it.
// Included by one translation unit per instruction set; everything has internal linkage, so that no code compiled
// for a wider instruction set can stand in for a narrower one.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SAMQ_INLINE static inline __attribute__((always_inline))

namespace samq {
namespace {

constexpr int64_t kLanes = SAMQ_LANES;
constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kDoubleLanes = kLanes / 2;

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef double Doubles __attribute__((vector_size(kLanes * 4)));
typedef float HalfFloats __attribute__((vector_size(kLanes * 2)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Uints __attribute__((vector_size(kLanes * 4)));
typedef int16_t Shorts __attribute__((vector_size(kLanes * 2)));
typedef int16_t Halves __attribute__((vector_size(kLanes * 4)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t HalfBytes __attribute__((vector_size(kLanes * 2)));
typedef Floats FloatsInMemory __attribute__((aligned(4), may_alias));
typedef Doubles DoublesInMemory __attribute__((aligned(8), may_alias));
typedef HalfFloats HalfFloatsInMemory __attribute__((aligned(4), may_alias));
typedef Ints IntsInMemory __attribute__((aligned(1), may_alias));
typedef Shorts ShortsInMemory __attribute__((aligned(2), may_alias));
typedef Bytes BytesInMemory __attribute__((aligned(1), may_alias));
typedef Halves HalvesInMemory __attribute__((aligned(2), may_alias));
typedef HalfBytes HalfBytesInMemory __attribute__((aligned(1), may_alias));
typedef int32_t IntInMemory __attribute__((aligned(1), may_alias));

SAMQ_INLINE Floats load(const float* p) { return *reinterpret_cast<const FloatsInMemory*>(p); }
SAMQ_INLINE void store(float* p, Floats x) { *reinterpret_cast<FloatsInMemory*>(p) = x; }
SAMQ_INLINE void store(double* p, Doubles x) { *reinterpret_cast<DoublesInMemory*>(p) = x; }
SAMQ_INLINE Doubles load_doubles(const float* p) {
#if SAMQ_LANES == 16 && defined(__AVX512F__)
  return (Doubles)_mm512_maskz_cvtps_pd(0xFF, _mm256_loadu_ps(p));
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(p));  // GCC converts in halves
#else
  return __builtin_convertvector(*reinterpret_cast<const HalfFloatsInMemory*>(p), Doubles);
#endif
}
SAMQ_INLINE Ints load_ints(const void* p) { return *static_cast<const IntsInMemory*>(p); }
SAMQ_INLINE void store_ints(int32_t* p, Ints x) { *reinterpret_cast<IntsInMemory*>(p) = x; }
SAMQ_INLINE void store_shorts(int16_t* p, Ints x) {
  *reinterpret_cast<ShortsInMemory*>(p) = __builtin_convertvector(x, Shorts);
}
SAMQ_INLINE void store_bytes(uint8_t* p, Ints x) {
  *reinterpret_cast<BytesInMemory*>(p) = __builtin_convertvector(x, Bytes);
}
SAMQ_INLINE void store_halves(int16_t* p, Halves x) { *reinterpret_cast<HalvesInMemory*>(p) = x; }
SAMQ_INLINE void store_halves(uint8_t* p, Halves x) {
  *reinterpret_cast<HalfBytesInMemory*>(p) = __builtin_convertvector(x, HalfBytes);
}
SAMQ_INLINE Floats splat(float x) { return x - Floats{}; }
SAMQ_INLINE Ints splat_int(int32_t x) { return x - Ints{}; }
SAMQ_INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

// Not a number gives b.
#if SAMQ_LANES == 16 && defined(__AVX512F__)
SAMQ_INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_maskz_max_ps(0xFFFF, (__m512)a, (__m512)b); }
SAMQ_INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_maskz_min_ps(0xFFFF, (__m512)a, (__m512)b); }
#else
SAMQ_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
SAMQ_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif

// a * b + c, rounded once where the CPU can: for what need not be the same on every CPU. Operators round each step.
SAMQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if SAMQ_LANES == 16 && defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif SAMQ_LANES == 8 && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

SAMQ_INLINE float sum_of(Floats x) {
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

SAMQ_INLINE int32_t sum_of(Ints x) {
  int32_t total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

SAMQ_INLINE float largest_of(Floats x) {
  float best = x[0];
  for (int64_t i = 1; i < kLanes; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// Adding this rounds a float below 2^22 in magnitude to an integer, half to even, and leaves it in the low bits.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr int32_t kRounderBits = 0x4B400000;

// e^x for x <= 0, relative error below 2e-7 (Cephes' polynomial); below e^-87 it stays at e^-87. Not a number gives none.
SAMQ_INLINE Floats exp_of(Floats x) {
  x = larger(splat(-87.0f), x);
  const Floats shifted = multiply_add(x, splat(1.44269504f), splat(kRounder));
  const Floats n = shifted - kRounder;
  const Floats r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
  Floats y = multiply_add(r, splat(1.9875691500e-4f), splat(1.3981999507e-3f));
  y = multiply_add(y, r, splat(8.3334519073e-3f));
  y = multiply_add(y, r, splat(4.1665795894e-2f));
  y = multiply_add(y, r, splat(1.6666665459e-1f));
  y = multiply_add(y, r, splat(5.0000001201e-1f));
  y = multiply_add(y, r * r, r) + 1.0f;
  const Ints power = ((Ints)shifted - kRounderBits + 127) << 23;
  return y * (Floats)power;
}

constexpr float kOne = 8388608.0f;  // 2^23; added to a float below it, it rounds half to even into the low bits
constexpr int32_t kOneBits = 0x4B000000;

// round_half_even(2^23 2^-d) for d >= 0, by a polynomial in the distance from d to an integer; relative error below 2e-7
// before rounding. Each step is rounded, in this order: the function bodies take the same. Not a number gives 0.
SAMQ_INLINE Ints fixed_power(Floats d) {
  constexpr float kFarthest = 32.0f;  // from 25 on the power is 0
  d = smaller(d, splat(kFarthest));
  const Floats shifted = d + kRounder;
  const Floats f = (shifted - kRounder) - d;
  Floats y = f * (kOne * 0.0013264731f) + kOne * 0.009671513f;
  y = y * f + kOne * 0.055507336f;
  y = y * f + kOne * 0.24022242f;
  y = y * f + kOne * 0.693147f;
  y = y * f + kOne;
  const Floats power = (Floats)((Ints)y - ((Ints)shifted << 23));  // the integer sits in the low bits of shifted
  return (Ints)(power + kOne) - kOneBits;
}

// The nearest integer, half to even, of x below 2^22 in magnitude.
SAMQ_INLINE Ints to_int(Floats x) { return (Ints)(x + kRounder) - kRounderBits; }

// The nearest integers, half to even, of numbers below 2^15; -2^15 for all below it. Not a number: any.
SAMQ_INLINE Halves to_halves(Floats low, Floats high) {
#if SAMQ_LANES == 16 && defined(__AVX512F__)
  const __m512i packed = _mm512_maskz_packs_epi32(~0u, _mm512_maskz_cvtps_epi32(0xFFFF, (__m512)low),
                                                  _mm512_maskz_cvtps_epi32(0xFFFF, (__m512)high));
  return (Halves)_mm512_maskz_permutexvar_epi64(0xFF, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed);
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)low), _mm256_cvtps_epi32((__m256)high));
  return (Halves)_mm256_permute4x64_epi64(packed, 0xD8);
#elif SAMQ_LANES == 4 && defined(__SSE2__)
  return (Halves)_mm_packs_epi32(_mm_cvtps_epi32((__m128)low), _mm_cvtps_epi32((__m128)high));
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  return (Halves)vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32((float32x4_t)low)), vcvtnq_s32_f32((float32x4_t)high));
#else
  Halves made;
  for (int64_t i = 0; i < kLanes; ++i) {
    made[i] = static_cast<int16_t>(to_int(larger(low, splat(-32768.0f)))[i]);
    made[kLanes + i] = static_cast<int16_t>(to_int(larger(high, splat(-32768.0f)))[i]);
  }
  return made;
#endif
}

// (a b + 2^14) >> 15 of 16-bit numbers, not both -2^15.
SAMQ_INLINE Halves rounded_products(Halves a, Halves b) {
#if SAMQ_LANES == 16 && defined(__AVX512BW__)
  return (Halves)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  return (Halves)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
#elif SAMQ_LANES == 4 && defined(__SSE2__)
  const auto low = (Halves)_mm_mullo_epi16((__m128i)a, (__m128i)b);
  const auto high = (Halves)_mm_mulhi_epi16((__m128i)a, (__m128i)b);
  return high * 2 + ((low >> 15) & 1) + ((low >> 14) & 1);
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  return (Halves)vqrdmulhq_s16((int16x8_t)a, (int16x8_t)b);
#else
  Halves made;
  for (int64_t i = 0; i < 2 * kLanes; ++i) made[i] = static_cast<int16_t>((a[i] * b[i] + (1 << 14)) >> 15);
  return made;
#endif
}

SAMQ_INLINE Halves splat_half(int32_t x) { return static_cast<int16_t>(x) - Halves{}; }

// 2^(t / 2^11) as a fraction of 2^15 for t <= 0: two terms of its series, in 16 octaves, then squared four times. Its
// largest is 32752; off by 2^-10 of that at most.
SAMQ_INLINE Halves short_power(Halves t) {
  Halves y = rounded_products(rounded_products(t, splat_half(7170)) + splat_half(22650), t) + splat_half(32767);
  for (int i = 0; i < 4; ++i) y = rounded_products(y, y);
  return y;
}

// The nearest code in [0, largest], half to even.
SAMQ_INLINE Ints to_code(Floats x, float largest) {
  return to_int(smaller(larger(x, Floats{}), splat(largest)));
}

// QuantizeLinear's code u8 of x.
SAMQ_INLINE Ints quantized(Floats x, float scale, int32_t zero_point) {
  const auto zero = static_cast<float>(zero_point);
  return to_int(smaller(larger(x / scale, splat(-zero)), splat(255.0f - zero))) + zero_point;
}

constexpr int32_t kTableSize = 16;

// table[index] in each lane, 0 <= index < kTableSize
SAMQ_INLINE Ints look_up(const int32_t* table, Ints index) {
#if SAMQ_LANES == 16 && defined(__AVX512F__)
  return (Ints)_mm512_maskz_permutexvar_epi32(0xFFFF, (__m512i)index, (__m512i)load_ints(table));
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  const auto low = _mm256_permutevar8x32_epi32((__m256i)load_ints(table), (__m256i)index);
  const auto high = _mm256_permutevar8x32_epi32((__m256i)load_ints(table + kLanes), (__m256i)index);
  return index > 7 ? (Ints)high : (Ints)low;
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  const uint8x16x4_t bytes = vld1q_u8_x4(reinterpret_cast<const uint8_t*>(table));
  return (Ints)vqtbl4q_u8(bytes, (uint8x16_t)(index * 0x04040404 + 0x03020100));
#else
  Ints found;
  for (int64_t i = 0; i < kLanes; ++i) found[i] = table[index[i]];
  return found;
#endif
}

// Sixteen 16-bit numbers, looked up by index, 0 <= index < 16.
class HalfTable {
 public:
#if SAMQ_LANES == 16 && defined(__AVX512BW__)
  explicit HalfTable(const int16_t* entries)
      : entries_(_mm512_maskz_broadcast_i64x4(0xFF, _mm256_loadu_si256((const __m256i*)entries))) {}
  Halves operator()(Halves index) const { return (Halves)_mm512_permutexvar_epi16((__m512i)index, entries_); }

 private:
  __m512i entries_;
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  explicit HalfTable(const int16_t* entries) {
    const __m128i first = _mm_loadu_si128((const __m128i*)entries), last = _mm_loadu_si128((const __m128i*)entries + 1);
    const __m128i bytes = _mm_set1_epi16(255);
    low_ = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(first, bytes), _mm_and_si128(last, bytes)));
    high_ = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8)));
  }
  Halves operator()(Halves index) const {
    const auto low = (Halves)_mm256_shuffle_epi8(low_, (__m256i)(index | splat_half(-32768)));
    return low | (Halves)_mm256_shuffle_epi8(high_, (__m256i)index) << 8;
  }

 private:
  __m256i low_, high_;
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  explicit HalfTable(const int16_t* entries) : bytes_(vld1q_u8_x2(reinterpret_cast<const uint8_t*>(entries))) {}
  Halves operator()(Halves index) const {
    return (Halves)vqtbl2q_u8(bytes_, (uint8x16_t)(index * splat_half(0x0202) + splat_half(0x0100)));
  }

 private:
  uint8x16x2_t bytes_;
#else
  explicit HalfTable(const int16_t* entries) : entries_(entries) {}
  Halves operator()(Halves index) const {
    Halves found;
    for (int64_t i = 0; i < 2 * kLanes; ++i) found[i] = entries_[index[i]];
    return found;
  }

 private:
  const int16_t* entries_;
#endif
};

// sum + a0 b0 + a1 b1 in each lane, where a lane of a and b holds two 16-bit numbers.
SAMQ_INLINE Ints add_pair_products(Ints sum, Ints a, Ints b) {
#if SAMQ_LANES == 16 && defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif SAMQ_LANES == 8 && defined(__AVXVNNI__)
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif SAMQ_LANES == 16 && defined(__AVX512BW__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif SAMQ_LANES == 8 && defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif SAMQ_LANES == 4 && defined(__SSE2__)
  return sum + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif SAMQ_LANES == 4 && defined(__aarch64__)
  const int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  return sum + (Ints)vpaddq_s32(low, vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
  return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// sum + a0 b0 + a1 b1 + a2 b2 + a3 b3 in each lane, where a lane of b holds four signed bytes and one of a four unsigned
// ones, or, if kSignedQuads, these less 128.
#if SAMQ_LANES == 4 && defined(__ARM_FEATURE_DOTPROD)
constexpr bool kSignedQuads = true;
#else
constexpr bool kSignedQuads = false;
#endif
SAMQ_INLINE Ints add_quad_products(Ints sum, Ints a, Ints b) {
#if SAMQ_LANES == 16 && defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif SAMQ_LANES == 8 && defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif SAMQ_LANES == 4 && defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#else
  const auto even_b = (Ints)(((Halves)b << 8) >> 8), odd_b = (Ints)((Halves)b >> 8);
  const Ints even_a = a & 0x00FF00FF, odd_a = (Ints)((Uints)a >> 8) & 0x00FF00FF;
  return add_pair_products(add_pair_products(sum, even_a, even_b), odd_a, odd_b);
#endif
}

#if SAMQ_LANES > 4
// sum += a0 b0 + a1 b1 in each 16-bit half of a lane, of the same bytes; right where it fits into 16 bits. The sum is
// asked for in assembly, because GCC otherwise orders the steps of a register tile so that its accumulators spill.
SAMQ_INLINE void add_byte_products(Ints& sum, Ints a, Ints b) {
#if SAMQ_LANES == 16
  const Ints products = (Ints)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#else
  const Ints products = (Ints)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#endif
  asm volatile("vpaddw %1, %0, %0" : "+v"(sum) : "v"(products));
}
#endif

}  // namespace
}  // namespace samq
