#!/usr/bin/env bash
# One stage of recipes/tiny.sh again: extend-context, from its committed parent; its report beside the committed one. Some minutes.
# Usage: recipes/rerun.sh WORKDIR
set -euo pipefail
work=${1:?usage: recipes/rerun.sh WORKDIR}
mkdir -p "$work"
work=$(cd "$work" && pwd)
cd "$(dirname "$0")/.."
[ -d "$work/mid" ] || cp -r recipes/data/tiny-mid "$work/mid"
LAST=extend-context recipes/tiny.sh "$work"
EXTRAS=${EXTRAS:-[eval]} # as tiny.sh: nothing is installed twice
. recipes/setup.sh
python - "$work/long/report.json" <<'EOF'
import json, sys
from pathlib import Path

committed, again = (json.loads(Path(path).read_text())["after"] for path in ("recipes/data/tiny-long.json", sys.argv[1]))
for figure, values in committed.items():
    for start, value in values.items():
        print(f"{figure:18} {start:>6} committed {value:.4f} again {again[figure][start]:.4f} difference {again[figure][start] - value:+.4f}")
EOF
