#!/bin/sh
# Tests on one H200: the kernels and the plugin, which needs vLLM on PYTHONPATH. Writes to $OUT.
cd "$(dirname "$0")" || exit 1
export PYTHONPATH="kernels:quantizer:.:$PYTHONPATH" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
: "${OUT:=/tmp}"
workers=$(python3 -c 'import xdist' 2>/dev/null && echo "-n 8")
# shellcheck disable=SC2086 # two words or none
timeout 480 python3 -m pytest -q -m gpu $workers --durations=10 -p no:cacheprovider tests/kernels tests/plugin \
    >"$OUT/tests.log" 2>&1
echo "pytest exit $?"
grep -E "^E  |^FAILED|^ERROR|passed|failed" "$OUT/tests.log" | sort | uniq -c | sort -rn | head -40
