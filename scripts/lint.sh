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
for plugin in aio qcow qcow2 ram sync vdi vhd vmdk zraw; do
    tests="plugins/tap-$plugin/tests"
    check env MYPYPATH="tests:$tests" .venv/bin/mypy --no-error-summary "$tests"
done
if command -v shellcheck >/dev/null; then
    check shellcheck scripts/*.sh .ci/run
fi
exit $status
