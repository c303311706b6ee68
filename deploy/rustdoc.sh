#!/bin/sh
# Stands in for rustdoc in `cargo test --doc`: makes the documentation, with private items and with warnings as errors,
# and runs no examples. `cargo doc` would compile every dependency again; this uses the libraries that the tests use.
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
exec rustdoc "$@" -D warnings -A rustdoc::private-intra-doc-links --document-private-items --out-dir "${CARGO_TARGET_DIR:-target}/doc"
