#!/usr/bin/env bash
# All that a machine with one GPU and no network is asked for, in under eight minutes: tests, benchmark, one training.
#
#   DEVICE   cuda, or cpu: the same steps in tiny sizes, to rehearse them where there is no GPU
#   OUT      the folder of results, at most eight small files; PYTHON: the interpreter that has torch
#   LIMIT_tests, LIMIT_bench, LIMIT_single, LIMIT_training   seconds that a step may take
#
# What the interpreter lacks is installed from wheels/ (`make gpu-wheels`, where there is a network), beside it and for
# this run alone. A step that fails or runs out of time is told in steps.md; those after it run. The exit code is 1 then.
set -uo pipefail
DEVICE=${DEVICE:-cuda} OUT=${OUT:-runs/gpu} PYTHON=${PYTHON:-python3}
# Steps are ended by SIGINT. Where this was started in the background it is ignored, which no shell can take back.
if [ -z "${TAKES_SIGINT:-}" ]; then
    export TAKES_SIGINT=1
    exec "$PYTHON" -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp("bash", ["bash", *sys.argv[1:]])' "$0" "$@"
fi
cd "$(dirname "$0")/.."

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
LOG=$OUT/log.txt
rm -f "$OUT"/{steps.md,log.txt,bench.jsonl,bench.md,speed.png,training.md,training.csv,pareto.png}
trap 'exit 130' INT TERM
export DEVICE PYTHONPATH="$PWD/src:$WORK/site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=0

main() {
    begin
    install || { say "the package cannot run here: see above"; exit 2; }
    step tests 90 tests
    step bench 150 bench "$WORK/bench" "$MANY" bench.compile=true
    step single 80 bench "$WORK/single" 1 bench.train=false
    step training 160 training
    collect
    say "results are in $OUT"
    exit $failed
}

begin() {
    if [ "$DEVICE" = cuda ]; then
        MANY=128 WORKERS=8 CHOSEN=""
        BENCH=(model=deit_small hardware=gpu "bench.keeps=[0.41]" "bench.factors=[4,8]" "bench.merged=[8,13,16]"
            bench.rounds=20 bench.train_batch=128)
        TRAINING=()
        "$PYTHON" -c "import torch; assert torch.cuda.is_available()" ||
            { say "there is no CUDA device: DEVICE=cpu rehearses without one"; exit 2; }
        nvidia-smi 2>&1 | tee -a "$LOG"
    else
        MANY=2 WORKERS=0
        CHOSEN="contract and random-digits or official or of_a_step and base or half and random-digits"
        BENCH=(model=test_vit hardware=cpu hardware.precision=bf16-mixed "bench.image_sizes=[28]" "bench.keeps=[0.4]"
            "bench.factors=[4]" "bench.merged=[8]" bench.rounds=1 bench.train_batch=2)
        TRAINING=(hardware=cpu hardware.batch_size=8 fast_dev_run=2 sparsity.p_logit=0 evaluation.batch_size=8
            evaluation.timing_batch=2 evaluation.timing_rounds=1)
    fi
    printf '| step | seconds | limit | result |\n| --- | ---: | ---: | --- |\n' > "$OUT/steps.md"
}

say() { echo "gpu: $*" | tee -a "$LOG"; }

step() {  # NAME SECONDS FUNCTION ARGUMENT...: within the time limit, its output in the log
    local name=$1 limit_of=LIMIT_$1 limit begun=$SECONDS code result=ok
    limit=${!limit_of:-$2}
    say "$name, at most $limit s"
    ( set -m; "${@:3}" & running=$!
      trap 'kill -TERM -$running' INT TERM
      # By Ctrl-C, upon which pytest says what failed so far.
      ( sleep "$limit"; touch "$WORK/$name.late"; kill -INT -$running; sleep 15; kill -KILL -$running ) 2> /dev/null &
      watching=$!
      wait $running; code=$?
      kill -KILL -$watching 2> /dev/null
      exit $code ) 2>&1 | tee -a "$LOG"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || { result="exit code $code"; failed=1; }
    [ ! -e "$WORK/$name.late" ] || { result="stopped at its limit"; failed=1; }
    echo "| $name | $((SECONDS - begun)) | $limit | $result |" >> "$OUT/steps.md"
    say "$name: $result"
}

install() {
    local missing
    missing=$("$PYTHON" - wheels/*.whl << 'EOF'
import sys
from importlib.metadata import PackageNotFoundError, version

for wheel in sys.argv[1:]:
    try:
        version(wheel.rpartition("/")[2].partition("-")[0])
    except PackageNotFoundError:
        print(wheel)
EOF
    )
    if [ "$missing" ] && [ "$missing" != "wheels/*.whl" ]; then
        say "installs" $missing
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$WORK/site" $missing || return 1
    fi
    "$PYTHON" -c "import hydra, omegaconf, lightning, timm, transformers, sttabt.run" ||
        { say "a package is missing: fill wheels/ by 'make gpu-wheels' where there is a network"; return 1; }
    if [ "$DEVICE" = cpu ] && ! built; then
        "$PYTHON" setup.py --quiet build_ext --inplace >> "$LOG" 2>&1
        built || say "the kernels for CPUs were NOT built, see $LOG: what needs them is left out"
    fi
}

built() { "$PYTHON" -c "import sys; from sttabt.native import is_built; sys.exit(not is_built())"; }

tests() {  # of the files that have such tests, as others ask for packages that are not here: first what is new on a card
    local first=(tests/test_{importance,packed,graphed}.py) files
    files=$(grep -lE "mark\.gpu" tests/test_*.py | grep -vxF "$(printf '%s\n' "${first[@]}")")
    files="${first[*]} $files"
    "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider -m gpu -n $WORKERS ${CHOSEN:+-k "$CHOSEN"} $files
}

bench() {  # FOLDER BATCH OVERRIDE...
    "$PYTHON" -m sttabt.bench "${BENCH[@]}" "bench.out=$1" "bench.batches=[$2]" "${@:3}"
}

training() {
    local data=(dataset.path=data/fashion_mnist)
    if [ "$DEVICE" = cpu ] || [ ! -e data/fashion_mnist/train-images-idx3-ubyte.gz ]; then
        [ "$DEVICE" = cpu ] || say "data/fashion_mnist is not here ('make fashion-mnist'): the digits take its place"
        data=(dataset=digits model=digits_vit)
    fi
    "$PYTHON" -m sttabt.run experiment=fashion_mnist_gpu "${data[@]}" "${TRAINING[@]}" \
        "hydra.sweep.dir=$WORK/sweep" "paths.artifacts=$WORK/artifacts"
}

collect() {  # what there is of the results
    cat "$WORK"/{bench,single}/bench.jsonl > "$OUT/bench.jsonl" 2> /dev/null
    { "$PYTHON" -m sttabt.bench.goals "$OUT/bench.jsonl" 2>> "$LOG"; echo; cat "$WORK"/{bench,single}/table.md; } \
        > "$OUT/bench.md" 2> /dev/null
    cp "$WORK/bench/speed.png" "$OUT" 2> /dev/null
    for kind in md csv; do cp "$WORK/sweep/report/table.$kind" "$OUT/training.$kind" 2> /dev/null; done
    cp "$WORK/sweep/report/pareto.png" "$OUT" 2> /dev/null
    [ -s "$OUT/bench.jsonl" ] || rm "$OUT"/bench.{jsonl,md}
    tail -c 8000000 "$LOG" > "$WORK/log" && cp "$WORK/log" "$LOG"
}

main
