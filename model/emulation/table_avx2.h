// Lookups in 256-bit registers, sixteen entries of 32 lanes at once (AVX2).

#pragma once

#include "plan.h"

#ifdef X86
namespace {

template <int PLANES>
AVX2 inline void flush256(const __m256i (&all)[PLANES], const __m256i (&odd)[PLANES], int32_t *sums) {
    const __m256i weights = _mm256_set1_epi32(256 << 16 | 1), zero = _mm256_setzero_si256();
    __m256i low[3] = {zero, zero, zero}, high[3] = {zero, zero, zero};
    UNROLLED for (int i = 0; i < PLANES; i++) {
        const __m256i even = _mm256_sub_epi16(all[i], _mm256_slli_epi16(odd[i], 8));
        low[i] = _mm256_unpacklo_epi16(even, odd[i]);
        high[i] = _mm256_unpackhi_epi16(even, odd[i]);
    }
    __m256i q[4] = {_mm256_madd_epi16(_mm256_unpacklo_epi16(low[0], low[1]), weights),
                    _mm256_madd_epi16(_mm256_unpackhi_epi16(low[0], low[1]), weights),
                    _mm256_madd_epi16(_mm256_unpacklo_epi16(high[0], high[1]), weights),
                    _mm256_madd_epi16(_mm256_unpackhi_epi16(high[0], high[1]), weights)};
    if constexpr (PLANES == 3) {
        q[0] = _mm256_add_epi32(q[0], _mm256_unpacklo_epi16(zero, low[2]));
        q[1] = _mm256_add_epi32(q[1], _mm256_unpackhi_epi16(zero, low[2]));
        q[2] = _mm256_add_epi32(q[2], _mm256_unpacklo_epi16(zero, high[2]));
        q[3] = _mm256_add_epi32(q[3], _mm256_unpackhi_epi16(zero, high[2]));
    }
    const __m256i in_order[4] = {
        _mm256_permute2x128_si256(q[0], q[1], 0x20), _mm256_permute2x128_si256(q[2], q[3], 0x20),
        _mm256_permute2x128_si256(q[0], q[1], 0x31), _mm256_permute2x128_si256(q[2], q[3], 0x31)};
    UNROLLED for (int i = 0; i < 4; i++) {
        auto *place = reinterpret_cast<__m256i *>(sums + 8 * i);
        _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), in_order[i]));
    }
}

// Sixteen entries at a time: those of lower index than a lane's are cancelled by the xor, of higher give zero.
constexpr int WIDE = 2;  // vectors: a step's lanes

template <int PLANES>
AVX2 inline void pick256(const uint8_t *tables, int64_t plane, __m256i (&index)[WIDE],
                         __m256i (&picked)[WIDE][PLANES]) {
    const __m256i sixteen = _mm256_set1_epi8(16);
    UNROLLED for (int j = 0; j < 8; j++) {
        UNROLLED for (int i = 0; i < PLANES; i++) {
            const __m256i t = _mm256_broadcastsi128_si256(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(tables + plane * i + 16 * j)));
            UNROLLED for (int v = 0; v < WIDE; v++)
                picked[v][i] = _mm256_xor_si256(picked[v][i], _mm256_shuffle_epi8(t, index[v]));
        }
        UNROLLED for (int v = 0; v < WIDE; v++) index[v] = _mm256_subs_epi8(index[v], sixteen);
    }
}

template <int PLANES, bool FOLDED>
AVX2 void micro256(const Plan &plan, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term, int64_t lanes,
                   int32_t *sums) {
    constexpr int64_t ENTRIES = FOLDED ? 128 : 256;
    const __m256i top = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    for (int64_t n = 0; n < lanes; n += 32 * WIDE) {
        __m256i all[WIDE][PLANES], odd[WIDE][PLANES];
        UNROLLED for (int v = 0; v < WIDE; v++)
            UNROLLED for (int i = 0; i < PLANES; i++) all[v][i] = odd[v][i] = zero;
        for (int64_t k = 0; k < terms; k++) {
            const uint8_t *tables = plan.deltas + a[k] * (PLANES * ENTRIES);
            __m256i index[WIDE], picked[WIDE][PLANES], bytes[WIDE];
            UNROLLED for (int v = 0; v < WIDE; v++) {
                bytes[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + k * b_term + n + 32 * v));
                index[v] = FOLDED ? _mm256_andnot_si256(top, bytes[v]) : bytes[v];
                UNROLLED for (int i = 0; i < PLANES; i++)  // a folded table's negative lanes begin as ones
                    picked[v][i] = FOLDED ? _mm256_cmpgt_epi8(zero, bytes[v]) : zero;
            }
            pick256<PLANES>(tables, ENTRIES, index, picked);
            if constexpr (!FOLDED) {
                UNROLLED for (int v = 0; v < WIDE; v++) index[v] = _mm256_xor_si256(bytes[v], top);
                pick256<PLANES>(tables + 128, ENTRIES, index, picked);
            }
            UNROLLED for (int v = 0; v < WIDE; v++)
                UNROLLED for (int i = 0; i < PLANES; i++) {
                    all[v][i] = _mm256_add_epi16(all[v][i], picked[v][i]);
                    odd[v][i] = _mm256_add_epi16(odd[v][i], _mm256_srli_epi16(picked[v][i], 8));
                }
        }
        UNROLLED for (int v = 0; v < WIDE; v++) flush256<PLANES>(all[v], odd[v], sums + n + 32 * v);
    }
}

}  // namespace
#endif
