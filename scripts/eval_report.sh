#!/usr/bin/env bash
# A run on one self-contained HTML page.
#
#     scripts/eval_report.sh RUN [arguments]
set -euo pipefail
. "$(dirname "$0")/eval_common.sh"
need $# 1 "scripts/eval_report.sh RUN [arguments]"
run="$1"
shift
evaluate report "$run" "$@"
