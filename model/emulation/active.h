// Terms that count: those whose byte of operand a is not the idle one. What a ReLU gives is mostly zeros, and of a zero's
// terms the sums are known beforehand (what a job that leaves them out begins with).

#pragma once

#include "plan.h"

namespace {

// The places of bytes other than `idle` among so many, in order; how many there are. `list` has room for 32 more than
// there are bytes, and `bytes` may be read up to the next multiple of 64.
int64_t active_portable(const uint8_t *bytes, int64_t count, uint8_t idle, uint16_t *list) {
    const uint64_t idles = 0x0101010101010101u * idle;
    int64_t found = 0;
    for (int64_t k = 0; k < count; k += 8) {
        uint64_t eight;
        std::memcpy(&eight, bytes + k, 8);
        if (eight == idles) continue;
        for (int64_t i = k, end = std::min(count, k + 8); i < end; i++) {
            list[found] = uint16_t(i);
            found += bytes[i] != idle;
        }
    }
    return found;
}

#ifdef X86
AVX512 int64_t active512(const uint8_t *bytes, int64_t count, uint8_t idle, uint16_t *list) {
    const __m512i idles = _mm512_set1_epi8(char(idle)), step = _mm512_set1_epi16(32);
    __m512i places = _mm512_cvtepu8_epi16(_mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                                           18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
    int64_t found = 0;
    for (int64_t k = 0; k < count; k += 64) {
        uint64_t of = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(bytes + k), idles);
        if (count - k < 64) of &= (uint64_t(1) << (count - k)) - 1;
        UNROLLED for (int half = 0; half < 2; half++, of >>= 32) {
            _mm512_storeu_si512(list + found, _mm512_maskz_compress_epi16(__mmask32(of), places));
            found += __builtin_popcount(uint32_t(of));
            places = _mm512_add_epi16(places, step);
        }
    }
    return found;
}
#endif

}  // namespace
