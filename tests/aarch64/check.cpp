// Runs everything that the kernel of aarch64 can do over cases from a file, where that architecture is only emulated
// and there is no Python. Shows that a row has the same bits alone, in parts of 5, in the whole batch and with 3
// threads, that float16 is read exactly and written rounded once, that the first bad row is named each time, and that
// nothing but `out` is written. Whether the values are right is for tests/test_aarch64.py to say, which makes the cases
// and reads the results.
//
//   check CASES RESULTS      ends with 1 at the first difference, and says which
//
// CASES, one after the other: uint64 K, d, e, N, k; float64 temperature, may_drop; float32 centroids [K, d] of unit
// norm, answers [K, e], queries [N, d].
// RESULTS, of every case for float32, int16 and screened: int64 first bad row, or -1; float64 the five numbers of
// HeadRounding; float32 projected [N, e], account [N, 2] (not of float32). Then float32 weights [N, K], and of the k
// heaviest heads float32 weights [N, k], int64 heads [N, k].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "dispatch.h"
#include "engine.h"
#include "packing.h"

using namespace headroute;

namespace {

template <typename T>
std::vector<T> read(std::istream& from, std::size_t n) {
    std::vector<T> values(n);
    from.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(n * sizeof(T)));
    return values;
}

template <typename T>
void write(std::ostream& to, const std::vector<T>& values) {
    to.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

struct Case {
    std::size_t n_heads, query_dim, answer_dim, n, top;
    double temperature, may_drop;
    std::vector<float> centroids, answers, queries;
};

// False at the end of the file.
bool read_case(std::istream& from, Case& c) {
    const auto sizes = read<std::uint64_t>(from, 5);
    if (!from) return false;
    c.n_heads = sizes[0], c.query_dim = sizes[1], c.answer_dim = sizes[2], c.n = sizes[3], c.top = sizes[4];
    const auto numbers = read<double>(from, 2);
    c.temperature = numbers[0], c.may_drop = numbers[1];
    c.centroids = read<float>(from, c.n_heads * c.query_dim);
    c.answers = read<float>(from, c.n_heads * c.answer_dim);
    c.queries = read<float>(from, c.n * c.query_dim);
    if (from) return true;
    std::fputs("the file of cases ends in the middle of one\n", stderr);
    std::exit(1);
}

// A row's calls: all together, or a few at a time.
struct Way {
    const char* name;
    std::size_t rows;  // of a call
    std::size_t threads;
    bool measured;  // int16: whether an account is asked for
};
constexpr Way kWhole = {"whole", SIZE_MAX, 1, true};
constexpr Way kOthers[] = {{"3 threads", SIZE_MAX, 3, false}, {"parts of 5", 5, 1, false}, {"alone", 1, 1, true}};

template <typename Value>
struct Result {
    std::vector<Value> out;           // [n, columns]
    std::vector<float> account;       // [n, 2]
    std::vector<std::int64_t> heads;  // [n, k] of top_heads
    std::int64_t bad_row = -1;
    bool strayed = false;  // something beside `out` was written
};

constexpr std::size_t columns_of(const Case& c, Task task) {
    return task == Task::project ? c.answer_dim : task == Task::route ? c.n_heads : c.top;
}

// Value and Query are float or __fp16.
template <typename Value, typename Query>
Result<Value> run(const Engine& engine, const Case& c, const std::vector<Query>& queries, Task task, const Way& way) {
    constexpr std::size_t kGuard = 37;  // odd, so that `out` starts at no multiple of a vector
    const Value untouched = -12345.0f;
    const std::size_t columns = columns_of(c, task);
    Result<Value> result;
    result.account.resize(2 * c.n);
    result.heads.resize(task == Task::top_heads ? c.n * c.top : 0);
    std::vector<Value> memory(c.n * columns + 2 * kGuard, untouched);
    Value* const out = memory.data() + kGuard;
    const Precision precision = engine.heads().precision;
    const bool measured = precision == Precision::screened || (precision == Precision::int16 && way.measured);
    const std::size_t step = std::min(way.rows, c.n);
    for (std::size_t first = 0; first < c.n && result.bad_row < 0; first += step) {
        Batch batch{};
        batch.queries = {reinterpret_cast<const char*>(queries.data() + first * c.query_dim), sizeof(Query) == 2};
        batch.query_stride = static_cast<std::ptrdiff_t>(c.query_dim);
        batch.n = std::min(step, c.n - first);
        batch.out = {reinterpret_cast<char*>(out + first * columns), sizeof(Value) == 2};
        batch.temperature = c.temperature;
        batch.n_threads = way.threads;
        if (task == Task::top_heads) batch.top = {result.heads.data() + first * c.top, c.top};
        batch.account = measured ? result.account.data() + 2 * first : nullptr;
        batch.may_drop = c.may_drop;
        const Outcome outcome = engine.run(task, batch, [] { return false; });
        if (outcome.bad_row != kNoBadRow) result.bad_row = static_cast<std::int64_t>(first + outcome.bad_row);
    }
    for (std::size_t i = 0; i < kGuard; ++i)
        result.strayed |= memory[i] != untouched || memory[memory.size() - 1 - i] != untouched;
    result.out.assign(out, out + c.n * columns);
    return result;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b, std::size_t row, std::size_t columns) {
    return std::memcmp(a.data() + row * columns, b.data() + row * columns, columns * sizeof(T)) == 0;
}

[[noreturn]] void fail(const Engine& engine, const Case& c, Task task, const char* way, const char* what) {
    std::fprintf(stderr, "%s: %s; precision %d, task %d, K = %zu, d = %zu, e = %zu, N = %zu, temperature %g\n", way,
                 what, static_cast<int>(engine.heads().precision), static_cast<int>(task), c.n_heads, c.query_dim,
                 c.answer_dim, c.n, c.temperature);
    std::exit(1);
}

// Ends the program unless `other` is the same as `whole`, where that is specified.
template <typename Value>
void compare(const Engine& engine, const Case& c, Task task, const Result<Value>& whole, const Result<Value>& other,
             const char* way, bool measured) {
    if (whole.strayed || other.strayed) fail(engine, c, task, way, "something beside `out` was written");
    if (other.bad_row != whole.bad_row) fail(engine, c, task, way, "another bad row");
    if (whole.bad_row >= 0) return;
    for (std::size_t row = 0; row < c.n; ++row) {
        if (measured && !same_bits(whole.account, other.account, row, 2)) fail(engine, c, task, way, "another account");
        if (std::isinf(whole.account[2 * row])) continue;  // given up
        if (!same_bits(whole.out, other.out, row, columns_of(c, task))) fail(engine, c, task, way, "other bits");
        if (task == Task::top_heads && !same_bits(whole.heads, other.heads, row, c.top))
            fail(engine, c, task, way, "other heads");
    }
}

// The result of the whole batch, if it has the same bits every other way.
template <typename Value, typename Query>
Result<Value> run_all_ways(const Engine& engine, const Case& c, const std::vector<Query>& queries, Task task) {
    const auto whole = run<Value>(engine, c, queries, task, kWhole);
    for (const Way& way : kOthers)
        compare(engine, c, task, whole, run<Value>(engine, c, queries, task, way), way.name, way.measured);
    return whole;
}

// float16 queries, and results of both types, against the same numbers in float32. Queries are scaled into float16's
// range.
void check_halves(const Engine& engine, const Case& c) {
    std::vector<__fp16> halves(c.queries.size());
    for (std::size_t row = 0; row < c.n; ++row) {
        const float* from = c.queries.data() + row * c.query_dim;
        float largest = 0.0f;
        for (std::size_t i = 0; i < c.query_dim; ++i) largest = std::max(largest, std::fabs(from[i]));
        for (std::size_t i = 0; i < c.query_dim; ++i)
            halves[row * c.query_dim + i] = static_cast<__fp16>(largest > 0.0f ? from[i] / largest : from[i]);
    }
    const std::vector<float> floats(halves.begin(), halves.end());
    const auto expected = run<float>(engine, c, floats, Task::project, kWhole);
    compare(engine, c, Task::project, expected, run_all_ways<float>(engine, c, halves, Task::project),
            "float16 queries", true);
    Result<__fp16> rounded;
    rounded.out.assign(expected.out.begin(), expected.out.end());
    rounded.account = expected.account;
    rounded.bad_row = expected.bad_row;
    compare(engine, c, Task::project, rounded, run_all_ways<__fp16>(engine, c, halves, Task::project),
            "float16 results", true);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fputs("usage: check CASES RESULTS\n", stderr);
        return 1;
    }
    std::ifstream cases(argv[1], std::ios::binary);
    std::ofstream results(argv[2], std::ios::binary);
    const Kernel& kernel = kernel_by_name("baseline");
    std::size_t n_cases = 0;
    for (Case c; read_case(cases, c); ++n_cases) {
        const auto engine = [&](Precision precision) {
            return Engine(pack_heads(c.centroids.data(), c.answers.data(), c.n_heads, c.query_dim, c.answer_dim,
                                     precision, kernel),
                          kernel);
        };
        for (const Precision precision : {Precision::float32, Precision::int16, Precision::screened}) {
            const Engine heads = engine(precision);
            const HeadRounding& r = heads.rounding();
            const auto projected = run_all_ways<float>(heads, c, c.queries, Task::project);
            write(results, std::vector<std::int64_t>{projected.bad_row});
            write(results, std::vector<double>{r.centroid_norm, r.centroid_rounding, r.answer_radius, r.answer_rounding,
                                               r.query_scale, static_cast<double>(r.weight_chain), r.weight_total});
            write(results, projected.out);
            write(results, projected.account);
            check_halves(heads, c);
        }
        const Engine heads = engine(Precision::float32);
        write(results, run_all_ways<float>(heads, c, c.queries, Task::route).out);
        const auto best = run_all_ways<float>(heads, c, c.queries, Task::top_heads);
        write(results, best.out);
        write(results, best.heads);
    }
    results.close();
    std::printf("%zu cases\n", n_cases);
    return results.good() && n_cases > 0 ? 0 : 1;
}
