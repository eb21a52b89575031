#!/usr/bin/env bash
# All figures that need a GPU, in at most 13 minutes and the most important ones first:
#     benchmarks/gpu_session.sh OUT [ARGUMENTS OF wall_time.py, such as --set dataset.root=DATA]
# Each part has a time limit and writes to OUT/PART.txt as it runs. PYTHON: the interpreter.
set -u
out=$(realpath -m "${1:?usage: benchmarks/gpu_session.sh OUT [--set dataset.root=DATA ...]}")
shift
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    timeout --kill-after=15 "$limit" "$@" >"$out/$name.txt" 2>&1
    echo "$name: exit code $?, $((SECONDS - started)) of $limit s" | tee -a "$out/summary.txt"
}

lightly=(--lightly-workers "$(nproc)")
"$python" -c "import lightly" 2>/dev/null || lightly=(--no-lightly)
part tests 150 "$python" -m pytest -q -m gpu tests/trainables
part evaluation 45 "$python" benchmarks/evaluation.py --no-sklearn
part wall_time 405 "$python" benchmarks/wall_time.py --cifar10 --alone 256 "$@"
part throughput 165 "$python" benchmarks/throughput.py --backbone resnet18 --batch-size 512 "${lightly[@]}"
