// The only file that knows Python: converts, checks, releases the GIL, calls. Shapes, dtypes and values have been
// checked in Python already, with messages for people; the checks here keep the extension safe on its own.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "engine.h"

namespace py = pybind11;
using headroute::Batch;
using headroute::Engine;
using headroute::Outcome;
using headroute::Precision;
using headroute::Task;

namespace {

// A float32 array, or a float16 one where that is allowed; never converted and never copied, anything else is a
// TypeError. py::array_t<float> would do the same, and take 0.2 µs of a single query's 2 µs to do it.
enum class Halves { refused, allowed };

class FloatArray {
   public:
    explicit FloatArray(const py::array& array, Halves halves = Halves::refused) : array_(array) {
        constexpr int kHalf = 23;  // NPY_HALF
        const py::dtype dtype = array.dtype();
        half_ = dtype.num() == kHalf;
        if ((dtype.num() != py::dtype::num_of<float>() && !(half_ && halves == Halves::allowed)) ||
            dtype.byteorder() != '=')
            throw py::type_error("arrays must be float32 in native byte order");
        if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0)
            throw std::invalid_argument("arrays must be aligned");
    }
    py::ssize_t ndim() const { return array_.ndim(); }
    py::ssize_t shape(int axis) const { return array_.shape(axis); }
    py::ssize_t stride(int axis) const { return array_.strides(axis); }  // bytes
    bool c_contiguous() const { return (array_.flags() & py::array::c_style) != 0; }
    bool writeable() const { return array_.writeable(); }
    bool half() const { return half_; }
    const float* data() const { return static_cast<const float*>(array_.data()); }
    float* mutable_data() const { return static_cast<float*>(const_cast<void*>(array_.data())); }
    headroute::Matrix<const char> matrix() const { return {static_cast<const char*>(array_.data()), half_}; }
    headroute::Matrix<char> mutable_matrix() const {
        return {static_cast<char*>(const_cast<void*>(array_.data())), half_};
    }

   private:
    const py::array& array_;
    bool half_;
};

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

const headroute::Kernel& kernel_or_best(const std::string& isa) {
    return isa.empty() ? *headroute::available_kernels().front() : headroute::kernel_by_name(isa);
}

std::unique_ptr<Engine> make_engine(const py::array& centroid_array, const py::array& answer_array,
                                    const std::string& isa, const std::string& precision) {
    const FloatArray centroids(centroid_array), answers(answer_array);
    require(centroids.ndim() == 2 && answers.ndim() == 2, "centroids and answers must be 2-dimensional");
    require(centroids.c_contiguous() && answers.c_contiguous(), "centroids and answers must be C-contiguous");
    require(centroids.shape(0) == answers.shape(0), "centroids and answers must have the same number of rows");
    require(centroids.shape(0) > 0 && centroids.shape(1) > 0 && answers.shape(1) > 0,
            "centroids and answers must not be empty");
    const headroute::Kernel& kernel = kernel_or_best(isa);
    require(precision == "float32" || precision == "int16" || precision == "screened",
            "precision must be float32, int16 or screened");
    const Precision chosen = precision == "int16"      ? Precision::int16
                             : precision == "screened" ? Precision::screened
                                                       : Precision::float32;
    const auto n_heads = static_cast<std::size_t>(centroids.shape(0));
    const auto d = static_cast<std::size_t>(centroids.shape(1)), e = static_cast<std::size_t>(answers.shape(1));
    const float* from_centroids = centroids.data();
    const float* from_answers = answers.data();
    const py::gil_scoped_release release;  // the caller holds both arrays
    return std::make_unique<Engine>(headroute::pack_heads(from_centroids, from_answers, n_heads, d, e, chosen, kernel),
                                    kernel);
}

// An engine over what `packed` of another engine was, in any read-only buffer: a mapped file.
py::object engine_from_packed(const py::buffer& buffer, std::size_t n_heads, std::size_t query_dim,
                              std::size_t answer_dim, double answer_scale, const std::string& isa) {
    // A view of our own: as long as it lives, a mapping cannot be closed.
    const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(buffer.ptr()));
    if (!view) throw py::error_already_set();
    const Py_buffer& memory = *PyMemoryView_GET_BUFFER(view.ptr());
    require(PyBuffer_IsContiguous(&memory, 'C') != 0, "packed heads must be contiguous");
    require(memory.readonly != 0, "packed heads must be read-only");
    const headroute::Kernel& kernel = kernel_or_best(isa);
    auto heads = headroute::borrow_heads(memory.buf, static_cast<std::size_t>(memory.len), n_heads, query_dim,
                                         answer_dim, static_cast<float>(answer_scale), kernel);
    py::object engine = py::cast(std::make_unique<Engine>(std::move(heads), kernel));
    py::detail::keep_alive_impl(engine, view);
    return engine;
}

// The bytes that `engine_from_packed` takes, read-only and without a copy; the array keeps its engine.
py::object packed_of(const py::object& engine) {
    const auto& self = engine.cast<const Engine&>();
    require(self.heads().precision == Precision::float32, "only float32 heads are whole in one piece of memory");
    const py::array_t<std::uint8_t> bytes(
        static_cast<py::ssize_t>(headroute::packed_bytes(self.heads(), self.kernel())),
        static_cast<const std::uint8_t*>(self.heads().data), engine);
    bytes.attr("setflags")(py::arg("write") = false);
    return bytes;
}

// What must be the same, with K, d and e, for packed bytes to be those of this build and kernel.
py::dict packed_layout(py::ssize_t n_heads, py::ssize_t query_dim, py::ssize_t answer_dim, const std::string& isa) {
    require(n_heads > 0 && query_dim > 0 && answer_dim > 0, "there must be heads, with columns");
    const headroute::Kernel& kernel = kernel_or_best(isa);
    const headroute::PackedHeads layout =
        headroute::float32_layout(static_cast<std::size_t>(n_heads), static_cast<std::size_t>(query_dim),
                                  static_cast<std::size_t>(answer_dim), kernel);
    py::dict facts;
    facts["version"] = headroute::kPackedVersion;
    facts["isa"] = kernel.name;
    facts["lanes"] = kernel.lanes;
    facts["block_heads"] = layout.block_heads;
    facts["packed_bytes"] = headroute::packed_bytes(layout, kernel);
    return facts;
}

// The thread that Python runs signal handlers on, noted at import.
unsigned long main_thread;

bool signal_raised() {
    const py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;  // the exception stays set until run() throws it
}

// Other threads have no signals to look for, and must not ask for the GIL from inside a kernel: at the end of the
// interpreter Python ends a daemon thread that asks, and nothing may unwind through a noexcept function.
bool never() { return false; }

// What a call is to do beside its task; null arrays are not wanted.
struct Extras {
    py::object account = py::none();  // float32 (n, 2)
    double may_drop = 0.0;
    py::object stats = py::none();      // float32 (n, 3)
    py::object top_heads = py::none();  // int64 (n, k)
};

// The data of an (n, columns) float32 array to write to; null for None.
float* table(const py::object& object, py::ssize_t n, py::ssize_t columns) {
    if (object.is_none()) return nullptr;
    const auto array = py::cast<py::array>(object);
    const FloatArray checked(array);
    require(checked.ndim() == 2 && checked.shape(0) == n && checked.shape(1) == columns && checked.c_contiguous() &&
                checked.writeable(),
            "account must be a writable C-contiguous (n, 2) array, and stats (n, 3)");
    return checked.mutable_data();
}

// queries (n, d), or one query (d,); out (n, columns) or (columns,). Returns the first row with a NaN or infinity, or
// -1.
std::ptrdiff_t run(const Engine& engine, Task task, std::size_t columns, const py::array& query_array,
                   double temperature, const py::array& out_array, std::size_t num_threads, const Extras& extras = {}) {
    const FloatArray queries(query_array, Halves::allowed);
    const FloatArray out(out_array, task == Task::project ? Halves::allowed : Halves::refused);
    const Precision precision = engine.heads().precision;
    require(task == Task::project || precision == Precision::float32, "weights come from float32 heads");
    const auto d = static_cast<py::ssize_t>(engine.heads().query_dim);
    const auto item = static_cast<py::ssize_t>(queries.half() ? 2 : 4);
    const int axis = static_cast<int>(queries.ndim()) - 1;  // of the columns
    require((axis == 0 || axis == 1) && queries.shape(axis) == d, "queries must be (n, query_dim) or (query_dim,)");
    const py::ssize_t n = axis == 1 ? queries.shape(0) : 1;
    const py::ssize_t row_bytes = n > 1 ? queries.stride(0) : 0;  // NumPy leaves a single row's stride undefined
    require((d == 1 || queries.stride(axis) == item) && row_bytes % item == 0, "queries must have unit column stride");
    require(out.ndim() == queries.ndim() && out.shape(axis) == static_cast<py::ssize_t>(columns) &&
                (axis == 0 || out.shape(0) == n) && out.c_contiguous() && out.writeable(),
            "out must be a writable C-contiguous (n, columns) or (columns,) array");
    require(temperature > 0, "temperature must be positive");
    Batch batch{queries.matrix(),     row_bytes / item, static_cast<std::size_t>(n),
                out.mutable_matrix(), temperature,      num_threads};
    batch.account = table(extras.account, n, 2);
    batch.stats = table(extras.stats, n, 3);
    batch.may_drop = extras.may_drop;
    require(batch.account == nullptr || precision != Precision::float32, "float32 heads have no account");
    require(batch.stats == nullptr || precision == Precision::float32, "stats come from float32 heads");
    require(precision != Precision::screened || (batch.account != nullptr && batch.may_drop > 0),
            "screened heads need an account, and may_drop above 0");
    if (task == Task::top_heads) {
        require(py::isinstance<py::array_t<std::int64_t>>(extras.top_heads), "heads must be int64");
        const auto heads = py::reinterpret_borrow<py::array>(extras.top_heads);
        constexpr int kWanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        require((heads.flags() & kWanted) == kWanted && heads.writeable() && heads.ndim() == queries.ndim() &&
                    heads.shape(axis) == out.shape(axis) && (axis == 0 || heads.shape(0) == n),
                "heads must be a writable C-contiguous, aligned array of the shape of weights");
        require(columns > 0 && columns <= engine.heads().n_heads, "k must be between 1 and K");
        batch.top = {static_cast<std::int64_t*>(const_cast<void*>(heads.data())), columns};
    }
    const bool on_main_thread = PyThread_get_thread_ident() == main_thread;
    Outcome outcome;
    // Not gil_scoped_release: its destructor is noexcept, and taking the GIL back may end a daemon thread (see
    // never()).
    PyThreadState* const state = PyEval_SaveThread();  // the caller holds both arrays
    try {
        outcome = engine.run(task, batch, on_main_thread ? signal_raised : never);
    } catch (const std::exception&) {
        PyEval_RestoreThread(state);
        throw;
    }
    PyEval_RestoreThread(state);
    if (outcome.interrupted) throw py::error_already_set();
    return outcome.bad_row == headroute::kNoBadRow ? -1 : static_cast<std::ptrdiff_t>(outcome.bad_row);
}

// The short way for one query (d,) that needs nothing done to it: float32, contiguous, finite, few enough heads for one
// thread, `out` None or fit to be written. Returns the result (columns,), or None when anything is out of the ordinary:
// the caller then goes the long way, which says what. A single query is a few hundred nanoseconds of arithmetic, and
// the checks in Python take 1.5 µs.
py::object run_one(const Engine& engine, Task task, std::size_t columns, py::handle query, double temperature,
                   py::handle out) {
    const auto plain = [](py::handle object, std::size_t length) {
        // No subclass: what a mask hides must not count.
        const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
        if (type != reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_)) return false;
        const auto array = py::reinterpret_borrow<py::array>(object);
        const int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        return array.ndim() == 1 && array.shape(0) == static_cast<py::ssize_t>(length) &&
               (array.flags() & wanted) == wanted && array.dtype().num() == py::dtype::num_of<float>() &&
               array.dtype().byteorder() == '=';
    };
    if (!engine.one_thread(task, 1) || !plain(query, engine.heads().query_dim)) return py::none();
    const auto from = py::reinterpret_borrow<py::array>(query);
    py::array to;
    if (out.is_none()) {
        to = py::array_t<float>(static_cast<py::ssize_t>(columns));
    } else {
        if (!plain(out, columns)) return py::none();
        to = py::reinterpret_borrow<py::array>(out);
        const auto* begin = static_cast<const char*>(to.data());
        const auto* query_begin = static_cast<const char*>(from.data());
        if (!to.writeable() || (begin < query_begin + from.nbytes() && query_begin < begin + to.nbytes()))
            return py::none();
    }
    return run(engine, task, columns, from, temperature, to, 1) < 0 ? py::object(to) : py::none();
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
    m.doc() = "The compiled kernels of headroute; use headroute.Router.";

    py::class_<Engine>(m, "Engine",
                       "Heads packed for one instruction set: centroids (K, d) of unit norm, answers (K, e).")
        .def(py::init(&make_engine), py::arg("centroids"), py::arg("answers"), py::arg("isa") = "",
             py::arg("precision") = "float32", py::keep_alive<1, 3>())  // screened heads read the answers in place
        .def(
            "project",
            [](const Engine& self, const py::array& queries, double temperature, const py::array& out,
               std::size_t threads, const py::object& account, double may_drop, const py::object& stats) {
                return run(self, Task::project, self.heads().answer_dim, queries, temperature, out, threads,
                           Extras{account, may_drop, stats});
            },
            py::arg("queries"), py::arg("temperature"), py::arg("out"), py::arg("num_threads"),
            py::arg("account") = py::none(), py::arg("may_drop") = 0.0, py::arg("stats") = py::none())
        .def(
            "route",
            [](const Engine& self, const py::array& queries, double temperature, const py::array& out,
               std::size_t threads) {
                return run(self, Task::route, self.heads().n_heads, queries, temperature, out, threads);
            },
            py::arg("queries"), py::arg("temperature"), py::arg("out"), py::arg("num_threads"))
        .def(
            "top_heads",
            [](const Engine& self, const py::array& queries, double temperature, const py::object& heads,
               const py::array& weights, std::size_t threads) {
                require(weights.ndim() > 0, "weights must be (n, k) or (k,)");
                const auto k = static_cast<std::size_t>(weights.shape(weights.ndim() - 1));
                Extras extras;
                extras.top_heads = heads;
                return run(self, Task::top_heads, k, queries, temperature, weights, threads, extras);
            },
            py::arg("queries"), py::arg("temperature"), py::arg("heads"), py::arg("weights"), py::arg("num_threads"))
        .def(
            "project_one",
            [](const Engine& self, py::handle query, double temperature, py::handle out) {
                return run_one(self, Task::project, self.heads().answer_dim, query, temperature, out);
            },
            py::arg("query"), py::arg("temperature"), py::arg("out"))
        .def(
            "route_one",
            [](const Engine& self, py::handle query, double temperature, py::handle out) {
                return run_one(self, Task::route, self.heads().n_heads, query, temperature, out);
            },
            py::arg("query"), py::arg("temperature"), py::arg("out"))
        .def_static("from_packed", &engine_from_packed, py::arg("packed"), py::arg("n_heads"), py::arg("query_dim"),
                    py::arg("answer_dim"), py::arg("answer_scale"), py::arg("isa") = "")
        .def_property_readonly("packed", &packed_of)
        .def_property_readonly("answer_scale", [](const Engine& self) { return self.heads().answer_scale; })
        .def_property_readonly("isa", [](const Engine& self) { return self.kernel().name; })
        .def_property_readonly("packed_bytes", &Engine::packed_bytes)
        .def_property_readonly("search_cost", [](const Engine& self) { return self.kernel().screened.cost; })
        .def_property_readonly("int16_cost",
                               [](const Engine& self) { return self.kernel().int16(self.heads().n_heads).cost; })
        .def_property_readonly("rounding", [](const Engine& self) {
            const headroute::HeadRounding& r = self.rounding();
            py::dict facts;
            facts["centroid_norm"] = r.centroid_norm;
            facts["centroid_rounding"] = r.centroid_rounding;
            facts["answer_radius"] = r.answer_radius;
            facts["answer_rounding"] = r.answer_rounding;
            facts["query_scale"] = r.query_scale;
            facts["weight_chain"] = r.weight_chain;
            facts["weight_total"] = r.weight_total;
            return facts;
        });

    m.def("packed_layout", &packed_layout, py::arg("n_heads"), py::arg("query_dim"), py::arg("answer_dim"),
          py::arg("isa") = "");
    m.def("build_info", [] {
        py::dict info;
        info["compiler"] = HEADROUTE_COMPILER;
        info["flags"] = HEADROUTE_FLAGS;
        info["isas_built"] = headroute::built_isas();
        std::vector<std::string> available;
        for (const headroute::Kernel* kernel : headroute::available_kernels()) available.emplace_back(kernel->name);
        info["isas_available"] = available;
        return info;
    });
}
