"""The page of ``benchmarks/features.py``: each feature, what was measured, and the test that holds its bound."""

import os
import statistics

from unlabeled.core.environment import machine, versions

# What it is and where; by how much a number may change; the test that says so.
FEATURES = {
    "bf16": (
        "bf16 autocast: `trainer.precision=bf16-mixed`, against `32-true`",
        "loss 1 %, cosine of the gradients above 0.95",
        "tests/training/test_sixteen_bits.py::test_loss_and_gradient_in_bfloat16_are_those_in_float32_within_a_bound",
    ),
    "channels_last": (
        "channels_last in bf16: `pretraining.py`, against contiguous",
        "10⁻¹⁰ in float64",
        "tests/backbones/test_memory_format.py::test_channels_last_changes_features_and_gradients_by_roundings_alone",
    ),
    "both of these": ("both of these, against neither", "as they", ""),
    "freed memory kept": (
        "freed memory stays with the process: `allocation.py`",
        "none",
        "tests/training/test_allocation.py::test_loss_and_gradients_are_the_same_bits_wherever_memory_comes_from",
    ),
    "compile": (
        "`compile=default`: `compilation.py`",
        "10⁻³ of the largest value",
        "tests/training/test_compilation.py::test_machine_code_gives_loss_gradients_and_statistics_within_rounding",
    ),
    "gradient checkpointing": (
        "`backbone.gradient_checkpointing=true`: memory for time",
        "none",
        "tests/backbones/test_recomputation.py::"
        "test_loss_gradients_statistics_and_draws_are_bit_for_bit_those_of_kept_activations",
    ),
    "LARS": (
        "LARS by torch's foreach: `optimizers/lars.py`, against its formula as it is written",
        "none between the two",
        "tests/optimizers/test_fused.py::test_lars_on_all_weights_together_as_on_a_gpu_takes_the_steps_of_one_by_one",
    ),
    "fused AdamW": (
        "`optimizer.optimizer.fused=true` of AdamW",
        "10⁻¹⁰ in float64",
        "tests/optimizers/test_fused.py::test_fused_adamw_takes_the_steps_of_the_plain_one_within_a_few_roundings",
    ),
    "contrast in blocks": (
        "no matrix of all similarities: `contrast.py`, against cross-entropy over it; forward and backward",
        "10⁻¹³ in float64",
        "tests/objectives/parts/test_contrast.py::test_values_and_both_gradients_are_those_of_the_whole_matrix_however_it_is_cut",
    ),
    "gather": (
        "batches by `index_select`: `data/loaders.py`, against `images[rows]`",
        "none",
        "tests/data/test_module.py::test_batches_from_memory_and_from_files_are_equal",
    ),
    "imports": (
        "imports without garbage collector: `commands/importing.py`",
        "no number is computed by it",
        "tests/commands/test_start.py::test_what_is_imported_is_collected_neither_meanwhile_nor_later",
    ),
}

CITED = [
    "| views in batches: `views/`, against torchvision on PIL images | two SimCLR views of 256 × 32 px, one thread"
    " | 130.7 → 14.0 ms | 9.32 ([views_cpu.md](views_cpu.md))"
    " | 2 · 10⁻⁵ of a crop"
    " | `tests/views/kernels/test_crop.py::test_crops_at_every_border_equal_torchvision_with_antialias` |",
    "| one decoding for all processes of a machine: `data/shared_memory.py` * | CIFAR-10, 2 processes"
    " | 3.74 → 2.15 s; 304 → 156 MB | 1.74; 1.95 | none"
    " | `tests/data/test_shared_memory.py::test_three_processes_decode_once_and_have_the_images_of_one` |",
    "| | CIFAR-10, 4 processes | 7.34 → 2.24 s; 603 → 157 MB | 3.28; 3.84 | | |",
    "| no broadcast of buffers in each step of DDP: `synchronisation.py` * | MoCo v2, thin ResNet, 65,536 keys, 2 gloo"
    " processes | 96 → 68 ms | 1.41 | none"
    " | `tests/training/test_world_size.py::"
    "test_all_processes_end_with_the_same_buffers_bit_for_bit_though_none_are_broadcast` |",
]

NOTES = """
Ratio: without ÷ with, above 1 is a gain; the median of those of neighbouring timings, and their range. Times of a
network are forward and backward of SimCLR. MiB: the highest above what the process had before its first step. Network
and optimizer rows keep freed memory, and but for the rows of bf16 and channels_last networks have both.
\\* measured once by hand.

What costs time here is there for another reason: checkpointing and contrasts in blocks for memory, LARS on all weights
together for GPUs. Blocks were quicker as long as freed memory went back to the kernel (8,192 anchors: 902 → 572 ms).
`compile` is off unless it is asked for.

## Tried and taken out

Fused SGD: 0.8 to 1.6 times the speed of the plain one, worst on ResNet-18. `gradient_as_bucket_view` and `static_graph`
of DDP: nothing. All views of a teacher in one pass: 0.72 to 0.91 for ViTs. Inductor's `simdlen`, its layout
optimisation and `max-autotune`: 1.03 at most, with ranges that overlap.

## Not measured

What a GPU alone can show: CUDA graphs (`compile=reduce-overhead`), pinned copies, `views.compile`, images that stay in
the memory of the device, and LARS on all weights together there.
"""


def page(numbers: dict[str, dict[str, list[list[float]]]]) -> str:
    """Markdown. ``numbers``: "feature | setting" → unit → timings without and with it."""
    lines, last = header(), ""
    for name, found in numbers.items():
        feature, setting = name.split(" | ")
        what, tolerance, test = ("", "", "") if feature == last else FEATURES[feature]
        cells = [what, setting, "; ".join(change(unit, *both) for unit, both in found.items())]
        cells += ["; ".join(ratio(*both) for both in found.values()), tolerance, f"`{test}`" if test else ""]
        lines.append(f"| {' | '.join(cells)} |")
        last = feature
    return "\n".join([*lines, *CITED, NOTES])


def change(unit: str, without: list[float], with_it: list[float]) -> str:
    """``12.3 → 4.56 ms``; seconds from 1,000 ms on."""
    medians = [statistics.median(each) for each in (without, with_it)]
    if unit == "ms" and max(medians) >= 1000:
        unit, medians = "s", [each / 1000 for each in medians]
    return " → ".join(three_digits(each) for each in medians) + f" {unit}"


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(without: list[float], with_it: list[float]) -> str:
    each = [a / b for a, b in zip(without, with_it, strict=True)]
    spread = f" ({min(each):.2f}–{max(each):.2f})" if len(each) > 1 else ""
    return f"{statistics.median(each):.2f}{spread}"


def header() -> list[str]:
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"# What was built for speed, each with and without: {machine()['cpu']}, two cores",
        "",
        "By `taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/features.py`, medians of timings in turn.",
        f"Versions: {found}. CPUs of the machine: {os.cpu_count()}.",
        "",
        "| what, key or file | setting | without → with | ratio | numbers change by at most | test |",
        "|---|---|---:|---:|---|---|",
    ]
