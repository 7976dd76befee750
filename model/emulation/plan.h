// What the kernels are given: a plan of one product, and the sums to be made of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#define UNROLLED _Pragma("GCC unroll 8")  // early, so that the arrays that are indexed are registers

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vbmi2,avx512vnni")))
#define AVX2 __attribute__((target("avx2")))
#endif

extern "C" {

struct Plan {
    const uint16_t *values;  // [256][256], of a's byte and b's: what all but AVX-512 reads
    const uint8_t *planes;   // [256][planes][entries]: their bytes, the low one first
    const uint16_t *turned;  // [256][256], of b's byte and a's
    const int32_t *row;      // [256] or null
    const int16_t *u;        // [rank][256]: a's factors
    int32_t n_planes;        // 0 ... 2
    int32_t folded;          // 128 entries, else 256
    int32_t rank;
    int32_t differ;  // added where the signs of a and b differ, if it is not 0
    int32_t idle;    // the byte of a whose values are alike for all b of a sign, if there is: else -1
};

struct Requantizer {
    int64_t multiplier, shift, zero_point, low, high;
    int64_t floats;  // whether codes have five significant bits
};

// Of each group: `rows` sums over `terms` for each of `lanes`. A row of a is `segments` runs of terms / segments bytes.
struct Job {
    const uint8_t *a;
    const uint8_t *b;   // [terms][b_term]: what picks from the planes
    const int16_t *w;   // [lanes / VECTOR][rank][pairs of terms][VECTOR][2]: b's factors
    const uint8_t *signs;   // [eights of terms][b_term]: b's signs
    const int32_t *init;
    int32_t *out;
    int16_t *codes;           // instead of the sums, if `unit` makes codes of them
    const Requantizer *unit;  // or null
    const int64_t *a_rows;  // [rows]: where each row of a group begins
    int64_t groups, rows, terms, lanes;
    int64_t segments, a_segment;
    int64_t a_group, b_group, w_group, signs_group, init_group, out_group;
    int64_t b_term;  // from one term's lanes to the next's
    int64_t out_row;
};
}

namespace {

constexpr int64_t LANES = 256;  // of a tile
constexpr int64_t BLOCK = 128;  // terms at once; 128 * 255 < 2^15: sums of bytes stay signed 16-bit numbers
constexpr int64_t DEPTH = 1024;  // the same where few are looked up
constexpr int64_t VECTOR = 64;  // lanes that a micro-kernel's step has; b may be read up to the next multiple

}  // namespace
