// Lookups in 512-bit registers, 64 at once (AVX-512 VBMI).

#pragma once

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

// `WIDE` vectors of lanes at once
template <int PLANES, bool FOLDED, int WIDE>
AVX512 inline void wide512(const uint8_t *table, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term,
                           int32_t *sums) {
    constexpr int REGISTERS = FOLDED ? 2 : 4;
    const __m512i ones = _mm512_set1_epi8(-1);
    __m512i all[WIDE][PLANES], odd[WIDE][PLANES];
    UNROLLED for (int v = 0; v < WIDE; v++)
        UNROLLED for (int i = 0; i < PLANES; i++) all[v][i] = odd[v][i] = _mm512_setzero_si512();
    for (int64_t k = 0; k < terms; k++, b += b_term) {
        const uint8_t *row = table + int64_t(a[k]) * (PLANES * REGISTERS * 64);
        __m512i t[PLANES][REGISTERS];
        UNROLLED for (int i = 0; i < PLANES; i++)
            UNROLLED for (int j = 0; j < REGISTERS; j++) t[i][j] = _mm512_loadu_si512(row + 64 * (i * REGISTERS + j));
        UNROLLED for (int v = 0; v < WIDE; v++) {
            const __m512i index = _mm512_loadu_si512(b + 64 * v);
            const __mmask64 top = _mm512_movepi8_mask(index);
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
    UNROLLED for (int v = 0; v < WIDE; v++) flush512<PLANES>(all[v], odd[v], sums + 64 * v);
}

template <int PLANES, bool FOLDED>
AVX512 void micro512(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums, int64_t width) {
    for (; rows > 1; rows--, a += BLOCK, sums += width)
        micro512<PLANES, FOLDED>(plan, a, 1, terms, b, b_term, lanes, sums, width);
    int64_t n = 0;
    for (; n + VECTOR * 3 < lanes; n += VECTOR * 4)
        wide512<PLANES, FOLDED, 4>(plan.planes, a, terms, b + n, b_term, sums + n);
    for (; n + VECTOR < lanes; n += VECTOR * 2)
        wide512<PLANES, FOLDED, 2>(plan.planes, a, terms, b + n, b_term, sums + n);
    for (; n < lanes; n += VECTOR) wide512<PLANES, FOLDED, 1>(plan.planes, a, terms, b + n, b_term, sums + n);
}

}  // namespace
#endif
