#!/bin/sh
# Pins, with hashes, what the tests ran with: every package at the version that is installed in the
# development environment. Names no index; pip fetches from whichever one is configured.
#
#   supply_chain/constraints.sh PYTHON
#
# PYTHON is that environment's, with uv in it. torch is left out of tests.txt: it has many builds of
# one version, and the parties have none of them. CrypTen has a file of its own, to be installed with
# --no-deps: it names a package that does not exist any more.
set -eu
python=${1:-.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip freeze --exclude-editable | grep -v -e '^-e' -e ' @ ' >"$folder/installed.txt"
echo "torch==2.13.0 ; python_version < '3'" >"$folder/without.txt"

pin() {
  file=$1 text=$2
  shift 2
  {
    printf '# %s\n# Made by supply_chain/constraints.sh on CPython 3.11, Linux.\n' "$text"
    "$python" -m uv pip compile --quiet --python-version 3.11 --generate-hashes \
      --no-emit-index-url --no-header --no-annotate --override "$folder/without.txt" \
      --constraint "$folder/installed.txt" "$@"
  } >"$folder/made.txt"
  mv "$folder/made.txt" "$file"
}

pin constraints/parties.txt "What the three parties need, with the extras of a deployment." \
  $(sed -n 's/^\(dicom\|otel\|postgres\|postgresql\) = .*/--extra \1/p' pyproject.toml) pyproject.toml
pin constraints/tests.txt "What the tests ran with, except torch and CrypTen." --extra dev pyproject.toml
echo crypten >"$folder/crypten.txt"
pin constraints/crypten.txt "CrypTen, for pip install --no-deps." --no-deps "$folder/crypten.txt"
