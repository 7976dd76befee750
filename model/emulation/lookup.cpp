// Exact sums of table lookups: out[m, n] = init[n] + sum over k of (value[a[m, k]][b[k, n]] + row[a[m, k]]), modulo 2^32.
//
// One activation byte a picks a row of the table, which then lies in registers, split into byte planes; a vector of
// weight bytes b picks from it, one output channel in each lane. The bytes are summed in 16 bits over at most `BLOCK`
// terms, then in 32. A "folded" table has 128 entries: bit 7 of b complements what bits 6-0 pick (a negated term is its
// complement plus a constant, and the constants are sums over weights alone: the caller's `init`).

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#endif

namespace {

constexpr int64_t BLOCK = 128;  // 128 * 255 < 2^15: sums of bytes stay signed 16-bit numbers
constexpr int64_t VECTOR = 64;  // lanes that a micro-kernel's step has; b may be read up to the next multiple
constexpr int64_t LANES = 256;
constexpr int64_t ROWS = 64;

}  // namespace

extern "C" {

struct Plan {
    const int32_t *values;  // [256][256], below 2^24: what the portable path reads
    const uint8_t *planes;  // [256][planes][entries]: their bytes, the low one first
    const uint8_t *deltas;  // the same, each 16 entries xor those before them within 128
    const int32_t *row;     // [256] or null
    int32_t n_planes;       // 2 or 3
    int32_t folded;         // 128 entries, else 256 (and 2 planes)
};

// Of each group: `rows` sums over `terms` for each of `lanes`. A row of a is `segments` runs of terms / segments bytes.
struct Job {
    const uint8_t *a;
    const uint8_t *b;
    const int32_t *init;
    int32_t *out;
    const int64_t *a_rows;  // [rows]: where each row of a group begins
    int64_t groups, rows, terms, lanes;
    int64_t segments, a_segment;
    int64_t a_group, b_group, init_group, out_group;
    int64_t b_term;  // from one term's lanes to the next's
    int64_t out_row;
};
}

namespace {

using Micro = void (*)(const Plan &, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term,
                       int64_t lanes, int32_t *sums);

void micro_portable(const Plan &plan, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term,
                    int64_t lanes, int32_t *sums) {
    for (int64_t k = 0; k < terms; k++) {
        const int32_t *row = plan.values + 256 * a[k];
        for (int64_t n = 0; n < lanes; n++)
            sums[n] = int32_t(uint32_t(sums[n]) + uint32_t(row[b[k * b_term + n]]));
    }
}

#ifdef X86

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vbmi")))
#define AVX2 __attribute__((target("avx2")))

// sums += the lanes of `all` (bytes summed as words, the odd ones in the high half) and `odd`, plane by plane
template <int PLANES>
AVX512 inline void flush512(const __m512i (&all)[PLANES], const __m512i (&odd)[PLANES], int32_t *sums) {
    __m512i low[PLANES], high[PLANES];  // 16 lanes of words in each 128 bits: first and last eight
    for (int i = 0; i < PLANES; i++) {
        const __m512i even = _mm512_sub_epi16(all[i], _mm512_slli_epi16(odd[i], 8));
        low[i] = _mm512_unpacklo_epi16(even, odd[i]);
        high[i] = _mm512_unpackhi_epi16(even, odd[i]);
    }
    const __m512i weights = _mm512_set1_epi32(256 << 16 | 1), zero = _mm512_setzero_si512();
    __m512i q[4] = {_mm512_madd_epi16(_mm512_unpacklo_epi16(low[0], low[1]), weights),
                    _mm512_madd_epi16(_mm512_unpackhi_epi16(low[0], low[1]), weights),
                    _mm512_madd_epi16(_mm512_unpacklo_epi16(high[0], high[1]), weights),
                    _mm512_madd_epi16(_mm512_unpackhi_epi16(high[0], high[1]), weights)};
    if constexpr (PLANES == 3) {  // zero below, the plane above: times 2^16
        q[0] = _mm512_add_epi32(q[0], _mm512_unpacklo_epi16(zero, low[2]));
        q[1] = _mm512_add_epi32(q[1], _mm512_unpackhi_epi16(zero, low[2]));
        q[2] = _mm512_add_epi32(q[2], _mm512_unpacklo_epi16(zero, high[2]));
        q[3] = _mm512_add_epi32(q[3], _mm512_unpackhi_epi16(zero, high[2]));
    }
    // q[t] holds lanes 16 i + 4 t ... + 3 in its 128 bits i: transpose
    const __m512i r0 = _mm512_shuffle_i32x4(q[0], q[1], 0x44), r1 = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
    const __m512i r2 = _mm512_shuffle_i32x4(q[0], q[1], 0xee), r3 = _mm512_shuffle_i32x4(q[2], q[3], 0xee);
    const __m512i in_order[4] = {_mm512_shuffle_i32x4(r0, r1, 0x88), _mm512_shuffle_i32x4(r0, r1, 0xdd),
                                 _mm512_shuffle_i32x4(r2, r3, 0x88), _mm512_shuffle_i32x4(r2, r3, 0xdd)};
    for (int i = 0; i < 4; i++)
        _mm512_storeu_si512(sums + 16 * i, _mm512_add_epi32(_mm512_loadu_si512(sums + 16 * i), in_order[i]));
}

// `WIDE` vectors of lanes at once
template <int PLANES, bool FOLDED, int WIDE>
AVX512 inline void wide512(const uint8_t *table, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term,
                           int32_t *sums) {
    constexpr int REGISTERS = FOLDED ? 2 : 4;
    const __m512i ones = _mm512_set1_epi8(-1);
    __m512i all[WIDE][PLANES], odd[WIDE][PLANES];
    for (int v = 0; v < WIDE; v++)
        for (int i = 0; i < PLANES; i++) all[v][i] = odd[v][i] = _mm512_setzero_si512();
    for (int64_t k = 0; k < terms; k++, b += b_term) {
        const uint8_t *row = table + int64_t(a[k]) * (PLANES * REGISTERS * 64);
        __m512i t[PLANES][REGISTERS];
        for (int i = 0; i < PLANES; i++)
            for (int j = 0; j < REGISTERS; j++) t[i][j] = _mm512_loadu_si512(row + 64 * (i * REGISTERS + j));
        for (int v = 0; v < WIDE; v++) {
            const __m512i index = _mm512_loadu_si512(b + 64 * v);
            const __mmask64 top = _mm512_movepi8_mask(index);
            for (int i = 0; i < PLANES; i++) {
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
    for (int v = 0; v < WIDE; v++) flush512<PLANES>(all[v], odd[v], sums + 64 * v);
}

template <int PLANES, bool FOLDED, int WIDE>
AVX512 void micro512(const Plan &plan, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term,
                     int64_t lanes, int32_t *sums) {
    int64_t n = 0;
    for (; n + VECTOR * (WIDE - 1) < lanes; n += VECTOR * WIDE)
        wide512<PLANES, FOLDED, WIDE>(plan.planes, a, terms, b + n, b_term, sums + n);
    if constexpr (WIDE > 2)
        for (; n + VECTOR < lanes; n += VECTOR * 2)
            wide512<PLANES, FOLDED, 2>(plan.planes, a, terms, b + n, b_term, sums + n);
    for (; n < lanes; n += VECTOR) wide512<PLANES, FOLDED, 1>(plan.planes, a, terms, b + n, b_term, sums + n);
}

template <int PLANES>
AVX2 inline void flush256(const __m256i (&all)[PLANES], const __m256i (&odd)[PLANES], int32_t *sums) {
    __m256i low[PLANES], high[PLANES];
    for (int i = 0; i < PLANES; i++) {
        const __m256i even = _mm256_sub_epi16(all[i], _mm256_slli_epi16(odd[i], 8));
        low[i] = _mm256_unpacklo_epi16(even, odd[i]);
        high[i] = _mm256_unpackhi_epi16(even, odd[i]);
    }
    const __m256i weights = _mm256_set1_epi32(256 << 16 | 1), zero = _mm256_setzero_si256();
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
    const __m256i in_order[4] = {_mm256_permute2x128_si256(q[0], q[1], 0x20), _mm256_permute2x128_si256(q[2], q[3], 0x20),
                                 _mm256_permute2x128_si256(q[0], q[1], 0x31), _mm256_permute2x128_si256(q[2], q[3], 0x31)};
    for (int i = 0; i < 4; i++) {
        auto *place = reinterpret_cast<__m256i *>(sums + 8 * i);
        _mm256_storeu_si256(place, _mm256_add_epi32(_mm256_loadu_si256(place), in_order[i]));
    }
}

// Sixteen entries at a time: those of lower index than a lane's are cancelled by the xor, of higher give zero.
constexpr int WIDE = 2;  // vectors: a step's lanes

template <int PLANES>
AVX2 inline void pick256(const uint8_t *tables, int64_t plane, __m256i (&index)[WIDE], __m256i (&picked)[WIDE][PLANES]) {
    const __m256i sixteen = _mm256_set1_epi8(16);
    for (int j = 0; j < 8; j++) {
        for (int i = 0; i < PLANES; i++) {
            const __m256i t = _mm256_broadcastsi128_si256(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(tables + plane * i + 16 * j)));
            for (int v = 0; v < WIDE; v++)
                picked[v][i] = _mm256_xor_si256(picked[v][i], _mm256_shuffle_epi8(t, index[v]));
        }
        for (int v = 0; v < WIDE; v++) index[v] = _mm256_subs_epi8(index[v], sixteen);
    }
}

template <int PLANES, bool FOLDED>
AVX2 void micro256(const Plan &plan, const uint8_t *a, int64_t terms, const uint8_t *b, int64_t b_term, int64_t lanes,
                   int32_t *sums) {
    constexpr int64_t ENTRIES = FOLDED ? 128 : 256;
    const __m256i top = _mm256_set1_epi8(-128), zero = _mm256_setzero_si256();
    for (int64_t n = 0; n < lanes; n += 32 * WIDE) {
        __m256i all[WIDE][PLANES], odd[WIDE][PLANES];
        for (int v = 0; v < WIDE; v++)
            for (int i = 0; i < PLANES; i++) all[v][i] = odd[v][i] = zero;
        for (int64_t k = 0; k < terms; k++) {
            const uint8_t *tables = plan.deltas + a[k] * (PLANES * ENTRIES);
            __m256i index[WIDE], picked[WIDE][PLANES], bytes[WIDE];
            for (int v = 0; v < WIDE; v++) {
                bytes[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + k * b_term + n + 32 * v));
                index[v] = FOLDED ? _mm256_andnot_si256(top, bytes[v]) : bytes[v];
                for (int i = 0; i < PLANES; i++)  // a folded table's negative lanes begin as ones: a complement
                    picked[v][i] = FOLDED ? _mm256_cmpgt_epi8(zero, bytes[v]) : zero;
            }
            pick256<PLANES>(tables, ENTRIES, index, picked);
            if constexpr (!FOLDED) {
                for (int v = 0; v < WIDE; v++) index[v] = _mm256_xor_si256(bytes[v], top);
                pick256<PLANES>(tables + 128, ENTRIES, index, picked);
            }
            for (int v = 0; v < WIDE; v++)
                for (int i = 0; i < PLANES; i++) {
                    all[v][i] = _mm256_add_epi16(all[v][i], picked[v][i]);
                    odd[v][i] = _mm256_add_epi16(odd[v][i], _mm256_srli_epi16(picked[v][i], 8));
                }
        }
        for (int v = 0; v < WIDE; v++) flush256<PLANES>(all[v], odd[v], sums + n + 32 * v);
    }
}
#endif

Micro choose(const Plan &plan, int32_t level) {
#ifdef X86
    const bool three = plan.n_planes == 3;
    if (level >= 2)
        return !plan.folded ? micro512<2, false, 4> : three ? micro512<3, true, 3> : micro512<2, true, 4>;
    if (level == 1)
        return !plan.folded ? micro256<2, false> : three ? micro256<3, true> : micro256<2, true>;
#endif
    return micro_portable;
}

// One tile of the output: some rows and some lanes of one group, all the terms
void tile(const Plan &plan, const Job &job, Micro micro, int64_t group, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
          int32_t *sums) {
    const int64_t width = (n1 - n0 + VECTOR - 1) / VECTOR * VECTOR;
    const int64_t blocks = (job.terms + BLOCK - 1) / BLOCK, run = job.terms / job.segments;
    std::memset(sums, 0, sizeof(int32_t) * size_t((m1 - m0) * width));
    std::vector<uint32_t> base(size_t(m1 - m0), 0);
    uint8_t a[BLOCK];
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t k0 = job.terms * block / blocks, k1 = job.terms * (block + 1) / blocks;
        const uint8_t *b = job.b + group * job.b_group + k0 * job.b_term + n0;
        for (int64_t m = m0; m < m1; m++) {
            const uint8_t *from = job.a + group * job.a_group + job.a_rows[m];
            for (int64_t k = k0; k < k1;) {
                const int64_t segment = k / run, end = std::min(k1, (segment + 1) * run);
                std::memcpy(a + (k - k0), from + segment * job.a_segment + (k - segment * run), size_t(end - k));
                k = end;
            }
            if (plan.row)
                for (int64_t k = 0; k < k1 - k0; k++) base[size_t(m - m0)] += uint32_t(plan.row[a[k]]);
            micro(plan, a, k1 - k0, b, job.b_term, n1 - n0, sums + (m - m0) * width);
        }
    }
    const int32_t *init = job.init + group * job.init_group;
    for (int64_t m = m0; m < m1; m++) {
        int32_t *out = job.out + group * job.out_group + m * job.out_row;
        const int32_t *summed = sums + (m - m0) * width - n0;
        for (int64_t n = n0; n < n1; n++)
            out[n] = int32_t(uint32_t(summed[n]) + uint32_t(init[n]) + base[size_t(m - m0)]);
    }
}

// work(first, last) on batches of 0 ... count - 1, each thread taking the next that is free
template <typename Work>
void parallel(int32_t threads, int64_t count, int64_t batch, const Work &work) {
    std::atomic<int64_t> next{0};
    auto share = [&] {
        for (int64_t first; (first = next.fetch_add(batch)) < count;) work(first, std::min(count, first + batch));
    };
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < threads && t * batch < count; t++) others.emplace_back(share);
    } catch (const std::system_error &) {  // no more threads to be had: those that run do it all
    }
    share();
    for (auto &thread : others) thread.join();
}

}  // namespace

extern "C" {

// The best level that this processor has: 0 portable, 1 AVX2, 2 AVX-512 VBMI
int32_t redcane_level() {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

void redcane_sums(const Plan *plan, const Job *job, int32_t level, int32_t threads) {
    const Micro micro = choose(*plan, level);
    const int64_t across = (job->lanes + LANES - 1) / LANES;
    // few rows are divided so that every thread has some
    const int64_t each = threads > 1 ? 4 * threads : 1;
    const int64_t wanted = std::max<int64_t>(1, each / std::max<int64_t>(1, job->groups * across));
    const int64_t height = std::max<int64_t>(1, std::min(ROWS, (job->rows + wanted - 1) / wanted));
    const int64_t down = (job->rows + height - 1) / height, tiles = job->groups * across * down;
    parallel(threads, tiles, std::max<int64_t>(1, std::min<int64_t>(64, tiles / (8 * threads))),
             [&](int64_t first, int64_t last) {
                 std::vector<int32_t> sums(size_t(height * std::min(LANES, (job->lanes + VECTOR - 1) / VECTOR * VECTOR)));
                 for (int64_t i = first; i < last; i++) {
                     const int64_t m0 = i % down * height, n0 = i / down % across * LANES;
                     tile(*plan, *job, micro, i / down / across, m0, std::min(job->rows, m0 + height), n0,
                          std::min(job->lanes, n0 + LANES), sums.data());
                 }
             });
}

// Codes of `count` accumulators: docs/numerics.md, Requantisation
void redcane_requantize(const int32_t *sums, int16_t *out, int64_t count, int64_t multiplier, int64_t shift,
                        int64_t zero_point, int64_t low, int64_t high, int32_t threads) {
    const int64_t half = int64_t(1) << (shift - 1);
    parallel(threads, count, 1 << 16, [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t code = ((sums[i] * multiplier + half) >> shift) + zero_point;
            out[i] = int16_t(std::min(high, std::max(low, code)));
        }
    });
}

// The bytes of codes as operand b: two's complement, or sign and magnitude for a folded plan
void redcane_encode(const int16_t *codes, uint8_t *out, int64_t count, int32_t folded) {
    if (folded)
        for (int64_t i = 0; i < count; i++) out[i] = uint8_t(codes[i] < 0 ? 128 - codes[i] : codes[i]);
    else
        for (int64_t i = 0; i < count; i++) out[i] = uint8_t(codes[i]);
}

// out[g, n] = sum over k of column[b[g, k, n]]: the constants that belong to the weights
void redcane_columns(const int32_t *column, const uint8_t *b, int32_t *out, int64_t groups, int64_t terms,
                     int64_t lanes, int64_t b_group, int64_t b_term) {
    for (int64_t g = 0; g < groups; g++) {
        uint32_t *sums = reinterpret_cast<uint32_t *>(out + g * lanes);
        std::fill(sums, sums + lanes, 0u);
        for (int64_t k = 0; k < terms; k++)
            for (int64_t n = 0; n < lanes; n++) sums[n] += uint32_t(column[b[g * b_group + k * b_term + n]]);
    }
}
}
