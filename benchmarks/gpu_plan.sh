#!/usr/bin/env bash
# Runs the entries of gpu_plan.md, whatever fails; logs and `summary.txt` go into the folder given.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export DREAMDISTILL_DEVICE=${DREAMDISTILL_DEVICE:-cuda}
fast="synthesis.inversion.compile=true synthesis.inversion.precision=bfloat16 distill.compile=true distill.precision=bfloat16"

step() {
  local name=$1 started=$SECONDS
  shift
  case " ${STEPS:-$name} " in *" $name "*) ;; *) return ;; esac
  timeout 480 "$@" >"$out/$name.log" 2>&1
  echo "$name $? $((SECONDS - started))" | tee -a "$out/summary.txt"
}

step tests "$python" -m pytest tests/test_{terms,capture,views,invert,train,metrics}.py
step digits make PYTHON="$python" SET="name=gpu_digits"
step digits_compiled make PYTHON="$python" SET="name=gpu_digits_compiled $fast"
for name in gpu_digits gpu_digits_compiled; do
  [ -f "checkpoints/$name/eval-0.json" ] && cp "checkpoints/$name/eval-0.json" "$out/$name.json"
done
