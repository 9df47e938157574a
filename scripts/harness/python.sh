# shellcheck shell=bash
# Sourced by the scripts beside it: finds a Python 3.11 to 3.13 and runs the harness with it.
# Needs bash and nothing else.

plm_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

plm_find_python() {
    local candidate found
    local question='import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) and print(sys.executable)'
    # An environment that is already there was made with a suitable Python: staying with it saves a reinstall.
    for candidate in "${PLM_PYTHON:-}" "$plm_root/.plm/envs/boot/bin/python" \
        python3 python3.12 python3.11 python3.13 python; do
        [ -n "$candidate" ] || continue
        # Asked, not looked up: version managers put commands on PATH that only say that they are not installed.
        found=$("$candidate" -c "$question" 2>/dev/null) || found=
        if [ -n "$found" ]; then
            echo "$found"
            return 0
        fi
        if [ "$candidate" = "${PLM_PYTHON:-}" ]; then
            echo "$(basename "$0"): error: PLM_PYTHON=$PLM_PYTHON is not a Python 3.11, 3.12 or 3.13." >&2
            return 1
        fi
    done
    echo "$(basename "$0"): error: no Python 3.11, 3.12 or 3.13 found on PATH (python3 is" \
        "$(python3 --version 2>/dev/null || echo absent)). Install one, or name it: PLM_PYTHON=/path/to/python $0" >&2
    return 1
}

plm_harness() {
    local python
    python=$(plm_find_python) || exit 1
    cd "$plm_root" || exit 1
    # -s and no PYTHONPATH: the harness uses the standard library and the checkout, never what a user has installed.
    unset PYTHONPATH PYTHONHOME
    PYTHONDONTWRITEBYTECODE=1 PLM_CALLED_FROM="$plm_called_from" exec "$python" -s "$plm_root/scripts/harness" "$@"
}

plm_called_from=$PWD
