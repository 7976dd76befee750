// Exact sums of a product's terms, modulo 2^32:
// out[m, n] = init[n] + sum over k of (value[a[m, k]][b[k, n]] + row[a[m, k]] + the sum over r of u[r][a] * w[r][k, n]
//                                      + differ, where the signs of a[m, k] and b[k, n] differ)
//
// With AVX-512 (table_avx512.h) an activation's byte a picks a row of the table, which then lies in registers, split
// into byte planes; a vector of weights' bytes b picks from it, one output channel in each lane. The bytes are summed
// in 16 bits over at most `BLOCK` terms, then in 32. A "folded" table has 128 entries: bit 7 of b complements what bits
// 6-0 pick: a negated term is its complement plus a constant. These are sums over weights alone, the caller's `init`,
// or, where a has a sign too, are counted (begin.h). With AVX2 one look-up serves sixteen activations or lanes
// (table_avx2.h).
//
// Where most activations are zeros, only the terms of the others are looked up, row by row (active.h): the sums begin
// with what all values would come to if every a was idle, and each term adds what its value has beyond that.

#include <atomic>
#include <vector>

#include "active.h"
#include "begin.h"
#include "capsules.h"
#include "few_avx2.h"
#include "helpers.h"
#include "plan.h"
#include "products.h"
#include "requantize.h"
#include "table_avx2.h"
#include "table_avx512.h"

namespace {

constexpr int64_t ROWS = 64;
constexpr int64_t FEW_ROWS = 256;  // that a tile has where few terms are active: then what takes time is to load b
constexpr int64_t NARROW = 128;    // lanes

// sums[m * width + n] += the values of bytes a[m * depth + k] and b[k * b_term + n]; where few are active, less the values
// that they would have if a was idle
using Micro = void (*)(const Plan &, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                       int64_t lanes, int32_t *sums, int64_t width);

void micro_portable(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                    int64_t lanes, int32_t *sums, int64_t width) {
    for (int64_t m = 0; m < rows; m++, a += BLOCK, sums += width)
        for (int64_t k = 0; k < terms; k++) {
            const uint16_t *row = plan.values + 256 * a[k];
            for (int64_t n = 0; n < lanes; n++)
                sums[n] = int32_t(uint32_t(sums[n]) + uint32_t(row[b[k * b_term + n]]));
        }
}

void few_portable(const Plan &plan, const uint8_t *a, int64_t rows, int64_t terms, const uint8_t *b, int64_t b_term,
                  int64_t lanes, int32_t *sums, int64_t width) {
    uint16_t list[DEPTH + 32];
    const uint16_t *idle = plan.values + 256 * plan.idle;
    for (int64_t m = 0; m < rows; m++, a += DEPTH, sums += width)
        for (int64_t i = 0, active = active_portable(a, terms, uint8_t(plan.idle), list); i < active; i++) {
            const uint16_t *row = plan.values + 256 * a[list[i]];
            const uint8_t *picks = b + list[i] * b_term;
            for (int64_t n = 0; n < lanes; n++)
                sums[n] = int32_t(uint32_t(sums[n]) + uint32_t(row[picks[n]]) - uint32_t(idle[picks[n]]));
        }
}

struct Kernel {
    Micro micro = nullptr, few = nullptr;  // of BLOCK and DEPTH terms
    int64_t rows = ROWS;                   // that a tile has at most
    int64_t step = 1;                      // rows that cost as much as one
};

template <int PLANES, bool FOLDED>
Kernel at(const Plan &plan, int32_t level, const Job &job) {
#ifdef X86
    if (level >= 2) return {micro512<PLANES, FOLDED>, few512<PLANES, FOLDED>};
    if (level == 1 && job.lanes <= NARROW && job.rows > job.lanes)
        return {plan.differ ? by_lanes256<PLANES, true> : by_lanes256<PLANES, false>, few256<PLANES, FOLDED>, PICKS};
    if (level == 1 && job.rows > 2) return {by_rows256<PLANES, FOLDED>, few256<PLANES, FOLDED>, ROWS, SIDE};
#endif
    return {micro_portable, few_portable};
}

Kernel choose_kernel(const Plan &plan, int32_t level, const Job &job) {
    switch (plan.n_planes) {
        case 0: return {};
        case 1: return plan.folded ? at<1, true>(plan, level, job) : at<1, false>(plan, level, job);
        default: return plan.folded ? at<2, true>(plan, level, job) : at<2, false>(plan, level, job);
    }
}

// The top bits of eight bytes
uint8_t top_bits(const uint8_t *bytes) {
    uint64_t eight;
    std::memcpy(&eight, bytes, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    return uint8_t((eight >> 7 & 0x0101010101010101u) * 0x0102040810204080u >> 56);  // byte j's goes to bit j
}

// Copies terms k0 ... k1 - 1 of one row of operand a
void gather_row(const Job &job, int64_t group, int64_t m, int64_t k0, int64_t k1, uint8_t *to) {
    const uint8_t *from = job.a + group * job.a_group + job.a_rows[m];
    if (job.segments == 1) {  // for short sums a division is long
        std::memcpy(to, from + k0, size_t(k1 - k0));
        return;
    }
    const int64_t run = job.terms / job.segments;
    for (int64_t k = k0; k < k1;) {
        const int64_t segment = k / run, end = std::min(k1, (segment + 1) * run);
        std::memcpy(to + (k - k0), from + segment * job.a_segment + (k - segment * run), size_t(end - k));
        k = end;
    }
}

// One tile of the output: some rows and some lanes of one group, all the terms
struct Tile {
    const Plan &plan;
    const Job &job;
    int64_t group, m0, m1, n0, n1, width;
    int32_t *sums;  // [m1 - m0][width]
};

// The share of terms that are active, by a sample of the rows
double active_share(const Job &job, uint8_t idle) {
    const int64_t each = std::max<int64_t>(16, job.groups * job.rows / 32);
    std::vector<uint8_t> a(size_t(job.terms));
    int64_t active = 0, all = 0;
    for (int64_t i = 0; i < job.groups * job.rows; i += each, all += job.terms) {
        gather_row(job, i / job.rows, i % job.rows, 0, job.terms, a.data());
        for (const uint8_t byte : a) active += byte != idle;
    }
    return double(active) / double(all);
}

void look_up(const Tile &t, Micro micro, int64_t depth) {
    const int64_t blocks = (t.job.terms + depth - 1) / depth, rows = t.m1 - t.m0;
    std::vector<uint8_t> a(size_t((rows + 15) / 16 * 16 * depth));
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t k0 = t.job.terms * block / blocks, k1 = t.job.terms * (block + 1) / blocks;
        const uint8_t *b = t.job.b + t.group * t.job.b_group + k0 * t.job.b_term + t.n0;
        for (int64_t m = 0; m < rows; m++) gather_row(t.job, t.group, t.m0 + m, k0, k1, a.data() + m * depth);
        micro(t.plan, a.data(), rows, k1 - k0, b, t.job.b_term, t.n1 - t.n0, t.sums, t.width);
    }
}

void multiply(const Tile &t, Products products) {
    const int64_t rows = t.m1 - t.m0, pairs = (t.job.terms + 1) / 2;
    std::vector<uint8_t> a(size_t(rows * 2 * PAIRS), 0);
    std::vector<int16_t> x(size_t(rows * 2 * PAIRS));
    for (int64_t p0 = 0; p0 < pairs; p0 += PAIRS) {
        const int64_t p1 = std::min(pairs, p0 + PAIRS);  // the last may have half a pair: b's factor of the other is 0
        for (int64_t m = 0; m < rows; m++)
            gather_row(t.job, t.group, t.m0 + m, 2 * p0, std::min(t.job.terms, 2 * p1), a.data() + m * 2 * PAIRS);
        // of short sums several factors at once: in w one begins where the other ends
        const int64_t run = p1 - p0, together = run == pairs ? PAIRS / pairs : 1;
        for (int64_t r0 = 0; r0 < t.plan.rank; r0 += together) {
            const int64_t r1 = std::min<int64_t>(t.plan.rank, r0 + together);
            for (int64_t m = 0; m < rows; m++)
                for (int64_t r = r0; r < r1; r++) {
                    const uint8_t *from = a.data() + 2 * PAIRS * m;
                    int16_t *to = x.data() + 2 * (PAIRS * m + run * (r - r0));
                    for (int64_t k = 0; k < 2 * run; k++) to[k] = t.plan.u[256 * r + from[k]];
                }
            for (int64_t n = t.n0; n < t.n1; n += VECTOR) {
                const int64_t at = ((n / VECTOR * t.plan.rank + r0) * pairs + p0) * 2 * VECTOR;
                const int16_t *w = t.job.w + t.group * t.job.w_group + at;
                products(x.data(), rows, run * (r1 - r0), w, t.sums + (n - t.n0), t.width);
            }
        }
    }
}

// How the steps of a tile are done
struct Steps {
    Begin begin;
    Micro micro;
    int64_t depth;  // terms that it takes at once
    Products products;
    Requantize requantize;
};

void begin(const Tile &t, Begin row_begins) {
    const int64_t eights = t.plan.differ ? (t.job.terms + 7) / 8 : 0;
    const int32_t *init = t.job.init + t.group * t.job.init_group + t.n0;
    const uint8_t *b_signs = eights ? t.job.signs + t.group * t.job.signs_group + t.n0 : nullptr;
    std::vector<uint8_t> a(size_t(t.job.terms + 8), 0), a_signs(size_t(eights), 0);
    for (int64_t m = t.m0; m < t.m1; m++) {
        uint32_t base = 0;
        if (t.plan.row || t.plan.differ) gather_row(t.job, t.group, m, 0, t.job.terms, a.data());
        if (t.plan.row)
            for (int64_t k = 0; k < t.job.terms; k++) base += uint32_t(t.plan.row[a[size_t(k)]]);
        for (int64_t i = 0; i < eights; i++) a_signs[size_t(i)] = top_bits(a.data() + 8 * i);
        row_begins(init, base, a_signs.data(), b_signs, t.job.b_term, eights, t.plan.differ,
                   t.sums + (m - t.m0) * t.width, t.n1 - t.n0);
    }
}

void compute(const Tile &t, const Steps &steps) {
    begin(t, steps.begin);
    if (steps.micro) look_up(t, steps.micro, steps.depth);
    if (t.plan.rank) multiply(t, steps.products);
    for (int64_t m = t.m0; m < t.m1; m++) {
        const int32_t *sums = t.sums + (m - t.m0) * t.width;
        const int64_t at = t.group * t.job.out_group + m * t.job.out_row + t.n0;
        if (t.job.unit)
            steps.requantize(*t.job.unit, sums, t.job.codes + at, t.n1 - t.n0);
        else
            std::copy(sums, sums + (t.n1 - t.n0), t.job.out + at);
    }
}

}  // namespace

extern "C" {

// The best level that this processor has: 0 portable, 1 AVX2, 2 AVX-512 with VBMI, VBMI2 and VNNI
int32_t redcane_level() {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

// Where the share of active terms is below `few`, the sums are those of `few_job` by `few_plan`, which leaves the others
// out: its values are all looked up, and its sums begin with those of idle terms.
void redcane_sums(const Plan *plan, const Job *job, const Plan *few_plan, const Job *few_job, double few, int32_t level,
                  int32_t threads) {
    const bool some = few_job && active_share(*job, uint8_t(few_plan->idle)) < few;
    if (some) plan = few_plan, job = few_job;
    const Kernel kernel = choose_kernel(*plan, level, *job);
    const Steps steps{choose_begin(level), some ? kernel.few : kernel.micro, some ? DEPTH : BLOCK,
                      choose_products(level), choose_requantize(level)};
    const int64_t most = some ? FEW_ROWS : kernel.rows, step = some ? 1 : kernel.step;
    const int64_t across = (job->lanes + LANES - 1) / LANES;
    // Few rows are divided so that every thread has some, and as many as the others; each pass over b has its price.
    const int64_t strips = job->groups * across, each = threads > 1 ? 2 * threads : 1;
    const int64_t wanted = std::max((each + strips - 1) / strips, (job->rows + most - 1) / most);
    const int64_t fair = strips < each ? (wanted + threads - 1) / threads * threads : wanted;
    const int64_t down = std::max<int64_t>(1, std::min(job->rows, fair)), tiles = strips * down;
    const int64_t height = (job->rows + down - 1) / down + step;
    const auto row = [&](int64_t i) {  // where tile i of those below each other begins
        return std::min(job->rows, (job->rows * i / down + step / 2) / step * step);
    };
    parallel(threads, tiles, std::max<int64_t>(1, std::min<int64_t>(64, tiles / (8 * threads))),
             [&](int64_t first, int64_t last) {
                 std::vector<int32_t> sums(size_t(height * LANES));
                 for (int64_t i = first; i < last; i++) {
                     const int64_t m0 = row(i % down), m1 = i % down + 1 < down ? row(i % down + 1) : job->rows;
                     const int64_t n0 = i / down % across * LANES, n1 = std::min(job->lanes, n0 + LANES);
                     if (m0 == m1) continue;
                     const int64_t width = (n1 - n0 + VECTOR - 1) / VECTOR * VECTOR;
                     compute({*plan, *job, i / down / across, m0, m1, n0, n1, width, sums.data()}, steps);
                 }
             });
}

// Codes of `count` accumulators
void redcane_requantize(const Requantizer *unit, const int32_t *sums, int16_t *out, int64_t count, int32_t level,
                        int32_t threads) {
    const Requantize requantize = choose_requantize(level);
    parallel(threads, count, 1 << 16, [=](int64_t first, int64_t last) {
        requantize(*unit, sums + first, out + first, last - first);
    });
}

// The bytes of codes [images][rows][run] as operand a, each what `same` has for it if there is such, with `pad` rows and
// `margin` bytes of `zero` around: [images][rows + 2 pad][run + 2 margin]
void redcane_a(const int16_t *codes, uint8_t *out, int64_t images, int64_t rows, int64_t run, int64_t pad, int64_t margin,
               uint8_t zero, const uint8_t *same, int32_t threads) {
    const int64_t high = rows + 2 * pad, wide = run + 2 * margin;
    parallel(threads, images * high, std::max<int64_t>(1, (1 << 16) / wide), [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            uint8_t *to = out + i * wide;
            const int64_t row = i % high - pad;
            if (row < 0 || row >= rows) {
                std::memset(to, zero, size_t(wide));
                continue;
            }
            const int16_t *from = codes + (i / high * rows + row) * run;
            std::memset(to, zero, size_t(margin));
            to += margin;
            if (same)
                for (int64_t n = 0; n < run; n++) to[n] = same[uint8_t(from[n])];
            else
                for (int64_t n = 0; n < run; n++) to[n] = uint8_t(from[n]);
            std::memset(to + run, zero, size_t(margin));
        }
    });
}

// The bytes of codes as operand b: two's complement, or sign and magnitude for a folded plan
void redcane_b(const int16_t *codes, uint8_t *out, int64_t count, int32_t folded, int32_t threads) {
    parallel(threads, count, 1 << 16, [=](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int16_t sign = folded ? int16_t(codes[i] >> 15) : int16_t(0);  // no branch: signs are like random
            out[i] = uint8_t(((codes[i] ^ sign) - sign) | (sign & 128));
        }
    });
}

// b's factors of codes [groups][terms][lanes]: w[g, n / VECTOR, r, k / 2, n % VECTOR, k % 2] = v[r][the code's byte]
void redcane_pairs(const int16_t *codes, const int16_t *v, int16_t *w, int64_t groups, int64_t terms, int64_t lanes,
                   int64_t rank) {
    const int64_t pairs = (terms + 1) / 2, strips = (lanes + VECTOR - 1) / VECTOR;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t r = 0; r < rank; r++)
            for (int64_t k = 0; k < terms; k++)
                for (int64_t n = 0; n < lanes; n++) {
                    const int64_t at = ((g * strips + n / VECTOR) * rank + r) * pairs + k / 2;
                    const int16_t code = codes[(g * terms + k) * lanes + n];
                    w[(at * VECTOR + n % VECTOR) * 2 + k % 2] = v[256 * r + uint8_t(code)];
                }
}

// The signs of bytes [groups][terms][lanes]: of term k bit k % 8 of out[g, k / 8, n]
void redcane_signs(const uint8_t *bytes, uint8_t *out, int64_t groups, int64_t terms, int64_t lanes, int32_t threads) {
    parallel(threads, groups, std::max<int64_t>(1, (1 << 16) / (terms * lanes)), [=](int64_t first, int64_t last) {
        for (int64_t g = first; g < last; g++)
            for (int64_t k = 0; k < terms; k++) {
                const uint8_t *from = bytes + (g * terms + k) * lanes;
                uint8_t *to = out + (g * ((terms + 7) / 8) + k / 8) * lanes;
                for (int64_t n = 0; n < lanes; n++) to[n] |= uint8_t(from[n] >> 7 << k % 8);
            }
    });
}

// out[g, n] = sum over k of column[b[g, k, n]]: the constants that belong to the weights
void redcane_columns(const int32_t *column, const uint8_t *b, int32_t *out, int64_t groups, int64_t terms,
                     int64_t lanes, int32_t threads) {
    parallel(threads, groups, std::max<int64_t>(1, (1 << 16) / (terms * lanes)), [=](int64_t first, int64_t last) {
        for (int64_t g = first; g < last; g++) {
            uint32_t *sums = reinterpret_cast<uint32_t *>(out + g * lanes);
            std::fill(sums, sums + lanes, 0u);
            for (int64_t k = 0; k < terms; k++)
                for (int64_t n = 0; n < lanes; n++) sums[n] += uint32_t(column[b[(g * terms + k) * lanes + n]]);
        }
    });
}
}
