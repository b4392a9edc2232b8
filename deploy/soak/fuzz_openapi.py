"""schemathesis over the OpenAPI schema of a running server: no 5xx; with our gate or vLLM alone.

    PYTHONPATH=tests:deploy:deploy/gate python deploy/soak/fuzz_openapi.py [--examples 20] [--alone]

Needs `pip install ".[soak]"`. vLLM describes its own endpoints; the gate leaves two of them, and GET.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from soak.hostile_requests import ALONE, MAX_ADDRESSES
from soak.load_server import BUSY_LIMIT_S, FLAGS, LOG, MODEL
from vllm_server import is_healthy, serving

UNTOUCHED = "/scale_elastic_ep"
"""Would stop the server on purpose."""
SETTINGS = [
    *("--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--mode", "all"),
    *("--continue-on-failure", "--no-shrink", "--request-timeout", "60", "--suppress-health-check", "all"),
    *("--exclude-path", UNTOUCHED),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20, help="at most, of each endpoint and phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without the gate")
    parser.add_argument("--log", type=Path, default=LOG, help="file that takes what the server prints")
    options = parser.parse_args()
    if importlib.util.find_spec("schemathesis") is None:
        sys.exit('schemathesis is not installed: pip install ".[soak]".')
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    with serving(MODEL, options.log, *(ALONE if options.alone else FLAGS)) as base_url:
        url = base_url.removesuffix("/v1")
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--url", url, *SETTINGS]
        command += ["--max-examples", str(options.examples), "--seed", str(options.seed)]
        with tempfile.TemporaryDirectory() as folder:  # schemathesis keeps what it found where it runs
            code = subprocess.run(command, check=False, cwd=folder).returncode
        alive = is_healthy(url, BUSY_LIMIT_S)
    print(f"schemathesis ended with code {code}; the server is {'well' if alive else 'gone'}")
    return int(bool(code) or not alive)


if __name__ == "__main__":
    sys.exit(main())
