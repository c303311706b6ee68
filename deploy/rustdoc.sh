#!/bin/sh
# Stands in for rustdoc in `cargo test --doc`: makes the documentation instead of running its examples, warnings being
# errors. `cargo doc` would compile every dependency once more for that; this takes the libraries that the tests use.
set -eu
left=$#
while [ "$left" -gt 0 ]; do
  case "$1" in
    --test) ;;
    --test-run-directory | --error-format | --color) shift; left=$((left - 1)) ;;
    *) set -- "$@" "$1" ;;
  esac
  shift
  left=$((left - 1))
done
exec rustdoc "$@" -D warnings --out-dir "${CARGO_TARGET_DIR:-target}/doc"
