"""The projection as users of other libraries write it, each at its best.

Every builder takes a `Problem` and the rows of a block, and returns a function without arguments
that projects all queries and returns (N, e). Prepared once, outside the timed call: ĉᵀ/τ (unit
centroids with the scale folded in, contiguous in the faster direction), buffers for logits and
result, sessions, compiled graphs. Left to the call: everything that depends on the queries, their
norms included. All threads, no gradients. None subtracts the row maximum where it has the choice:
cosines are bounded, so the exponent is at most 1/τ; only below τ = 1/80 could it overflow.

`rows` = N is one call on everything. Fewer rows, fed by a loop in Python, keep the logits in cache
and reuse the allocator's memory; no library does that on its own, but a careful user can.

What was tried and measured slower is said at the peer.
"""

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
from problem import Float32, Problem, Runner

from headroute import Router, aligned_empty, get_num_threads

Build = Callable[[Problem, int], Runner]


def missing(packages: tuple[str, ...]) -> list[str]:
    """Those of `packages` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def block_rows(n_heads: int) -> int:
    """Rows whose logits fill 8 MiB, at most 2,048.

    Measured at 256 to 4,096 rows: every peer is within 5 % of its best there.
    """
    return int(np.clip((8 << 20) // (4 * n_heads), 256, 2048))


def _blocks(n_queries: int, rows: int) -> Iterator[slice]:
    """Equal blocks of at most about `rows` rows: a last short one would be a shape of its own."""
    count = -(-n_queries // rows)
    edges = [n_queries * i // count for i in range(count + 1)]
    return (slice(*edges[i : i + 2]) for i in range(count))


def numpy_peer(problem: Problem, rows: int) -> Runner:
    """NumPy with its BLAS. Summing by a product with ones beats `sum(axis=1)`."""
    keys, answers, queries = problem.keys(), problem.answers, problem.queries
    n_heads, width = answers.shape
    out = aligned_empty((len(queries), width))
    buffer = aligned_empty((min(rows, len(queries)), n_heads))
    ones = np.ones(n_heads, np.float32)
    overflows = problem.temperature < 1 / 80  # exp(1/τ), times K

    def project(queries: Float32, logits: Float32, out: Float32) -> None:
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries))
        np.matmul(queries, keys, out=logits)
        logits /= norms[:, np.newaxis]
        if overflows:
            logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        sums = logits @ ones
        if n_heads < width:  # divide on the narrower side
            logits /= sums[:, np.newaxis]
            np.matmul(logits, answers, out=out)
        else:
            np.matmul(logits, answers, out=out)
            out /= sums[:, np.newaxis]

    def run() -> Float32:
        for block in _blocks(len(queries), rows):
            part = queries[block]
            project(part, buffer[: len(part)], out[block])
        return out

    return run


def torch_eager(problem: Problem, rows: int) -> Runner:
    """PyTorch, operation by operation, in place and with `out=`.

    `torch.softmax(out=)` is one pass and beats exp_, sum and div_.
    """
    import torch

    torch.set_num_threads(get_num_threads())
    keys, answers, queries = map(
        torch.from_numpy, (problem.keys(), problem.answers, problem.queries)
    )
    out = torch.empty(len(queries), answers.shape[1])
    buffer = torch.empty(min(rows, len(queries)), len(answers))

    @torch.inference_mode()
    def run() -> Float32:
        for block in _blocks(len(queries), rows):
            part = queries[block]
            logits = buffer[: len(part)]
            norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
            torch.mm(part, keys, out=logits)
            logits.div_(norms)
            torch.softmax(logits, -1, out=logits)
            torch.mm(logits, answers, out=out[block])
        return out.numpy()

    return run


def torch_sdpa(problem: Problem, rows: int) -> Runner:
    """PyTorch's fused attention: one head, heads as keys. It has no `out=`."""
    import torch

    torch.set_num_threads(get_num_threads())
    keys = torch.from_numpy(np.ascontiguousarray(problem.keys().T))[None, None]
    answers = torch.from_numpy(problem.answers)[None, None]
    queries = torch.from_numpy(problem.queries)
    whole = rows >= len(queries)
    out = torch.empty(len(queries), answers.shape[-1])
    buffer = torch.empty(min(rows, len(queries)), queries.shape[1])

    def attend(part: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        unit = torch.div(part, norms, out=buffer[: len(part)])[None, None]
        return torch.nn.functional.scaled_dot_product_attention(unit, keys, answers, scale=1.0)[
            0, 0
        ]

    @torch.inference_mode()
    def run() -> Float32:
        if whole:
            return attend(queries).numpy()
        for block in _blocks(len(queries), rows):
            out[block] = attend(queries[block])
        return out.numpy()

    return run


def torch_compile(problem: Problem, rows: int) -> Runner:
    """The eager formula through torch.compile.

    Freezing the heads, mode "max-autotune" and both together are within 2 % of the default.
    """
    import torch

    torch.set_num_threads(get_num_threads())
    torch._dynamo.reset()  # else the shapes of earlier K count as recompilations of this one
    keys, answers, queries = map(
        torch.from_numpy, (problem.keys(), problem.answers, problem.queries)
    )
    whole = rows >= len(queries)
    out = torch.empty(len(queries), answers.shape[1])

    def project(part: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        return torch.mm(torch.softmax(torch.mm(part, keys) / norms, -1), answers)

    def fill(part: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(project(part))

    compiled = torch.compile(project if whole else fill, dynamic=False, fullgraph=True)

    @torch.inference_mode()
    def run() -> Float32:
        if whole:
            return compiled(queries).numpy()
        for block in _blocks(len(queries), rows):
            compiled(queries[block], out[block])
        return out.numpy()

    return run


def torch_eager_bf16(problem: Problem, rows: int) -> Runner:
    """The eager formula with heads, unit queries and logits in bfloat16.

    Norms are taken in float32; the result is made float32 again, as every contender's is.
    """
    import torch

    torch.set_num_threads(get_num_threads())
    keys, answers = (
        torch.from_numpy(array).bfloat16() for array in (problem.keys(), problem.answers)
    )
    queries = torch.from_numpy(problem.queries)
    n, width = min(rows, len(queries)), answers.shape[1]
    out = torch.empty(len(queries), width)
    units = torch.empty(n, queries.shape[1], dtype=torch.bfloat16)
    buffer = torch.empty(n, len(answers), dtype=torch.bfloat16)
    projected = torch.empty(n, width, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run() -> Float32:
        for block in _blocks(len(queries), rows):
            part = queries[block]
            unit, logits, result = (memory[: len(part)] for memory in (units, buffer, projected))
            torch.div(part, torch.linalg.vector_norm(part, dim=1, keepdim=True), out=unit)
            torch.mm(unit, keys, out=logits)
            torch.softmax(logits, -1, out=logits)
            torch.mm(logits, answers, out=result)
            out[block].copy_(result)
        return out.numpy()

    return run


def torch_sdpa_bf16(problem: Problem, rows: int) -> Runner:
    """PyTorch's fused attention with everything but the norms in bfloat16."""
    import torch

    torch.set_num_threads(get_num_threads())
    keys = torch.from_numpy(np.ascontiguousarray(problem.keys().T)).bfloat16()[None, None]
    answers = torch.from_numpy(problem.answers).bfloat16()[None, None]
    queries = torch.from_numpy(problem.queries)
    out = torch.empty(len(queries), answers.shape[-1])
    units = torch.empty(min(rows, len(queries)), queries.shape[1], dtype=torch.bfloat16)

    @torch.inference_mode()
    def run() -> Float32:
        for block in _blocks(len(queries), rows):
            part = queries[block]
            unit = units[: len(part)]
            torch.div(part, torch.linalg.vector_norm(part, dim=1, keepdim=True), out=unit)
            attended = torch.nn.functional.scaled_dot_product_attention(
                unit[None, None], keys, answers, scale=1.0
            )
            out[block].copy_(attended[0, 0])
        return out.numpy()

    return run


def onnxruntime_peer(problem: Problem, rows: int) -> Runner:
    """onnxruntime: Normalise-MatMul-Softmax-MatMul, input and output bound to our arrays.

    Both matrices are initialisers, so the session packs them once. Of the ways to normalise
    (ReduceL2 and Div on the logits or on the queries, LpNormalization), the fused root-mean-square
    norm is the fastest: x/√(mean x²) is x̂·√d, and √d goes into the keys.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    dim, width = problem.queries.shape[1], problem.answers.shape[1]
    constants = {
        "ones": np.ones(dim, np.float32),
        "keys": problem.keys() / np.float32(dim**0.5),
        "answers": problem.answers,
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "SimplifiedLayerNormalization", ["queries", "ones"], ["unit"], epsilon=1e-30
            ),
            helper.make_node("MatMul", ["unit", "keys"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "answers"], ["projected"]),
        ],
        "projection",
        [helper.make_tensor_value_info("queries", TensorProto.FLOAT, ["n", dim])],
        [helper.make_tensor_value_info("projected", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    out = aligned_empty((problem.n_queries, width))
    bindings = []
    for block in _blocks(problem.n_queries, rows):
        binding = session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy  # shares the array's memory on the CPU
        binding.bind_ortvalue_input("queries", value(problem.queries[block]))
        binding.bind_ortvalue_output("projected", value(out[block]))
        bindings.append(binding)

    def run() -> Float32:
        for binding in bindings:
            session.run_with_iobinding(binding)
        return out

    return run


PEERS: dict[str, tuple[Build, tuple[str, ...]]] = {  # builder, packages that it needs
    "numpy": (numpy_peer, ()),
    "torch-eager": (torch_eager, ("torch",)),
    "torch-sdpa": (torch_sdpa, ("torch",)),
    "torch-compile": (torch_compile, ("torch",)),
    "onnxruntime": (onnxruntime_peer, ("onnx", "onnxruntime")),
}


# Rows that are off by a thousandth of the largest answer: Problem.bf16_tolerance.
BF16_PEERS: dict[str, tuple[Build, tuple[str, ...]]] = {
    "torch-eager-bf16": (torch_eager_bf16, ("torch",)),
    "torch-sdpa-bf16": (torch_sdpa_bf16, ("torch",)),
}


def router_runner(
    problem: Problem,
    backend: str = "auto",
    num_threads: int | None = None,
    precision: str | None = None,
) -> Runner:
    """headroute itself, called as its users call it: one call on everything, `out=` reused.

    Its memory begins at a cache line, as every contender's does here and PyTorch's always.
    """
    router = Router(
        problem.centroids,
        problem.answers,
        temperature=problem.temperature,
        backend=backend,
        precision=precision,
    )
    out = aligned_empty((problem.n_queries, router.answer_dim))
    return lambda: router.project(problem.queries, out=out, num_threads=num_threads)


def sgemm_runner(size: int) -> Runner:
    """NumPy's own product of two square float32 matrices: what its BLAS reaches on this machine.

    Asserts the first row to 6√size·2⁻²⁴·Σ|terms|, as problem.py derives.
    """
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, size, size), np.float32)
    out = np.matmul(left, right)
    first, columns = left[0].astype(np.float64), right.astype(np.float64)
    error = np.abs(out[0] - first @ columns)
    assert (error <= 6 * size**0.5 * 2.0**-24 * (np.abs(first) @ np.abs(columns))).all()
    return lambda: np.matmul(left, right, out=out)
