// Lookups in 512-bit registers, 64 at once (AVX-512 VBMI), of all terms or of those listed (VBMI2).

#pragma once

#include "active.h"
#include "plan.h"

#ifdef X86
namespace {

// sums += the lanes of `all` (bytes summed as words, the odd ones in the high half) and `odd`, plane by plane
template <int PLANES>
AVX512 inline void flush512(const __m512i (&all)[PLANES], const __m512i (&odd)[PLANES], int32_t *sums) {
    const __m512i weights = _mm512_set1_epi32(256 << 16 | 1), zero = _mm512_setzero_si512();
    __m512i low[2] = {zero, zero}, high[2] = {zero, zero};  // words, in each 128 bits 8 lanes of its 16
    UNROLLED for (int i = 0; i < PLANES; i++) {
        const __m512i even = _mm512_sub_epi16(all[i], _mm512_slli_epi16(odd[i], 8));
        low[i] = _mm512_unpacklo_epi16(even, odd[i]);
        high[i] = _mm512_unpackhi_epi16(even, odd[i]);
    }
    __m512i q[4] = {_mm512_madd_epi16(_mm512_unpacklo_epi16(low[0], low[1]), weights),
                    _mm512_madd_epi16(_mm512_unpackhi_epi16(low[0], low[1]), weights),
                    _mm512_madd_epi16(_mm512_unpacklo_epi16(high[0], high[1]), weights),
                    _mm512_madd_epi16(_mm512_unpackhi_epi16(high[0], high[1]), weights)};
    // q[t] holds lanes 16 i + 4 t ... + 3 in its 128 bits i: transpose
    const __m512i r0 = _mm512_shuffle_i32x4(q[0], q[1], 0x44), r1 = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
    const __m512i r2 = _mm512_shuffle_i32x4(q[0], q[1], 0xee), r3 = _mm512_shuffle_i32x4(q[2], q[3], 0xee);
    const __m512i in_order[4] = {_mm512_shuffle_i32x4(r0, r1, 0x88), _mm512_shuffle_i32x4(r0, r1, 0xdd),
                                 _mm512_shuffle_i32x4(r2, r3, 0x88), _mm512_shuffle_i32x4(r2, r3, 0xdd)};
    UNROLLED for (int i = 0; i < 4; i++)
        _mm512_storeu_si512(sums + 16 * i, _mm512_add_epi32(_mm512_loadu_si512(sums + 16 * i), in_order[i]));
}

constexpr int64_t AHEAD = 8;  // terms of which some are skipped: what follows is asked for in time

// sums -= base, and `each` for what is counted in each lane
AVX512 inline void less512(__m512i counts, int32_t each, int32_t base, int32_t *sums) {
    const __m512i times = _mm512_set1_epi32(each), bases = _mm512_set1_epi32(base);
    const __m128i sixteen[4] = {_mm512_extracti32x4_epi32(counts, 0), _mm512_extracti32x4_epi32(counts, 1),
                                _mm512_extracti32x4_epi32(counts, 2), _mm512_extracti32x4_epi32(counts, 3)};
    UNROLLED for (int i = 0; i < 4; i++) {
        const __m512i less = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_cvtepu8_epi32(sixteen[i]), times), bases);
        _mm512_storeu_si512(sums + 16 * i, _mm512_sub_epi32(_mm512_loadu_si512(sums + 16 * i), less));
    }
}

// `WIDE` vectors of lanes at once: of the terms 0 ... count - 1 or, with SOME, of those listed what they have beyond an
// idle term's value, which is `idle`, or `negated` where b is negative
template <int PLANES, bool FOLDED, int WIDE, bool SOME>
AVX512 inline void wide512(const uint8_t *table, const uint8_t *a, const uint16_t *list, int64_t count,
                           const uint8_t *b, int64_t b_term, int32_t idle, int32_t negated, int32_t *sums) {
    constexpr int REGISTERS = FOLDED ? 2 : 4;
    const __m512i ones = _mm512_set1_epi8(-1);
    __m512i all[WIDE][PLANES], odd[WIDE][PLANES], negative[WIDE];
    UNROLLED for (int v = 0; v < WIDE; v++) {
        UNROLLED for (int i = 0; i < PLANES; i++) all[v][i] = odd[v][i] = _mm512_setzero_si512();
        negative[v] = _mm512_setzero_si512();
    }
    for (int64_t n = 0; n < count; n++) {
        const int64_t k = SOME ? list[n] : n;
        const uint8_t *row = table + int64_t(a[k]) * (PLANES * REGISTERS * 64), *picks = b + k * b_term;
        if constexpr (SOME) {
            const auto *soon = reinterpret_cast<const char *>(b + list[n + AHEAD] * b_term);
            UNROLLED for (int v = 0; v < WIDE; v++) _mm_prefetch(soon + 64 * v, _MM_HINT_T0);
        }
        __m512i t[PLANES][REGISTERS];
        UNROLLED for (int i = 0; i < PLANES; i++)
            UNROLLED for (int j = 0; j < REGISTERS; j++) t[i][j] = _mm512_loadu_si512(row + 64 * (i * REGISTERS + j));
        UNROLLED for (int v = 0; v < WIDE; v++) {
            const __m512i index = _mm512_loadu_si512(picks + 64 * v);
            const __mmask64 top = _mm512_movepi8_mask(index);
            if constexpr (SOME && FOLDED) negative[v] = _mm512_mask_sub_epi8(negative[v], top, negative[v], ones);
            UNROLLED for (int i = 0; i < PLANES; i++) {
                __m512i picked = _mm512_permutex2var_epi8(t[i][0], index, t[i][1]);
                if constexpr (FOLDED)
                    picked = _mm512_mask_sub_epi8(picked, top, ones, picked);
                else
                    picked = _mm512_mask_blend_epi8(top, picked, _mm512_permutex2var_epi8(t[i][2], index, t[i][3]));
                all[v][i] = _mm512_add_epi16(all[v][i], picked);
                odd[v][i] = _mm512_add_epi16(odd[v][i], _mm512_srli_epi16(picked, 8));
            }
        }
    }
    UNROLLED for (int v = 0; v < WIDE; v++) {
        flush512<PLANES>(all[v], odd[v], sums + 64 * v);
        if constexpr (SOME && FOLDED) less512(negative[v], negated - idle, int32_t(count) * idle, sums + 64 * v);
    }
}

// All lanes
template <int PLANES, bool FOLDED, bool SOME>
AVX512 inline void row512(const Plan &plan, const uint8_t *a, const uint16_t *list, int64_t count, const uint8_t *b,
                          int64_t b_term, int64_t lanes, int32_t *sums) {
    const uint16_t *of_idle = plan.values + 256 * std::max(plan.idle, 0);
    const int32_t idle = of_idle[0], negated = of_idle[128];
    int64_t n = 0;
    for (; n + VECTOR * 3 < lanes; n += VECTOR * 4)
        wide512<PLANES, FOLDED, 4, SOME>(plan.planes, a, list, count, b + n, b_term, idle, negated, sums + n);
    for (; n + VECTOR < lanes; n += VECTOR * 2)
        wide512<PLANES, FOLDED, 2, SOME>(plan.planes, a, list, count, b + n, b_term, idle, negated, sums + n);
    for (; n < lanes; n += VECTOR)
        wide512<PLANES, FOLDED, 1, SOME>(plan.planes, a, list, count, b + n, b_term, idle, negated, sums + n);
}

template <int PLANES, bool FOLDED>
AVX512 void micro512(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums, int64_t width) {
    for (; rows > 0; rows--, a += BLOCK, sums += width)
        row512<PLANES, FOLDED, false>(plan, a, nullptr, terms, b, b_term, lanes, sums);
}

// A micro-kernel of at most `DEPTH` terms of which few are active
template <int PLANES, bool FOLDED>
AVX512 void few512(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                   int64_t lanes, int32_t *sums, int64_t width) {
    uint16_t list[DEPTH + 32] = {};  // behind the last, too, are places
    for (; rows > 0; rows--, a += DEPTH, sums += width) {
        const int64_t active = active512(a, terms, uint8_t(plan.idle), list);
        for (int64_t n = 0; n < active; n += BLOCK)
            row512<PLANES, FOLDED, true>(plan, a, list + n, std::min(BLOCK, active - n), b, b_term, lanes, sums);
    }
}

}  // namespace
#endif
