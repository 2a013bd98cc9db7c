"""Run the tests of numbers as on other machines: other vector instructions, other BLAS kernels, two
threads.

Usage: python tools/test_portable.py [SETTING ...] [-- PYTEST ARGUMENTS]; `make test-portable` runs
every setting. A test that fails under one of them has a bound that is a fact of one machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SETTINGS = {
    "plain": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
}
"""Settings of each library that make this machine compute like a smaller one."""
FILES = (
    "model/test_attention_kinds model/test_export data/test_entropy engine/test_parity "
    "inference/test_beam_search model/test_family_experts model/test_family_models "
    "laws/test_commands laws/test_fit laws/test_isoflop laws/test_predict laws/test_tables "
    "engine/test_layout_parity model/test_attention model/test_gpt model/test_initialise "
    "model/test_loss model/test_parametrization model/test_parity model/test_recompute "
    "engine/test_optimizer model/test_position_kinds model/test_ring_attention "
    "launch/test_run_single"
)


def main(words: list[str]) -> int:
    names, _, rest = " ".join(words).partition("--")
    chosen = names.split() or list(SETTINGS)
    if unknown := [name for name in chosen if name not in SETTINGS]:
        print(f"no setting {unknown[0]}; there are {', '.join(SETTINGS)}")
        return 2
    codes = []
    for name in chosen:
        print(
            f"{name}: {' '.join(f'{key}={value!r}' for key, value in SETTINGS[name].items())}",
            flush=True,
        )
        files = [f"tests/{file}.py" for file in FILES.split()]
        start_s = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", *files, *rest.split()]
        codes.append(
            subprocess.run(command, env=os.environ | SETTINGS[name], check=False).returncode
        )
        print(f"{name}: exit code {codes[-1]} after {time.monotonic() - start_s:.0f} s", flush=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
