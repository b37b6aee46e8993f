# Sourced by the recipes and by .ci/run: a virtual environment in .venv with zaya installed and on the PATH. EXTRAS adds extras: [dev].
python=${PYTHON:-python3}
if [ ! -x .venv/bin/zaya ] || [ pyproject.toml -nt .venv/bin/zaya ]; then
  if "$python" -c 'import torch; assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 13)' 2>/dev/null; then
    "$python" -m venv --system-site-packages .venv
  else
    "$python" -m venv .venv
    .venv/bin/pip install --quiet torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
  fi
fi
.venv/bin/pip install --quiet --editable ".${EXTRAS:-}"
export PATH="$PWD/.venv/bin:$PATH"
