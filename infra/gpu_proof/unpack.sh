#!/usr/bin/env bash
# unpack.sh PIECES SITE: check and join the pieces of pack.py, install the wheels into SITE.
set -euo pipefail
pieces=$1 site=$2 folder=$(mktemp -d)
(cd "$pieces" && sha256sum --quiet -c SHA256SUMS)
cat "$pieces"/piece-* | tar -x -C "$folder"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$folder"/wheels/*.whl
rm -r "$folder"
echo "export PYTHONPATH=$site"
