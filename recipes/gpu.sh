#!/usr/bin/env bash
# All that a borrowed GPU is for, in parts that can be stopped at any time and go on when started again.
set -u

parts=(tests quick full big low low_english restart_d64 restart_d128 restart_d192 bible_low bible d64 d128 d192)

usage() {
    cat <<END
usage: recipes/gpu.sh [--dry] OUT DATA MINUTES [PART ...]

  OUT      folder for logs, results and work; give the same one again to go on
  DATA     folder that holds multi30k/ and bible/
  MINUTES  time for each part; what is not done by then goes on next time
  PART     of: ${parts[*]}; without any, all of them in this order
  --dry    print the commands instead of running them

Environment: PYTHON (python3), JOBS (runs of a comparison at a time: 4), ROWS (the rows to run: all), EXTRA (arguments for
the recipes), MPS (1 starts NVIDIA's multi-process service while parts run, so that many small models share the GPU: 16 runs of
0.5 and 1.4 M parameters made 470 updates a second on an H100 with it, of 1.4 M about 200 on an H200 without).
A part that fails stops no other; the exit code is the number of parts that failed or were not finished.
A comparison that was stopped has no tables: compare.py --tables-only makes them. No network is needed.
END
}

dry=
if [ "${1:-}" = --dry ]; then dry=1; shift; fi
if [ "${1:-}" = --help ]; then usage; exit 0; elif [ $# -lt 3 ]; then usage >&2; exit 2; fi
case $3 in '' | 0* | *[!0-9]*) echo "gpu.sh: MINUTES is a whole number above 0, got '$3'" >&2; exit 2 ;; esac
if [ ! -d "$2" ]; then echo "gpu.sh: there is no folder $2 with data" >&2; exit 2; fi

root=$(cd "$(dirname "$0")/.." && pwd) && data=$(cd "$2" && pwd) || exit 2
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
if [ -z "$dry" ]; then mkdir -p "$out" || exit 2; fi
minutes=$3 python=${PYTHON:-python3}
shift 3
cd "$root" || exit 2
read -r -a extra <<<"${EXTRA:-}"
read -r -a rows <<<"${ROWS:+--rows $ROWS}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# run LOG COMMAND...: with what is left of the part's time; output goes to the screen and to OUT/LOG.log
run() {
    local log=$1 left=$((ends - SECONDS))
    shift
    if [ -n "$dry" ]; then printf '%q ' "$@"; echo; return; fi
    if [ "$left" -le 0 ]; then return 124; fi
    timeout --kill-after=30 "$left" "$@" 2>&1 | tee -a "$out/$log.log"
    return "${PIPESTATUS[0]}"
}

# experiment NAME TEXT FILE...: train the base, then run the plan
experiment() {
    local name=$1 text=$2
    shift 2
    local arguments=("$@" --work "$out/work/$name" --results "$out/results" --data.corpus.path "$data/$text")
    run "$name" "$python" recipes/pretrain.py "${arguments[@]}" ${extra[@]+"${extra[@]}"} || return
    arguments+=(--jobs "${JOBS:-4}" ${rows[@]+"${rows[@]}"})
    run "$name" "$python" recipes/compare.py "${arguments[@]}" ${extra[@]+"${extra[@]}"}
}

# Memory and one update of models of published shapes, with random weights: no download.
big() {
    local shape
    for shape in m2m100-418m m2m100-1.2b nllb-3.3b; do
        run big "$python" -m recipes.bench.big_model --device cuda --shape "$shape" --activation-checkpointing \
            --sentences 2000 --tokens 32 --rows 64 --json "$out/big.$shape.cuda.json" || return
    done
}

part() {
    local configs=recipes/configs all=recipes/configs/multi30k_all bench=("$python" -m recipes.bench --json "$out/bench.cuda.json")
    bench+=(--device cuda)
    # A fifth of the time is for the comparison that is under way, the table and the figure.
    bench+=(--plot "$out/bench.cuda.png" --resume --minutes "$((minutes * 8 / 10)).$((minutes * 8 % 10))")
    case $1 in
        tests) run tests "$python" -m pytest -m gpu -p no:cacheprovider tests/test_gpu.py ;;
        quick) run bench "${bench[@]}" --quick ;;
        full) run bench "${bench[@]}" --full ;;
        big) big ;;
        d64 | d128 | d192 | low) experiment "$1" multi30k "$all.yaml" --config "$all/$1.yaml" ;;
        low_english) experiment "$1" multi30k "$all.yaml" --config "$all/low.yaml" --config "$all/$1.yaml" ;;
        restart_*)
            experiment "$1" multi30k "$all.yaml" --config "$all/${1#restart_}.yaml" --config "$all/restart.yaml" \
                --name "m30k_$1" ;;
        bible) experiment bible bible "$configs/bible.yaml" ;;
        bible_low) experiment bible_low bible "$configs/bible.yaml" --config "$configs/bible/low.yaml" ;;
        *) echo "gpu.sh: no such part: $1" >&2; return 2 ;;
    esac
}

failed=0
if [ $# -eq 0 ]; then set -- "${parts[@]}"; fi
if [ "${MPS:-0}" = 1 ] && [ -z "$dry" ]; then
    # Folders of its own, with short names: the service puts a socket there.
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) && CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY || exit 2
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    nvidia-cuda-mps-control -d || { echo "gpu.sh: MPS=1, but nvidia-cuda-mps-control does not start" >&2; exit 2; }
    trap 'echo quit | nvidia-cuda-mps-control; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT
fi
for name in "$@"; do
    ends=$((SECONDS + 60 * minutes))
    echo "== $name"
    part "$name" && continue
    echo "gpu.sh: $name is not done (exit $?; 124: out of time, goes on next time)" >&2
    failed=$((failed + 1))
done
exit "$failed"
