#!/usr/bin/env bash
# All that one wants to know of a GPU, in at most 9 minutes, the most valuable first; from a bare machine with torch.
#
#   benchmarks/gpu_check.sh --out FOLDER [--wheels FOLDER] [--data FOLDER] [--seconds 540]
#   benchmarks/gpu_check.sh --dry-run --out FOLDER        the same parts on a CPU, so small that they take a minute
#
# --wheels  packages that the machine lacks, as pip wheel --no-deps made them: hydra-core, omegaconf,
#           antlr4-python3-runtime==4.9.*, annotated-types, kornia, kornia-rs, lightly, …; no network is needed
# --data    CIFAR-10 as train.parquet and test.parquet; without it the accuracy is not measured, the rest on made-up images
#
# Each part is a process with a time limit of its own, and one that fails or hangs costs the others nothing. FOLDER has a
# log and the results of each part as JSON, as soon as they are known, and summary.md.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

out="" wheels="" data="" seconds="" small=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) small=--small; shift ;;
    --out | --wheels | --data | --seconds)
      [ $# -ge 2 ] || { echo "error: $1: give a value" >&2; exit 2; }
      case "$1" in --out) out=$2 ;; --wheels) wheels=$2 ;; --data) data=$2 ;; --seconds) seconds=$2 ;; esac
      shift 2 ;;
    *) echo "error: $1: no such option; (allowed: --dry-run, --out, --wheels, --data, --seconds)" >&2; exit 2 ;;
  esac
done
[ -n "$out" ] || { echo "error: --out: give a folder for the results" >&2; exit 2; }
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
if [ -z "$seconds" ]; then if [ -n "$small" ]; then seconds=1800; else seconds=540; fi; fi
begun=$(date +%s)
export PYTHONPATH="$PWD/ssl:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 XDG_CACHE_HOME="$out/cache"
if [ -n "$small" ]; then export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1; fi
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" "$wheels"/*.whl > "$out/wheels.log" 2>&1 ||
    for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$out/site"; done >> "$out/wheels.log" 2>&1
  export PYTHONPATH="$PYTHONPATH:$out/site" # before what the machine has: give only what it lacks
fi

# part NAME SECONDS COMMAND…: what is left of the whole time is a limit too
part() {
  local name=$1 limit=$2 started left code
  shift 2
  started=$(date +%s)
  left=$((seconds - (started - begun)))
  if [ "$left" -lt 10 ]; then
    echo "{\"part\": \"$name\", \"code\": -1, \"seconds\": 0}" > "$out/$name.part.json"
    echo "$name: no time left"
    return
  fi
  if [ -n "$small" ]; then limit=$((4 * limit)); fi # a machine that tests has few cores, and others use them
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1 < /dev/null
  code=$?
  echo "{\"part\": \"$name\", \"code\": $code, \"seconds\": $(($(date +%s) - started))}" > "$out/$name.part.json"
  echo "$name: exit status $code after $(($(date +%s) - started)) s"
}

check=("$python" benchmarks/gpu_check.py --out "$out" ${small:+$small} ${data:+--data "$data"})
tests=(tests)
if [ -n "$small" ]; then tests=(tests/data/test_jpeg.py); fi
part tests 90 "$python" -m pytest -q -n0 -p no:cacheprovider -m cuda "${tests[@]}"
part simclr_32 75 "${check[@]}" simclr_32
part methods_32 90 "${check[@]}" methods_32
part photographs 110 "${check[@]}" photographs
part speedrun 215 "${check[@]}" speedrun
part choices_32 80 "${check[@]}" choices_32
part lightly 60 "${check[@]}" lightly
"$python" benchmarks/gpu_check.py --out "$out" summary
