#!/usr/bin/env bash
# Builds, tests and times all that runs on GPUs, in under 8 minutes, and writes bench/results/gpu-DEVICE.md:
#
#     bench/gpu.sh [--dry-run] [--out FOLDER] [--work FOLDER] [--seconds N] [--model NAME_OR_PATH]
#
# It takes the Python of FASTSERVE_PYTHON, or the first of python3 and python on the PATH, whose torch sees a GPU; nothing
# is installed there, but in an environment in the work folder (build/gpu) that sees its packages. That takes no network, unless a package is
# missing: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER takes it from wheels. Where no Python has such a torch, torch is fetched too.
# A step that fails or runs out of time is told by the page and by the exit status, and the next ones go on.
set -euo pipefail
cd "$(dirname "$0")/.."

REPORT_S=20 # kept back for the page
NEEDED=(cmake msgspec ninja pybind11 pytest pytest-benchmark pytest-timeout 'setuptools>=77' triton)
ENGINE_NEEDED=(jinja2 prometheus-client psutil tokenizers tqdm) # where they are missing, ops are still timed
TESTED_MODEL=smollm2-135m

dry_run=0
out=bench/results
work=build/gpu
seconds=470
model=$TESTED_MODEL
while (($#)); do
    case $1 in
    --dry-run) dry_run=1 ;;
    --out | --work | --seconds | --model)
        declare "${1#--}=${2:?$1 needs a value}"
        shift
        ;;
    *)
        echo "bench/gpu.sh: $1 is no option of mine: [--dry-run] [--out FOLDER] [--work FOLDER] [--seconds N]" \
            "[--model NAME_OR_PATH]" >&2
        exit 2
        ;;
    esac
    shift
done
work=$(realpath -m "$work")

failed=()

# step NAME SECONDS COMMAND...: runs it for at most that long, and no longer than all steps together may.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0 left
    shift 2
    if ((dry_run)); then
        printf '%s (%s s):' "$name" "$limit"
        printf ' %q' "$@"
        echo
        return
    fi
    left=$((seconds - SECONDS))
    if [[ $name != report ]]; then left=$((left - REPORT_S)); fi
    if ((left < limit)); then limit=$left; fi
    echo "+ $name, at most $limit s"
    if ((limit > 0)); then
        # SIGINT: pytest still writes what it has found. No pipe: a process that outlives its step would hold it open.
        timeout --signal=INT --kill-after=15 "$limit" "$@" > >(tee "$work/$name.log") 2>&1 || status=$?
    else
        status=124
        echo "no time was left" >"$work/$name.log"
    fi
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - begin))" >>"$work/steps.tsv"
    if ((status)); then failed+=("$name"); fi
}

sees_gpu() {
    ((dry_run)) || "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

# The Python whose torch sees a GPU; nothing where there is none.
find_python() {
    local candidate
    if [[ -n ${FASTSERVE_PYTHON:-} ]]; then
        if ! sees_gpu "$FASTSERVE_PYTHON"; then
            echo "bench/gpu.sh: the torch of FASTSERVE_PYTHON=$FASTSERVE_PYTHON sees no GPU, or is not there" >&2
            exit 2
        fi
        echo "$FASTSERVE_PYTHON"
        return
    fi
    for candidate in python3 python; do
        if command -v "$candidate" >/dev/null && sees_gpu "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

# What the environment lacks of these.
missing_packages() {
    "$python" - "$@" <<'PYTHON'
import sys
from importlib import metadata

for needed in sys.argv[1:]:
    name, _, least = needed.partition(">=")
    try:
        lacks = int(metadata.version(name).split(".")[0]) < int(least or 0)
    except metadata.PackageNotFoundError:
        lacks = True
    if lacks:
        print(needed)
PYTHON
}

# Whether the file of the tests' model is here: nothing is downloaded.
has_tested_model() {
    "$python" -c 'import sys; from fastserve.weights.store import resolve_model; resolve_model(sys.argv[1], offline=True)' \
        "$TESTED_MODEL" 2>/dev/null
}

base=$(find_python)
if ((!dry_run)); then
    rm -rf "$work/venv"
    mkdir -p "$work"
    rm -f "$work"/*.log "$work"/*.tsv "$work"/*.jsonl "$work"/*.xml
fi
python=$work/venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES=${PIP_RETRIES:-1} PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-10}
export NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS:-} --threads 3" # the three kinds of GPU at once

if [[ -n $base ]]; then
    step environment 30 "$base" -m venv --without-pip "$work/venv"
    missing=()
    engine_missing=()
    if ((!dry_run)); then
        # Its packages, its tools (cmake, ninja) among them; what is installed here comes before them.
        "$base" -c 'import sys; print("\n".join(path for path in sys.path if path.endswith("-packages")))' \
            >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
        tools=$("$base" -c 'import os, sys; print(os.path.dirname(sys.executable))')
        PATH=$work/venv/bin:$tools:$PATH
        mapfile -t missing < <(missing_packages "${NEEDED[@]}")
        mapfile -t engine_missing < <(missing_packages "${ENGINE_NEEDED[@]}")
    fi
    if ((${#missing[@]})); then step packages 60 "$python" -m pip install "${missing[@]}"; fi
    if ((${#engine_missing[@]})); then step engine_packages 30 "$python" -m pip install "${engine_missing[@]}"; fi
    step build 220 "$python" -m pip install --no-deps --no-build-isolation --editable .
else
    step environment 30 python3 -m venv "$work/venv"
    step build 300 "$python" -m pip install --editable '.[gpu]' pytest pytest-benchmark pytest-timeout
fi

num_gpus=8
if ((!dry_run)); then num_gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' || echo 0); fi
workers=()
if ((!dry_run)) && "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 4); fi # compiling takes most of the time

engine_tests=(tests/gpu/test_engine.py)
if ((!dry_run)) && ! has_tested_model; then
    echo "+ the engine is not tested: $TESTED_MODEL is not at hand (fastserve pull $TESTED_MODEL)"
    engine_tests=()
fi

# Ranks that hang would leave no time for the ops, which come first.
step tests 200 env FASTSERVE_REQUIRE_CUDA=1 "$python" -m pytest -m cuda "${workers[@]}" --junitxml "$work/tests.xml" \
    tests/gpu/test_ops.py tests/gpu/test_collectives.py "${engine_tests[@]}"
step ops 150 "$python" bench/gpu.py ops --lines "$work/ops.jsonl" --budget-s 120
if ((num_gpus > 1)); then
    ranks=$((num_gpus < 8 ? num_gpus : 8))
    step collectives 70 "$python" -m torch.distributed.run --standalone --nproc-per-node "$ranks" \
        bench/gpu.py collectives --lines "$work/collectives.jsonl" --budget-s 45
fi
step model 60 "$python" bench/gpu.py model --lines "$work/model.jsonl" --budget-s 45 --model "$model"
step report "$REPORT_S" "$python" -m fastserve.benchmark.gpu_report --work "$work" --out "$out"

if ((${#failed[@]})); then
    echo "bench/gpu.sh: these steps failed: ${failed[*]}" >&2
    exit 1
fi
