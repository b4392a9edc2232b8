#!/bin/sh
# Round 1 on one H200: the kernels' tests, then the sweep and the comparison with cuBLAS. Writes to $OUT; under 8 minutes.
cd "$(dirname "$0")" || exit 1
export PYTHONPATH=kernels:quantizer:. PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 TRITON_CACHE_DIR=/tmp/triton-round1
: "${OUT:=/tmp}"
COMMIT=${1:-unknown}
date
timeout 150 python3 -m pytest -q -m gpu -n 12 --maxfail=20 -p no:cacheprovider tests/kernels/test_mixed_gemm.py \
    >"$OUT/tests.log" 2>&1
grep -E "^E  |passed|failed|rror" "$OUT/tests.log" | sort | uniq -c | sort -rn | head -15
date
timeout 400 python3 deploy/benchmarks/bench_kernels.py --sweep --sweep-seconds 150 --commit "$COMMIT" --out "$OUT/kernels.csv" \
    >"$OUT/bench.log" 2>&1
echo "bench exit $?"
grep -v "^does not" "$OUT/bench.log" | cut -c1-260 | tail -90
grep -c "^does not" "$OUT/bench.log"
date
