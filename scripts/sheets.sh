#!/bin/sh
# What the test kit finds of each driver, as a sheet in its package: `tapdisk formats --long HANDLE` shows it.
set -eu
cd "$(dirname "$0")/.."
for tests in plugins/*/tests/*contract*.py; do
    package=$(ls -d "${tests%/tests/*}"/tap_*/)
    .venv/bin/python -m tapcore.testkit --sheet "${package}tapcore-conformance.json" "$tests" -q
done
