// Cartesian genetic programming of 8 x 8 unsigned multipliers: a (1+4) evolution strategy that makes a circuit of
// two-input gates smaller while its error stays within limits. model/multipliers/kernel.py builds and calls this file.
//
// A chromosome of n nodes is 3n + 16 integers: function, input, input of every node, and the signal of every product
// bit. Signals 0-7 are the bits of a, 8-15 those of b, 16 is 0, 17 is 1, and 18 + i is node i, which may only read
// signals before its own. A signal is evaluated for 1024 operand pairs at a time, a bit each, so that the
// signals of a whole circuit stay in the first-level cache.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#ifdef __AVX512VPOPCNTDQ__
typedef uint64_t Vector __attribute__((vector_size(64)));
typedef Vector Counts;  // of ones, by lane
#else
typedef uint64_t Vector __attribute__((vector_size(32)));
typedef int64_t Counts;  // there is no instruction that counts in the lanes of a vector
#endif
constexpr int LANES = sizeof(Vector) / sizeof(uint64_t), WIDTH = 1024 / (64 * LANES);
constexpr int BITS = 16, FIRST = 18, OFFSPRING = 4, MOST_MUTATIONS = 3, FUNCTIONS = 16, PAIRS = 1 << 16;

struct alignas(64) Block {
    Vector v[WIDTH];
};

constexpr int BLOCK_PAIRS = 8 * sizeof(Block), BLOCKS = PAIRS / BLOCK_PAIRS;

struct Function {
    uint64_t one, x, y, xy;  // masks: the function is one ^ (x & X) ^ (y & Y) ^ (xy & X & Y), so no branch is needed
    int32_t cost;
};

struct Step {
    int32_t function, x, y;
};

// Sums over all operand pairs, of E = P' - P, that a circuit may not exceed; below 0: no limit.
struct Limits {
    int64_t absolute;  // of |E|
    int64_t worst;     // no sum: the largest |E|
    int64_t square;    // of E^2: a necessary condition, so that the search can give up early
    int64_t bias;      // |sum of E|
    int64_t weighted;  // of weight * |E|
    int64_t weighted_bias;  // |sum of weight * E|
    int64_t zero;      // no sum either: above 0, products with a zero operand must be zero
    double variance;   // of E, times PAIRS^2
    double noise;      // of weight * (P - g P')^2, where g is the gain that makes it least; below 0: no limit
};

struct Problem {
    Limits limits;
    int functions, weight_bits = 0, planes = BITS;
    bool squares, sums;
    Function function[FUNCTIONS];
    uint16_t order[PAIRS];  // pair a * 256 + b at each position
    std::vector<Block> operands, products, weights;  // [BLOCKS][16], [BLOCKS][16], [BLOCKS][weight_bits]
    std::vector<Block> zeros;  // [BLOCKS]: whether an operand is zero
    std::vector<uint32_t> weight, weighted_product;  // [PAIRS], by position: weight, and weight * P
    int64_t squared[BLOCKS];  // sums of weight * P^2
    int blocks[BLOCKS];     // in the order of evaluation: those that refuted a circuit last come first
};

uint64_t random_word(uint64_t &state) {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int32_t below(uint64_t &state, uint64_t bound) { return int32_t((random_word(state) >> 32) * bound >> 32); }

void set(Block &block, int position, bool value) {
    uint64_t word;
    char *at = reinterpret_cast<char *>(&block) + position / 64 * sizeof word;
    std::memcpy(&word, at, sizeof word);
    word |= uint64_t(value) << position % 64;
    std::memcpy(at, &word, sizeof word);
}

bool get(const Block &block, int position) {
    uint64_t word;
    std::memcpy(&word, reinterpret_cast<const char *>(&block) + position / 64 * sizeof word, sizeof word);
    return word >> position % 64 & 1;
}

// The active nodes of a chromosome as steps over a compact array of signals, and their cost.
struct Program {
    std::vector<Step> steps;
    std::vector<uint8_t> active;
    std::vector<int32_t> place;
    std::vector<Block> signals;
    int32_t outputs[BITS];
    int64_t cost = 0;

    void mark(const Problem &problem, int nodes, const int32_t *genes) {
        active.assign(FIRST + nodes, 0);
        for (int k = 0; k < BITS; k++) active[genes[3 * nodes + k]] = 1;
        cost = 0;
        for (int i = nodes - 1; i >= 0; i--) {
            if (!active[FIRST + i]) continue;
            const Function &f = problem.function[genes[3 * i]];
            cost += f.cost;
            if (f.x | f.xy) active[genes[3 * i + 1]] = 1;
            if (f.y | f.xy) active[genes[3 * i + 2]] = 1;
        }
    }

    void compile(int nodes, const int32_t *genes) {
        steps.clear();
        place.resize(FIRST + nodes);
        for (int i = 0; i < FIRST; i++) place[i] = i;
        for (int i = 0; i < nodes; i++) {
            if (!active[FIRST + i]) continue;
            place[FIRST + i] = FIRST + int32_t(steps.size());
            // An input that the function ignores may name an inactive node, which has no place.
            int32_t x = genes[3 * i + 1], y = genes[3 * i + 2];
            steps.push_back({genes[3 * i], active[x] ? place[x] : 16, active[y] ? place[y] : 16});
        }
        for (int k = 0; k < BITS; k++) outputs[k] = place[genes[3 * nodes + k]];
        if (signals.size() < FIRST + steps.size()) signals.resize(FIRST + steps.size());
        for (int j = 0; j < WIDTH; j++) {
            signals[16].v[j] = Vector{};
            signals[17].v[j] = ~Vector{};
        }
    }

    void run(const Problem &problem, int block) {
        std::memcpy(signals.data(), &problem.operands[16 * block], 16 * sizeof(Block));
        Block *out = signals.data() + FIRST;
        for (const Step &step : steps) {
            const Function &f = problem.function[step.function];
            const Block &x = signals[step.x], &y = signals[step.y];
            for (int j = 0; j < WIDTH; j++)
                out->v[j] = (f.xy & (x.v[j] & y.v[j])) ^ (f.x & x.v[j]) ^ (f.y & y.v[j]) ^ f.one;
            out++;
        }
    }
};

#ifdef __AVX512VPOPCNTDQ__
inline void count(Counts &total, Vector bits) {
    for (int lane = 0; lane < LANES; lane++) total[lane] += uint64_t(__builtin_popcountll(bits[lane]));
}

inline int64_t sum(const Counts &counts) {
    int64_t total = 0;
    for (int lane = 0; lane < LANES; lane++) total += int64_t(counts[lane]);
    return total;
}
#else
inline void count(Counts &total, const Vector &bits) {
    for (int lane = 0; lane < LANES; lane++) total += __builtin_popcountll(bits[lane]);
}

inline int64_t sum(Counts counts) { return counts; }
#endif

inline bool any(const Vector &bits) {
    uint64_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all |= bits[lane];
    return all != 0;
}

// A byte's bits, a byte each.
struct Spread {
    uint64_t of[256];
    constexpr Spread() : of() {
        for (int byte = 0; byte < 256; byte++)
            for (int bit = 0; bit < 8; bit++) of[byte] |= uint64_t(byte >> bit & 1) << 8 * bit;
    }
};
constexpr Spread SPREAD;

// Sums over a position's pairs: of weight * P * P', and of weight * P'^2.
struct Moments {
    int64_t mixed = 0, squared = 0;

    void add(const Problem &problem, const Program &program, int block) {
        uint64_t low[BLOCK_PAIRS / 8] = {}, high[BLOCK_PAIRS / 8] = {};
        for (int k = 0; k < BITS; k++) {
            const uint8_t *plane = reinterpret_cast<const uint8_t *>(&program.signals[program.outputs[k]]);
            uint64_t *half = k < 8 ? low : high;
            for (int i = 0; i < BLOCK_PAIRS / 8; i++) half[i] |= SPREAD.of[plane[i]] << k % 8;
        }
        const uint8_t *l = reinterpret_cast<const uint8_t *>(low), *h = reinterpret_cast<const uint8_t *>(high);
        const uint32_t *weight = &problem.weight[block * BLOCK_PAIRS];
        const uint32_t *weighted = &problem.weighted_product[block * BLOCK_PAIRS];
        uint64_t of_both = 0, of_ours = 0;
        for (int i = 0; i < BLOCK_PAIRS; i++) {
            const uint32_t ours = l[i] | uint32_t(h[i]) << 8;
            of_both += uint64_t(weighted[i]) * ours;
            of_ours += uint64_t(weight[i] * ours) * ours;
        }
        mixed += int64_t(of_both);
        squared += int64_t(of_ours);
    }

    // The least sum of weight * (P - g P')^2; that of a part of the pairs is never more than that of all.
    double noise(int64_t exact) const {
        return squared ? double(exact) - double(mixed) * double(mixed) / double(squared) : double(exact);
    }
};

// Whether a circuit keeps all limits.
bool keeps(Problem &problem, Program &program) {
    const Limits &limits = problem.limits;
    int64_t absolute = 0, square = 0, bias = 0, weighted = 0, weighted_bias = 0, exact = 0;
    Moments moments;
    for (int turn = 0; turn < BLOCKS; turn++) {
        const int block = problem.blocks[turn];
        program.run(problem, block);
        bool broken = false;
        for (int j = 0; j < WIDTH && !broken; j++) {
            Vector error[BITS], magnitude[BITS], borrow{}, product{};
            for (int k = 0; k < BITS; k++) {  // E = P' - P, two's complement; `borrow` ends as its sign
                const Vector ours = program.signals[program.outputs[k]].v[j], exact = problem.products[16 * block + k].v[j];
                error[k] = ours ^ exact ^ borrow;
                borrow = (~ours & (exact | borrow)) | (exact & borrow);
                product |= ours;
            }
            if (limits.zero > 0 && any(product & problem.zeros[block].v[j])) {
                broken = true;
                break;
            }
            const Vector sign = borrow;
            Vector carry = sign;
            for (int k = 0; k < BITS; k++) {
                magnitude[k] = error[k] ^ sign ^ carry;
                carry &= error[k] ^ sign;
            }
            if (limits.worst >= 0) {
                Vector greater{};
                for (int k = 0; k < BITS; k++)
                    greater = limits.worst >> k & 1 ? magnitude[k] & greater : magnitude[k] | greater;
                if (any(greater)) {
                    broken = true;
                    break;
                }
            }
            const int planes = problem.planes;  // above them, the limit of the worst case leaves only zeros
            if (limits.absolute >= 0) {
                for (int k = planes - 1; k >= 0; k--) {
                    Counts ones{};
                    count(ones, magnitude[k]);
                    absolute += sum(ones) << k;
                }
            }
            if (problem.sums) {
                Counts ones{};
                count(ones, sign);
                bias -= sum(ones) << BITS;
                for (int k = 0; k < BITS; k++) {
                    Counts set{};
                    count(set, error[k]);
                    bias += sum(set) << k;
                }
            }
            if (problem.squares) {
                for (int k = 0; k < planes; k++)
                    for (int l = 0; l <= k; l++) {
                        Counts ones{};
                        count(ones, magnitude[k] & magnitude[l]);
                        square += sum(ones) << (k + l + (k != l));
                    }
            }
            if (limits.weighted >= 0 || limits.weighted_bias >= 0) {
                for (int w = 0; w < problem.weight_bits; w++) {
                    const Vector weight = problem.weights[size_t(problem.weight_bits) * block + w].v[j];
                    if (!any(weight)) continue;
                    Counts total{}, lowered{};
                    for (int k = planes - 1; k >= 0; k--) {
                        Counts ones{};
                        count(ones, magnitude[k] & weight);
                        total = total + total + ones;
                    }
                    weighted += sum(total) << w;
                    if (limits.weighted_bias < 0) continue;
                    for (int k = planes - 1; k >= 0; k--) {
                        Counts ones{};
                        count(ones, magnitude[k] & weight & sign);
                        lowered = lowered + lowered + ones;
                    }
                    weighted_bias += (sum(total) - 2 * sum(lowered)) << w;
                }
            }
        }
        if (limits.noise >= 0 && !broken) {
            moments.add(problem, program, block);
            exact += problem.squared[block];
            broken = moments.noise(exact) > limits.noise;
        }
        broken |= (limits.absolute >= 0 && absolute > limits.absolute) || (limits.square >= 0 && square > limits.square) ||
                  (limits.weighted >= 0 && weighted > limits.weighted);
        if (broken) {
            std::rotate(problem.blocks, problem.blocks + turn, problem.blocks + turn + 1);
            return false;
        }
    }
    if (limits.bias >= 0 && std::abs(bias) > limits.bias) return false;
    if (limits.weighted_bias >= 0 && std::abs(weighted_bias) > limits.weighted_bias) return false;
    return limits.variance < 0 || double(__int128(square) * PAIRS - __int128(bias) * bias) <= limits.variance;
}

// Changes one gene; returns whether it belongs to an active node or to an output.
bool mutate(const Problem &problem, const Program &parent, int nodes, int32_t *genes, uint64_t &random) {
    const int gene = below(random, uint64_t(3 * nodes + BITS));
    const int node = gene / 3;
    if (node >= nodes) {
        genes[gene] = below(random, uint64_t(FIRST + nodes));
        return true;
    }
    genes[gene] = gene % 3 ? below(random, uint64_t(FIRST + node)) : below(random, uint64_t(problem.functions));
    return parent.active[FIRST + node];
}

}  // namespace

extern "C" {

// `order` is a permutation of the pairs; `weights` (by pair a * 256 + b, not negative) may be null.
void *problem_new(const Limits *limits, int functions, const uint8_t *truth_tables, const int32_t *costs,
                  const uint16_t *order, const int32_t *weights) {
    Problem *problem = new Problem;
    problem->limits = *limits;
    problem->functions = functions;
    for (int i = 0; i < functions; i++) {
        const uint64_t t = truth_tables[i];  // bit 2x + y: the function's value
        const uint64_t one = t & 1, y = (t >> 1 & 1) ^ one, x = (t >> 2 & 1) ^ one, xy = (t >> 3 & 1) ^ one ^ x ^ y;
        problem->function[i] = {-one, -x, -y, -xy, costs[i]};
    }
    problem->squares = limits->square >= 0 || limits->variance >= 0;
    problem->sums = limits->bias >= 0 || limits->variance >= 0;
    while (limits->worst >= 0 && problem->planes > 0 && !(limits->worst >> (problem->planes - 1))) problem->planes--;
    if (weights)
        for (int pair = 0; pair < PAIRS; pair++)
            while (int64_t(weights[pair]) >> problem->weight_bits) problem->weight_bits++;
    std::memcpy(problem->order, order, sizeof problem->order);
    problem->weight.assign(PAIRS, 0);
    problem->weighted_product.assign(PAIRS, 0);
    std::fill(problem->squared, problem->squared + BLOCKS, 0);
    const Block zero{};
    problem->operands.assign(16 * BLOCKS, zero);
    problem->products.assign(16 * BLOCKS, zero);
    problem->weights.assign(size_t(problem->weight_bits) * BLOCKS, zero);
    problem->zeros.assign(BLOCKS, zero);
    for (int block = 0; block < BLOCKS; block++) problem->blocks[block] = block;
    for (int position = 0; position < PAIRS; position++) {
        const int block = position / BLOCK_PAIRS, bit = position % BLOCK_PAIRS;
        const int pair = order[position], a = pair >> 8, b = pair & 255;
        for (int k = 0; k < 8; k++) {
            set(problem->operands[16 * block + k], bit, a >> k & 1);
            set(problem->operands[16 * block + 8 + k], bit, b >> k & 1);
        }
        for (int k = 0; k < BITS; k++) set(problem->products[16 * block + k], bit, a * b >> k & 1);
        set(problem->zeros[block], bit, a * b == 0);
        if (!weights) continue;
        problem->weight[position] = uint32_t(weights[pair]);
        problem->weighted_product[position] = uint32_t(weights[pair] * (a * b));
        problem->squared[block] += int64_t(problem->weighted_product[position]) * (a * b);
        for (int w = 0; w < problem->weight_bits; w++)
            set(problem->weights[size_t(problem->weight_bits) * block + w], bit, weights[pair] >> w & 1);
    }
    return problem;
}

void problem_free(void *problem) { delete static_cast<Problem *>(problem); }

// The cost of a chromosome's active gates if it keeps the limits, else -1.
int64_t cost(void *handle, int nodes, const int32_t *genes) {
    Problem &problem = *static_cast<Problem *>(handle);
    Program program;
    program.mark(problem, nodes, genes);
    program.compile(nodes, genes);
    return keeps(problem, program) ? program.cost : -1;
}

// The products [a * 256 + b] of a chromosome.
void products(void *handle, int nodes, const int32_t *genes, uint16_t *table) {
    Problem &problem = *static_cast<Problem *>(handle);
    Program program;
    program.mark(problem, nodes, genes);
    program.compile(nodes, genes);
    for (int block = 0; block < BLOCKS; block++) {
        program.run(problem, block);
        for (int bit = 0; bit < BLOCK_PAIRS; bit++) {
            int product = 0;
            for (int k = 0; k < BITS; k++) product |= get(program.signals[program.outputs[k]], bit) << k;
            table[problem.order[block * BLOCK_PAIRS + bit]] = uint16_t(product);
        }
    }
}

// Runs so many generations of four offspring on `genes`, which must keep the limits and are replaced by the best found.
// `random` is the generator's state, `simulated` counts the offspring whose error had to be computed: the others cost
// more than their parent, or differ from it in inactive nodes only. Returns the final cost.
int64_t evolve(void *handle, int nodes, int32_t *genes, uint64_t *random, int64_t generations, int64_t *simulated) {
    Problem &problem = *static_cast<Problem *>(handle);
    const size_t size = 3 * size_t(nodes) + BITS;
    std::vector<int32_t> child[OFFSPRING];
    for (auto &genes_of : child) genes_of.resize(size);
    Program parent, program[OFFSPRING];
    parent.mark(problem, nodes, genes);
    for (int64_t generation = 0; generation < generations; generation++) {
        bool touched[OFFSPRING];
        int rank[OFFSPRING];
        for (int c = 0; c < OFFSPRING; c++) {
            rank[c] = c;
            std::copy(genes, genes + size, child[c].begin());
            touched[c] = false;
            for (int left = 1 + below(*random, MOST_MUTATIONS); left > 0; left--)
                touched[c] |= mutate(problem, parent, nodes, child[c].data(), *random);
            program[c].cost = parent.cost;
            if (touched[c]) program[c].mark(problem, nodes, child[c].data());
        }
        // The cheapest first, so that the first which keeps the limits is the best; of equals, those that differ.
        std::stable_sort(rank, rank + OFFSPRING, [&](int one, int other) {
            if (program[one].cost != program[other].cost) return program[one].cost < program[other].cost;
            return touched[one] > touched[other];
        });
        for (int c : rank) {
            if (program[c].cost > parent.cost) break;
            if (touched[c]) {
                ++*simulated;
                program[c].compile(nodes, child[c].data());
                if (!keeps(problem, program[c])) continue;
                std::swap(parent.active, program[c].active);
                parent.cost = program[c].cost;
            }
            std::copy(child[c].begin(), child[c].end(), genes);
            break;
        }
    }
    return parent.cost;
}

}  // extern "C"
