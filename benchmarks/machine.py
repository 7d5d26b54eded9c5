"""What a result depends on besides the code: versions, processor, texts, model."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jacolbert_rag
from benchmarks.model import Shape

# Flags of /proc/cpuinfo that decide how fast a matrix product is, bfloat16's first.
FEATURES = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx2", "fma")

ENCODER_MODULES = ("config.py", "datatypes.py", "encode/*.py")
INDEX_MODULES = ("config.py", "datatypes.py", "index/*.py")


def signature(
    workload: str, *, texts: dict[str, Any], model: str, threads: int, versions: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """All that the numbers of a workload depend on; without a date, so that equal runs sign alike.

    Args:
        workload: its name.
        texts: what was encoded; see `Texts.signed`.
        model: shape and seed, or the bundled model's name.
        threads: of each system.
        versions: system -> package -> version.
    """
    return {
        "workload": workload,
        "library": library(),
        "texts": texts,
        "model": model,
        "threads": threads,
        "cpu": cpu(),
        "versions": versions,
    }


def line(signed: dict[str, Any]) -> str:
    """A signature in one line, for the foot of a table."""
    texts, processor = signed["texts"], signed["cpu"]
    packages = []
    for name in (
        "torch",
        "transformers",
        "sentence-transformers",
        "pylate",
        "fast-plaid",
        "lancedb",
        "voyager",
    ):
        # Environments differ: each version that took part is named once, without its build.
        taking_part = {found[name].split("+")[0] for found in signed["versions"].values() if name in found}
        packages += [name + "/".join(sorted(taking_part))] if taking_part else []
    return "|".join(
        [
            signed["workload"],
            f"{texts['name']}:{texts['n']}@{texts['digest'][:8]}",
            signed["model"],
            " ".join([processor["model"], *processor["features"][:2]]),
            f"threads:{signed['threads']}",
            *packages,
            f"v{signed['library']['version']}@{signed['library']['digest'][:8]}",
        ]
    )


def shape_name(shape: Shape) -> str:
    """Such as "random BERT 12x768, seed 0"."""
    return f"random BERT {shape.layers}x{shape.hidden}, seed {shape.seed}"


def library(modules: Sequence[str] = ENCODER_MODULES) -> dict[str, str]:
    """Version, and a digest over these modules: a run is taken up again by the same code only."""
    digest = hashlib.sha256()
    root = Path(jacolbert_rag.__file__).parent
    for path in sorted(path for pattern in modules for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return {"version": jacolbert_rag.__version__, "digest": digest.hexdigest()[:16]}


def cpu() -> dict[str, Any]:
    """Model, cores that this process may use, and the instructions that matter here."""
    model, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for entry in info.read_text(encoding="utf-8").splitlines():
            key, _, value = entry.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {"model": model, "cores": n_cores(), "features": [name for name in FEATURES if name in flags]}


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
