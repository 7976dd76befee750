// Sums of 16-bit products, two terms at once: what is left of a term that has factors. All is modulo 2^32.

#pragma once

#include "plan.h"

namespace {

constexpr int64_t PAIRS = 128;  // of terms at once: 64 lanes of their factors stay in a core's first cache
constexpr int ABREAST = 6;      // rows that share one load of b's factors

// sums[m, n] += the products of `pairs` pairs x[m] with those of each of VECTOR lanes of w[pairs]
using Products = void (*)(const int16_t *x, int64_t rows, int64_t pairs, const int16_t *w, int32_t *sums,
                          int64_t width);

void products_portable(const int16_t *x, int64_t rows, int64_t pairs, const int16_t *w, int32_t *sums,
                       int64_t width) {
    for (int64_t m = 0; m < rows; m++)
        for (int64_t k = 0; k < pairs; k++) {
            const int32_t x0 = x[2 * (m * PAIRS + k)], x1 = x[2 * (m * PAIRS + k) + 1];
            const int16_t *lanes = w + k * 2 * VECTOR;
            uint32_t *sum = reinterpret_cast<uint32_t *>(sums + m * width);
            for (int64_t n = 0; n < VECTOR; n++)
                sum[n] += uint32_t(x0 * lanes[2 * n]) + uint32_t(x1 * lanes[2 * n + 1]);
        }
}

#ifdef X86

template <int ROWS>
AVX512 inline void rows512(const int16_t *x, int64_t pairs, const int16_t *w, int32_t *sums,
                           int64_t width) {
    __m512i sum[ROWS][4];
    UNROLLED for (int m = 0; m < ROWS; m++)
        UNROLLED for (int v = 0; v < 4; v++) sum[m][v] = _mm512_loadu_si512(sums + m * width + 16 * v);
    for (int64_t k = 0; k < pairs; k++, w += 2 * VECTOR) {
        __m512i lanes[4];
        UNROLLED for (int v = 0; v < 4; v++) lanes[v] = _mm512_loadu_si512(w + 32 * v);
        UNROLLED for (int m = 0; m < ROWS; m++) {
            int32_t pair;
            std::memcpy(&pair, x + 2 * (m * PAIRS + k), sizeof pair);
            const __m512i both = _mm512_set1_epi32(pair);
            UNROLLED for (int v = 0; v < 4; v++) sum[m][v] = _mm512_dpwssd_epi32(sum[m][v], lanes[v], both);
        }
    }
    UNROLLED for (int m = 0; m < ROWS; m++)
        UNROLLED for (int v = 0; v < 4; v++) _mm512_storeu_si512(sums + m * width + 16 * v, sum[m][v]);
}

AVX512 void products512(const int16_t *x, int64_t rows, int64_t pairs, const int16_t *w, int32_t *sums,
                        int64_t width) {
    for (; rows >= ABREAST; rows -= ABREAST, x += 2 * PAIRS * ABREAST, sums += ABREAST * width)
        rows512<ABREAST>(x, pairs, w, sums, width);
    for (; rows >= 2; rows -= 2, x += 4 * PAIRS, sums += 2 * width) rows512<2>(x, pairs, w, sums, width);
    if (rows) rows512<1>(x, pairs, w, sums, width);
}

template <int ROWS>
AVX2 inline void rows256(const int16_t *x, int64_t pairs, const int16_t *w, int32_t *sums,
                         int64_t width) {
    __m256i sum[ROWS][2];
    auto place = [=](int m, int v) { return reinterpret_cast<__m256i *>(sums + m * width + 8 * v); };
    UNROLLED for (int m = 0; m < ROWS; m++)
        UNROLLED for (int v = 0; v < 2; v++) sum[m][v] = _mm256_loadu_si256(place(m, v));
    for (int64_t k = 0; k < pairs; k++, w += 2 * VECTOR) {
        __m256i lanes[2];
        UNROLLED for (int v = 0; v < 2; v++)
            lanes[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 16 * v));
        UNROLLED for (int m = 0; m < ROWS; m++) {
            int32_t pair;
            std::memcpy(&pair, x + 2 * (m * PAIRS + k), sizeof pair);
            const __m256i both = _mm256_set1_epi32(pair);
            UNROLLED for (int v = 0; v < 2; v++)
                sum[m][v] = _mm256_add_epi32(sum[m][v], _mm256_madd_epi16(lanes[v], both));
        }
    }
    UNROLLED for (int m = 0; m < ROWS; m++)
        UNROLLED for (int v = 0; v < 2; v++) _mm256_storeu_si256(place(m, v), sum[m][v]);
}

AVX2 void products256(const int16_t *x, int64_t rows, int64_t pairs, const int16_t *w, int32_t *sums,
                      int64_t width) {
    for (; rows >= ABREAST; rows -= ABREAST, x += 2 * PAIRS * ABREAST, sums += ABREAST * width)
        UNROLLED for (int n = 0; n < VECTOR; n += 16) rows256<ABREAST>(x, pairs, w + 2 * n, sums + n, width);
    for (; rows >= 2; rows -= 2, x += 4 * PAIRS, sums += 2 * width)
        UNROLLED for (int n = 0; n < VECTOR; n += 16) rows256<2>(x, pairs, w + 2 * n, sums + n, width);
    if (rows)
        UNROLLED for (int n = 0; n < VECTOR; n += 16) rows256<1>(x, pairs, w + 2 * n, sums + n, width);
}
#endif

Products choose_products(int32_t level) {
#ifdef X86
    if (level >= 2) return products512;
    if (level == 1) return products256;
#endif
    return products_portable;
}

}  // namespace
