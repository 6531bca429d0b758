#!/bin/sh
# Every linter, also when an earlier one complained; exits 1 when one did.
set -eu
cd "$(dirname "$0")/.."
status=0
check() {
    echo "lint: $*"
    "$@" || status=1
}
check .venv/bin/ruff check --quiet .
check .venv/bin/ruff format --quiet --check .
check .venv/bin/mypy --no-error-summary
# each by itself: the plugins' tests have modules of the same names
echo "lint: mypy of the plugins' tests"
for tests in plugins/*/tests; do echo "$tests"; done |
    xargs -P "$(nproc)" -I '{}' env MYPYPATH='tests:{}' .venv/bin/mypy --no-error-summary '{}' || status=1
if command -v shellcheck >/dev/null; then
    check shellcheck scripts/*.sh .ci/run
fi
exit $status
