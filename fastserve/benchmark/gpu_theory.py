"""What the GPU kernels can reach at most: bytes, flops and hops of each op at real shapes, and the time that an A100,
an H100 and a B200 need for them. bench/README.md shows it, and says what share of it to expect.

No kernel has run on hardware yet: this is what the first run is held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

BF16 = 2  # bytes


@dataclass(frozen=True, slots=True)
class Gpu:
    """The makers' figures for the SXM modules: dense bf16, one direction of NVLink."""

    name: str
    memory_tb_s: float
    bf16_tflop_s: float
    link_gb_s: float
    host_gb_s: float  # PCIe, one direction


GPUS = (
    Gpu("A100", 2.04, 312, 300, 32),
    Gpu("H100", 3.35, 989, 450, 64),
    Gpu("B200", 8.0, 2250, 900, 64),
)
H200 = Gpu("H200", 4.8, 989, 450, 64)  # an H100 with faster memory; the page's table leaves it out
_BY_DEVICE_NAME = {
    "NVIDIA A100-SXM4-80GB": GPUS[0],
    "NVIDIA H100 80GB HBM3": GPUS[1],
    "NVIDIA H200": H200,
    "NVIDIA B200": GPUS[2],
}
H100 = GPUS[1]
Strategy = Literal["one-shot", "two-shot", "ring"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SLOT_BYTES = 32 << 20  # two shots: parts and sums of one launch (kMatmulHalfBytes)
HOP_US = 2.0  # a store to a peer, its flag, and the peer's look at it


def gpu_named(device_name: str) -> Gpu | None:
    """By the driver's name of the module; None: no figures of that one are kept here."""
    return _BY_DEVICE_NAME.get(device_name)


@dataclass(frozen=True, slots=True)
class Work:
    """What an op must do on one rank."""

    op: str
    shape: str
    memory_bytes: float = 0
    flops: float = 0
    link_bytes: float = 0  # that leave the rank
    hops: int = 0
    host_bytes: float = 0
    overlaps: bool = False  # exchange and product at the same time

    def roof_us(self, gpu: Gpu) -> float:
        local = max(self.memory_bytes / gpu.memory_tb_s / 1e6, self.flops / gpu.bf16_tflop_s / 1e6)
        link = self.link_bytes / gpu.link_gb_s / 1e3
        exchange = self.hops * HOP_US + (max(link - local, 0) if self.overlaps else link)
        return max(local + exchange, self.host_bytes / gpu.host_gb_s / 1e3)


@dataclass(frozen=True, slots=True)
class Model:
    """Of the 8B class: Llama 3.1."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 128256


MODEL = Model()
RANKS = 8
DECODE_ROWS, PREFILL_ROWS, CONTEXT = 16, 2048, 4096


def works(ranks: int = RANKS) -> Iterator[Work]:
    """One rank of one (rows that name no ranks), or of so many."""
    for rows in (DECODE_ROWS, PREFILL_ROWS):
        yield from _row_ops(rows)
        yield from _matmuls(rows)
    yield from _attention()
    yield from _exchanges(ranks)
    yield Work(
        "sample", f"{DECODE_ROWS} rows of {MODEL.vocabulary}", 2 * 4.0 * DECODE_ROWS * MODEL.vocabulary
    )
    yield Work("swap", "64 MB to the host", host_bytes=64e6)


def _row_ops(rows: int) -> Iterator[Work]:
    d, f = MODEL.hidden, MODEL.intermediate
    kv = MODEL.kv_heads * MODEL.head_dim
    yield Work("embed", f"{rows} x {d}", BF16 * 2 * rows * d)
    yield Work("rms_norm", f"{rows} x {d}", BF16 * 2 * rows * d)
    yield Work("add_rms_norm", f"{rows} x {d}", BF16 * 4 * rows * d)
    yield Work("rotary", f"{rows} rows", BF16 * 2 * rows * (d + kv))
    yield Work("store_kv", f"{rows} rows", BF16 * 2 * rows * 2 * kv)
    yield Work("silu_mul", f"{rows} x {f}", BF16 * 3 * rows * f)
    yield Work("select_rows", f"16 of {rows}", BF16 * 2 * 16 * d)


def _matmuls(rows: int) -> Iterator[Work]:
    n, k = 2 * MODEL.intermediate, MODEL.hidden
    for weight, bytes_per_weight in (("bf16", 2.0), ("q8", 1 + 2 / 32), ("q4", 0.5 + 2 / 32)):
        moved = n * k * bytes_per_weight + BF16 * rows * (k + n)
        yield Work("matmul", f"{rows} x {n} x {k}, {weight}", moved, 2.0 * rows * n * k)


def _attention() -> Iterator[Work]:
    heads = MODEL.heads * MODEL.head_dim
    kv = 2 * MODEL.kv_heads * MODEL.head_dim * BF16  # bytes of a position
    yield Work(
        "paged_attention",
        f"decode, {DECODE_ROWS} rows, {CONTEXT} keys",
        DECODE_ROWS * CONTEXT * kv,
        4.0 * DECODE_ROWS * CONTEXT * heads,
    )
    yield Work(
        "paged_attention",
        f"prefill, {PREFILL_ROWS} rows of one sequence",
        PREFILL_ROWS * (kv + 2 * BF16 * heads),
        2.0 * PREFILL_ROWS**2 * heads,  # half of the square is masked
    )


def _exchanges(ranks: int) -> Iterator[Work]:
    strategies: tuple[tuple[int, Strategy], ...] = (DECODE_ROWS, "one-shot"), (PREFILL_ROWS, "two-shot")
    for rows, strategy in strategies:
        yield all_reduce(rows, ranks, strategy)
        yield all_reduce(rows, ranks, strategy, norms=True)
        yield matmul_all_reduce(rows, ranks, strategy)


def all_reduce(rows: int, ranks: int, strategy: Strategy, *, norms: bool = False) -> Work:
    size = BF16 * rows * MODEL.hidden
    link, hops = _exchange(size, ranks, strategy)
    if strategy == "ring":  # sums go around as well
        hops = 2 * (ranks - 1)
    shape = f"{rows} x {MODEL.hidden}, {ranks} ranks"
    if norms:
        return Work("all_reduce_add_rms_norm", shape, 4 * size, link_bytes=link, hops=hops)
    return Work("all_reduce", shape, 2 * size, link_bytes=link, hops=hops)


def matmul_all_reduce(rows: int, ranks: int, strategy: Strategy) -> Work:
    """The down projection. In two shots rows go in slices, each of which ends with its own hops."""
    product = _down_projection(rows, ranks)
    size = BF16 * rows * MODEL.hidden
    link, hops = _exchange(size, ranks, strategy)
    slices = -(-2 * size // SLOT_BYTES) if strategy == "two-shot" else 1
    return Work(
        "matmul_all_reduce",
        f"{product.shape}, {ranks} ranks",
        product.memory_bytes,
        product.flops,
        link,
        slices * hops,
        overlaps=True,
    )


def _down_projection(rows: int, ranks: int) -> Work:
    d, k = MODEL.hidden, MODEL.intermediate // ranks
    return Work("matmul", f"{rows} x {d} x {k}", BF16 * (d * k + rows * (d + k)), 2.0 * rows * d * k)


def _exchange(size: float, ranks: int, strategy: Strategy) -> tuple[float, int]:
    """Bytes that leave a rank, and hops, of a sum of `size` bytes of bf16 behind a product."""
    match strategy:
        case "one-shot":
            return (ranks - 1) * size, 1
        case "two-shot":
            return 2 * (ranks - 1) / ranks * size, 2
        case "ring":  # in fp32 from rank to rank, then the sum to all
            return 3 * (ranks - 1) / ranks * size, ranks


def table() -> list[str]:
    """Markdown: a line per op and shape."""
    lines = ["| op | shape | MB | GFLOP | link MB | " + " | ".join(f"{gpu.name}, us" for gpu in GPUS) + " |"]
    lines.append("|---" * (5 + len(GPUS)) + "|")
    for work in works():
        sizes = (work.memory_bytes / 1e6 or work.host_bytes / 1e6, work.flops / 1e9, work.link_bytes / 1e6)
        cells = [work.op, work.shape, *(f"{size:.3g}" for size in sizes)]
        cells += [f"{work.roof_us(gpu):.3g}" for gpu in GPUS]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def strategy_table(gpu: Gpu) -> list[str]:
    """Markdown: the down projection by each strategy, and as product and sum in turn; the best is bold."""
    lines = ["| rows | ranks | product, us | in turn | " + " | ".join(STRATEGIES) + " |"]
    lines.append("|---" * (4 + len(STRATEGIES)) + "|")
    for rows in (DECODE_ROWS, 64, PREFILL_ROWS, 8192):
        for ranks in (2, 4, 8):
            product = _down_projection(rows, ranks).roof_us(gpu)
            in_turn = product + min(all_reduce(rows, ranks, s).roof_us(gpu) for s in STRATEGIES)
            times = [in_turn, *(matmul_all_reduce(rows, ranks, s).roof_us(gpu) for s in STRATEGIES)]
            cells = [f"**{us:.3g}**" if us == min(times) else f"{us:.3g}" for us in times]
            lines.append("| " + " | ".join([str(rows), str(ranks), f"{product:.3g}", *cells]) + " |")
    return lines


def main() -> None:
    print("\n".join(table()))
    print()
    print("\n".join(strategy_table(H100)))


if __name__ == "__main__":
    main()
